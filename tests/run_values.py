"""What must be equal in two runs of one recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

VOLATILE = ("second", "runtime", "memory", "wait")


def metrics(run: Path) -> list[dict[str, Any]]:
    """All that was logged."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def steady_metrics(run: Path) -> list[dict[str, Any]]:
    """All that was logged but for times and memory."""
    return [
        {name: value for name, value in entry.items() if not any(word in name for word in VOLATILE)}
        for entry in metrics(run)
    ]
