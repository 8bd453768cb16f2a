"""What earlier runs took, and how far their plans were off. Reads `run.json` of the runs beside the one that is planned."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aria_finetune.planner.cards import card_of

RUN_FILE = "run.json"


@dataclass(frozen=True)
class PastRun:
    """A finished run: what was planned, what was measured. `flops` are its operations as reckoned; seconds are training's."""

    folder: Path
    device: str
    parameters: int
    planned_gib: float
    measured_gib: float
    flops: float
    seconds: float
    planned_seconds: float | None

    @property
    def memory_error(self) -> float:
        """By how much the plan was above (positive) or below what was measured, as a share of that."""
        return self.planned_gib / self.measured_gib - 1

    @property
    def flops_per_second(self) -> float:
        """The rate that the run came to."""
        return self.flops / self.seconds


def last_run(output: Path, *, parameters: int, device: str) -> PastRun | None:
    """The run at `output`, or the newest beside it, that finished on a base of the same size and on the same device."""
    files = [output / RUN_FILE, *sorted(output.parent.glob(f"*/{RUN_FILE}"), key=_age)]
    runs = (run for file in files for run in _read(file))
    return next((run for run in runs if run.parameters == parameters and _is_same(run.device, device)), None)


def _is_same(ran_on: str, device: str) -> bool:
    """Devices by what CUDA calls them, or by the name of their card."""
    card = card_of(ran_on)
    return ran_on == device or (card is not None and card.name == device)


def _age(file: Path) -> float:
    return -file.stat().st_mtime


def _read(file: Path) -> Iterator[PastRun]:
    described = _described(file)
    plan, measured = described.get("plan"), described.get("measured")
    if described.get("status") != "finished" or not isinstance(plan, Mapping) or not isinstance(measured, Mapping):
        return
    try:
        run = PastRun(
            folder=file.parent,
            device=str(described["device"]),
            parameters=int(plan["parameters"]),
            planned_gib=float(plan["peak_gib"]),
            measured_gib=float(measured["peak_gib"]),
            flops=float(measured["flops"]),
            seconds=float(described["training_seconds"]),
            planned_seconds=None if plan.get("seconds") is None else float(plan["seconds"]),
        )
    except (KeyError, TypeError, ValueError):
        return
    if run.measured_gib > 0 and run.seconds > 0:
        yield run


def _described(file: Path) -> dict[str, Any]:
    try:
        described = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return described if isinstance(described, dict) else {}
