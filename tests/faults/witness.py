"""What a run did with its rows, written down from outside: which it trained on when, and which steps it took."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any


def record(file: Path) -> None:
    """Have this process append a line to `file` for every micro-batch it trains on and every optimizer step."""
    from accelerate.optimizer import AcceleratedOptimizer

    from aria_finetune.trainer import AriaTrainer

    compute_loss, step = AriaTrainer.compute_loss, AcceleratedOptimizer.step

    def note(entry: dict[str, Any]) -> None:
        with file.open("a") as opened:
            opened.write(json.dumps({**entry, "seconds": time.monotonic()}) + "\n")

    def noted_loss(trainer: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if trainer.model.training:
            plans = trainer.data_collator.collator.plans
            ids = [plans[row].record.id for row in inputs["rows"].tolist()]
            note({"step": trainer.state.global_step + 1, "rows": ids})
        return compute_loss(trainer, model, inputs, *args, **kwargs)

    def noted_step(optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        note({"update": True})
        return step(optimizer, *args, **kwargs)

    AriaTrainer.compute_loss = noted_loss  # type: ignore[method-assign]
    AcceleratedOptimizer.step = noted_step


def rows_by_step(file: Path) -> dict[int, list[str]]:
    """Ids of the rows of each optimizer step, in the order in which they were trained on."""
    rows: dict[int, list[str]] = {}
    for entry in _entries(file):
        if "rows" in entry:
            rows.setdefault(entry["step"], []).extend(entry["rows"])
    return rows


def count_updates(file: Path) -> int:
    """How many optimizer steps were taken."""
    return sum("update" in entry for entry in _entries(file))


def seconds(file: Path) -> list[float]:
    """When each line was written, by the clock of `time.monotonic`, which all processes share."""
    return [entry["seconds"] for entry in _entries(file)]


def _entries(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
