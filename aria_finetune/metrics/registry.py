"""Every metric by its name, and by which of them a record is scored."""

from __future__ import annotations

import difflib

from aria_finetune.data_formats.record import Record
from aria_finetune.errors import UserError
from aria_finetune.metrics.exact import EXACT
from aria_finetune.metrics.metric import Metric

METRICS: dict[str, Metric] = {metric.name: metric for metric in (EXACT,)}


def choose(record: Record) -> str:  # noqa: ARG001
    """The name of the metric for a record, from its format and what its converter kept."""
    return EXACT.name


def metric_named(name: str) -> Metric:
    """The metric of a name.

    Raises:
        UserError: there is none.
    """
    if name not in METRICS:
        near = difflib.get_close_matches(name, METRICS, 1)
        known = ", ".join(METRICS)
        raise UserError(
            f"there is no metric {name!r}", fix=f"did you mean {near[0]}?" if near else f"one of: auto, {known}"
        )
    return METRICS[name]
