"""A plan as a person reads it. Decides nothing."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from aria_finetune.durations import duration
from aria_finetune.memory import GIB
from aria_finetune.planner.rows import Bin, quantiles
from aria_finetune.planner.step import Phase
from aria_finetune.planner.work import ASSUMED_EFFICIENCY
from aria_finetune.planning import Plan
from aria_finetune.planning.outlook import LONGEST, Outlook
from aria_finetune.planning.past import PastRun
from aria_finetune.planning.setup import steps

BAR = 40
"""Columns of the longest bar of the histogram."""


def show_plan(plan: Plan, console: Console) -> None:
    """Print it."""
    _show_rows(plan, console)
    _show_components(plan.outlook, console)
    _show_phases(plan.outlook, console)
    _show_verdict(plan, console)
    _show_knobs(plan, console)
    _show_time(plan, console)
    _show_disk(plan, console)
    if plan.last is not None:
        _show_last(plan.last, console)


def show_expectation(outlook: Outlook, last: PastRun | None, console: Console) -> None:
    """Print in a line or two what a run that begins is expected to take."""
    seconds = outlook.seconds(last)
    time = "" if seconds is None else f", about {duration(seconds)} of training"
    console.print(
        f"expected: {outlook.needed_bytes / GIB:.2f} GiB of {outlook.machine.memory / GIB:.1f} at most "
        f"({outlook.peak.name}){time}",
        highlight=False,
    )
    if outlook.tight or not outlook.fits:
        console.print("warning: that may not fit; `aria-finetune plan` names the keys that lower it", highlight=False)


def _show_rows(plan: Plan, console: Console) -> None:
    rows = plan.outlook.rows
    for kind, these in (("training", rows.training), ("evaluation", rows.evaluation)):
        counts = these.counts()
        if counts["rows"] or counts["rejected"]:
            console.print(f"{kind}: {these.describe()}", highlight=False)
        for reason, count in these.reasons().items():
            first = next(reject for reject in these.rejects if reject.reason == reason)
            console.print(f"  rejected: {count} {reason}, the first {first.describe()}", highlight=False)
    tokens = [row.tokens for row in rows.training.plans]
    named = ", ".join(f"{name} {count:,}" for name, count in quantiles(tokens).items())
    console.print(f"tokens of a row: {named}", highlight=False)
    most = max((part.rows for part in plan.histogram), default=1)
    for part in plan.histogram:
        console.print(f"  {_range(part):>15} {part.rows:>9,} {'█' * -(-part.rows * BAR // most)}", highlight=False)
    console.print(f"{steps(plan.outlook.recipe, rows):,} optimizer steps", highlight=False)


def _range(part: Bin) -> str:
    return f"{part.first:,}-{part.last:,}"


def _show_components(outlook: Outlook, console: Console) -> None:
    table = Table(title=f"the model in memory on {outlook.machine.name}")
    for column in ("part", "parameters", "dtype", "GiB"):
        table.add_column(column, justify="left" if column in {"part", "dtype"} else "right")
    parts = outlook.components()
    for part in parts:
        name = part["name"] if part["on"] == "device" else f"{part['name']} (host)"
        table.add_row(name, f"{part['parameters']:,}", part["dtype"], _gib(part["bytes"]))
    weights = sum(part["parameters"] for part in parts)
    table.add_row("total", f"{weights:,}", "", _gib(sum(part["bytes"] for part in parts)))
    console.print(table)


def _show_phases(outlook: Outlook, console: Console) -> None:
    table = Table(title="the fullest moment of each phase")
    table.add_column("phase")
    table.add_column("GiB", justify="right")
    table.add_column("of which, GiB")
    for phase in outlook.phases:
        marked = f"{phase.name} *" if phase is outlook.peak else phase.name
        table.add_row(marked, _gib(phase.bytes), _parts(phase))
    console.print(table)


def _parts(phase: Phase) -> str:
    ordered = sorted(phase.parts.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {_gib(size)}" for name, size in ordered if size >= 0.005 * phase.bytes)


def _show_verdict(plan: Plan, console: Console) -> None:
    outlook = plan.outlook
    there, peak = outlook.machine.memory / GIB, outlook.needed_bytes / GIB
    verdict = "fits" if outlook.fits else "does not fit"
    tight = ", but tightly: plans may be a tenth off" if outlook.tight else ""
    console.print(
        f"the peak is {peak:.2f} GiB, {outlook.machine.name} has {there:.1f}: the run {verdict}{tight}", highlight=False
    )
    if outlook.setup.host_bytes():
        console.print(f"  {outlook.setup.host_bytes() / GIB:.2f} GiB of the model are in host memory", highlight=False)
    whole = ", Aria's whole context" if plan.longest_row == LONGEST else ""
    console.print(
        f"the longest row that fits has {plan.longest_row:,} tokens{whole} (one row at a time, all in the loss)",
        highlight=False,
    )


def _show_knobs(plan: Plan, console: Console) -> None:
    telling = [saving for saving in plan.savings if saving.bytes > 0]
    if not telling:
        return
    table = Table(title="what each key would save of the peak")
    table.add_column("setting")
    table.add_column("GiB", justify="right")
    table.add_column("effect")
    for saving in telling:
        table.add_row(saving.knob.setting, _gib(saving.bytes), saving.knob.effect)
    console.print(table)


def _show_time(plan: Plan, console: Console) -> None:
    work = plan.outlook.work
    share = 100 * work.vision / work.total if work.total else 0.0
    console.print(
        f"work: {work.total / 1e15:,.3f} PFLOP of training, {share:.0f}% of it in the vision tower", highlight=False
    )
    if plan.seconds is None:
        console.print("time: not estimated, the rate of this device is not known", highlight=False)
        return
    basis = (
        f"at the rate measured in {plan.last.folder}/"
        if plan.last is not None
        else f"an estimate at {ASSUMED_EFFICIENCY:.0%} of the device's bf16 rate; no run was measured"
    )
    console.print(f"time: about {duration(plan.seconds)} of training ({basis})", highlight=False)


def _show_disk(plan: Plan, console: Console) -> None:
    features = plan.disk["image_features"]
    cached = f", {features / 2**20:,.0f} MiB for image features" if features else ""
    console.print(
        f"disk: {plan.disk['run'] / 2**20:,.0f} MiB for checkpoints and adapter{cached}; "
        f"{plan.disk['free'] / 2**20:,.0f} MiB are free",
        highlight=False,
    )


def _show_last(last: PastRun, console: Console) -> None:
    seconds = (
        ""
        if last.planned_seconds is None
        else f"; {last.planned_seconds:,.0f} s planned, {last.seconds:,.0f} s measured"
    )
    console.print(
        f"the last run ({last.folder}/): {last.planned_gib:.2f} GiB planned, {last.measured_gib:.2f} measured, "
        f"{last.memory_error:+.1%}{seconds}",
        highlight=False,
    )


def _gib(count: int) -> str:
    return f"{count / GIB:,.2f}" if abs(count) >= GIB / 100 else f"{count / GIB:,.4f}"
