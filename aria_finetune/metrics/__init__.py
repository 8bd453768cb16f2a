"""How answers are scored, as the field defines it: one file for each family of metrics. Knows records and no model.

`choose` says by which metric a record is scored, `METRICS` holds them by name, and `row_of` is what one may know of
a record: `METRICS[choose(record)].score(row_of(record), answer)` is a `Score` from 0 to 1.
"""

from aria_finetune.metrics.metric import Metric
from aria_finetune.metrics.registry import METRICS, choose, metric_named
from aria_finetune.metrics.rows import Row, Score, row_of

__all__ = ["METRICS", "Metric", "Row", "Score", "choose", "metric_named", "row_of"]
