"""The account of routing: what goes into the log of a step, and what is worth a warning. Knows counts, not tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from statistics import fmean
from typing import Any

from aria_finetune.model.routing_health import dead, dominant_group, enough, entropy, overloaded
from aria_finetune.model.routing_watch import RoutingReport, RoutingWatch

MEASURED = ("balance_loss", "z_loss", "changed", "drift")
"""Of an entry, what may not be finite."""
WINDOWS = 2
"""For how many windows of choices enough something must be so before it is warned of."""


class RoutingAccount:
    """Keeps the account of one run.

    Args:
        watch: sees the routers.
        append: takes the entry of a logged step, with lists by layer; None where only the losses are to be logged.
        group: experts in a group, of which a warning tells.
    """

    def __init__(self, watch: RoutingWatch, append: Callable[[Mapping[str, Any]], None] | None, group: int) -> None:
        self.watch = watch
        self._append = append
        self._alarm = RoutingAlarm(group)

    def take(self, step: int, say: Callable[[str], None]) -> dict[str, float]:
        """Means over layers since the last log, for its line; lists by layer go to `append`, warnings to `say`.

        Of a model that has diverged, which the next loss will tell, numbers are None in the lists and not among the means.
        """
        report = self.watch.report()
        if not report.tokens:
            return {}
        means = {"balance_loss": fmean(report.balance), "z_loss": fmean(report.z)}
        if self._append is not None:
            entry = describe(report)
            self._append(
                {"step": step, **entry, **{key: [_or_none(value) for value in entry[key]] for key in MEASURED}}
            )
            for warning in self._alarm.look(step, report.load):
                say(warning)
            means = summarise(entry)
        return {key: value for key, value in means.items() if math.isfinite(value)}

    def state(self) -> dict[str, Any]:
        """What a resumed run needs, as JSON values."""
        return {"watch": self.watch.state(), "alarm": self._alarm.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` gave."""
        self.watch.restore(state["watch"])
        self._alarm.restore(state["alarm"])


def describe(report: RoutingReport) -> dict[str, Any]:
    """A report as a line of the log: lists by layer."""
    return {
        "tokens": report.tokens,
        "balance_loss": report.balance,
        "z_loss": report.z,
        "entropy": [entropy(load) for load in report.load],
        "dead": [dead(load) for load in report.load],
        "overloaded": [overloaded(load) for load in report.load],
        "changed": report.changed,
        "drift": report.drift,
        "load": report.load,
    }


def summarise(entry: Mapping[str, Any]) -> dict[str, float]:
    """The same in single numbers: means over layers, the least entropy of a layer, counts of experts."""
    return {
        "balance_loss": fmean(entry["balance_loss"]),
        "z_loss": fmean(entry["z_loss"]),
        "expert_entropy": fmean(entry["entropy"]),
        "expert_entropy_min": min(entry["entropy"]),
        "dead_experts": sum(map(len, entry["dead"])),
        "overloaded_experts": sum(map(len, entry["overloaded"])),
        "routing_changed": fmean(entry["changed"]),
        "router_drift": fmean(entry["drift"]),
    }


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


class RoutingAlarm:
    """Warns, once for each layer and kind, of experts that die and of a group that takes over.

    Steps are put together to windows with choices enough to judge by. An expert that was not used in the first window, which is
    as the base model uses it for these data, is not one that died; nor is a group that had taken over then one that takes over.
    """

    def __init__(self, group: int) -> None:
        self._group = group
        self._window: list[list[int]] = []
        self._first: list[list[int]] | None = None
        self._lasting: dict[str, int] = {}
        self._told: set[str] = set()

    def look(self, step: int, load: list[list[int]]) -> list[str]:
        """Warnings after a logged step, of whose choices `load` has the numbers by layer and expert."""
        pairs = zip(self._window or [[0] * len(one) for one in load], load, strict=True)
        self._window = [[a + b for a, b in zip(before, now, strict=True)] for before, now in pairs]
        if not enough(self._window[0]):
            return []
        window, self._window = self._window, []
        if self._first is None:
            self._first = window
            return []
        warnings = []
        for layer, (first, now) in enumerate(zip(self._first, window, strict=True)):
            died = [expert for expert in dead(now) if first[expert]]
            if self._lasts(f"dead {layer}", bool(died)):
                warnings.append(f"step {step}: {_many(died)} of layer {layer} died: no token goes there any more")
            group = dominant_group(now, self._group)
            new = group is not None and dominant_group(first, self._group) is None
            if self._lasts(f"group {layer}", new) and group is not None:
                share = sum(now[group * self._group :][: self._group]) / sum(now)
                names = f"experts {group * self._group} to {(group + 1) * self._group - 1}"
                warnings.append(f"step {step}: {names} of layer {layer} take over: {share:.0%} of all choices")
        remedy = "raise moe.balance_loss, lower train.learning_rate, or leave router out of lora.targets"
        return [f"warning: {warning}; {remedy}" for warning in warnings]

    def _lasts(self, what: str, now: bool) -> bool:  # noqa: FBT001 (what holds now)
        """Whether it has held for `WINDOWS` windows and was not told yet."""
        self._lasting[what] = self._lasting.get(what, 0) + 1 if now else 0
        if self._lasting[what] < WINDOWS or what in self._told:
            return False
        self._told.add(what)
        return True

    def state(self) -> dict[str, Any]:
        """What a resumed run needs to warn as this one would, as JSON values."""
        return {"window": self._window, "first": self._first, "lasting": self._lasting, "told": sorted(self._told)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` gave."""
        self._window, self._first = state["window"], state["first"]
        self._lasting, self._told = dict(state["lasting"]), set(state["told"])


def _many(experts: list[int]) -> str:
    return f"expert {experts[0]}" if len(experts) == 1 else f"experts {', '.join(map(str, experts))}"
