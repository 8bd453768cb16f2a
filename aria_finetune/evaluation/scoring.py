"""Which rows are scored, by what, and what the answers to them are worth. Knows no model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from aria_finetune.data.rows import RowPlan
from aria_finetune.errors import UserError
from aria_finetune.generation import Reply
from aria_finetune.material import Material
from aria_finetune.metrics import METRICS, Metric, Row, Score, metric_named, row_of
from aria_finetune.metrics.captions import CAPTIONS
from aria_finetune.metrics.registry import AUTO, metric_for
from aria_finetune.metrics.summary import compare, is_right, summarise

BASE = "base"
NO_ANSWER, NEEDS_CODE = "no known answer", "needs --run-code"


@dataclass(frozen=True)
class Asked:
    """The rows that are asked, one for each: what is known of it, and its metric, None if it can't be scored.

    `unscored` counts the latter by reason, `joined` the rows that were taken together with another.
    """

    plans: list[RowPlan]
    rows: list[Row]
    metrics: list[Metric | None]
    unscored: dict[str, int]
    joined: int

    def check(self, where: str) -> None:
        """Refuse rows of which none can be scored.

        Raises:
            UserError: there is none that can.
        """
        if any(self.metrics):
            return
        if NEEDS_CODE in self.unscored:
            fix = "add --run-code to run what the model writes on this machine"
            raise UserError("the rows are scored by running what the model writes", where=where, fix=fix)
        if set(self.unscored) - {NO_ANSWER}:
            raise UserError(f"no evaluation row can be scored: {', '.join(self.unscored)}", where=where)
        raise UserError("no evaluation row has a known answer", where=where)

    def of(self, material: Material) -> Material:
        """The same material with these rows for evaluation, and none for training."""
        return replace(material, eval_rows=replace(material.eval_rows, plans=self.plans))

    def places(self, metric: Metric) -> list[int]:
        """The rows that a metric scores."""
        return [place for place, one in enumerate(self.metrics) if one is metric]

    @property
    def used(self) -> list[Metric]:
        """The metrics of all rows, in the order of the table of metrics."""
        return [metric for metric in METRICS.values() if metric in self.metrics]


def choose_rows(plans: Sequence[RowPlan], name: str, *, run_code: bool) -> Asked:
    """Decide by what each row is scored; captions of one picture, rows of their own, are asked for once."""
    rows = [row_of(plan.record) for plan in plans]
    wanted = [metric_for(row) if name == AUTO else metric_named(name) for row in rows]
    kept, rows, joined = _together(plans, rows, wanted)
    metrics: list[Metric | None] = []
    unscored: Counter[str] = Counter()
    for place, row in zip(kept, rows, strict=True):
        reason = _hindrance(row, wanted[place], run_code=run_code)
        metrics.append(None if reason else wanted[place])
        unscored.update([reason] if reason else [])
    return Asked([plans[place] for place in kept], rows, metrics, dict(unscored), joined)


def _hindrance(row: Row, metric: Metric, *, run_code: bool) -> str | None:
    if metric.runs_code and metric.fits(row) and not run_code:
        return NEEDS_CODE
    if metric.fits(row):
        return None
    return f"lacks what {metric.name} needs" if row.expected else NO_ANSWER


def _together(
    plans: Sequence[RowPlan], rows: Sequence[Row], metrics: Sequence[Metric]
) -> tuple[list[int], list[Row], int]:
    """The places of rows that are asked, what is known of them, and how many were taken together with one of them."""
    places: dict[object, int] = {}
    kept: list[int] = []
    known: list[Row] = []
    for place, (plan, row, metric) in enumerate(zip(plans, rows, metrics, strict=True)):
        key = _prompt(plan) if metric is CAPTIONS else place
        first = places.setdefault(key, len(kept))
        if first == len(kept):
            kept.append(place)
            known.append(row)
        else:
            captions = dict.fromkeys((*known[first].expected, *row.expected))
            known[first] = replace(known[first], expected=tuple(captions))
    return kept, known, len(plans) - len(kept)


def _prompt(plan: RowPlan) -> object:
    """What is asked of which media: equal for two captions of one picture."""
    record = plan.record
    asked = [(one.role, one.content) for one in record.messages if one.role != "assistant"]
    return repr((asked, [(one.sha256, one.name, one.start, one.end, one.page) for one in record.media]))


@dataclass(frozen=True)
class Scored:
    """Answers and what they are worth, by who gave them; a score is None where the row has no metric."""

    said: Mapping[str, list[Reply]]
    scores: Mapping[str, list[Score | None]]
    figures: dict[str, dict[str, Any]]
    differences: dict[str, dict[str, Any]]

    @property
    def texts(self) -> dict[str, list[str]]:
        """The answers alone."""
        return {who: [reply.text for reply in given] for who, given in self.said.items()}


def score_answers(asked: Asked, said: Mapping[str, list[Reply]]) -> Scored:
    """Score every answer, by who gave it, and compare each with the base."""
    pairs = list(zip(asked.rows, asked.metrics, strict=True))
    scores = {
        who: [
            metric.score(row, reply.text) if metric else None for (row, metric), reply in zip(pairs, given, strict=True)
        ]
        for who, given in said.items()
    }
    figures = {who: _figures(asked, given, scores[who]) for who, given in said.items()}
    others = [who for who in said if who != BASE]
    differences = {
        who: {metric.name: _difference(asked, metric, scores[BASE], scores[who]) for metric in asked.used}
        for who in others
    }
    return Scored(said, scores, figures, differences)


def _figures(asked: Asked, given: Sequence[Reply], scores: Sequence[Score | None]) -> dict[str, Any]:
    """The mean of all scores, as `accuracy`, how many are wholly right, not parsed or cut, and what each metric says."""
    known = [score for score in scores if score is not None]
    by_metric = {}
    for metric in asked.used:
        places = asked.places(metric)
        rows, answers = [asked.rows[place] for place in places], [given[place].text for place in places]
        by_metric[metric.name] = summarise(metric, rows, answers, _at(scores, places))
    return {
        "accuracy": sum(score.value for score in known) / len(known),
        "correct": sum(map(is_right, known)),
        "unparsed": sum(not score.parsed for score in known),
        "cut": sum(reply.cut for reply in given),
        "metrics": by_metric,
    }


def _difference(
    asked: Asked, metric: Metric, before: Sequence[Score | None], after: Sequence[Score | None]
) -> dict[str, Any]:
    places = asked.places(metric)
    return compare(metric, _at(before, places), _at(after, places))


def _at(scores: Sequence[Score | None], places: Sequence[int]) -> list[Score]:
    return [score for place in places if (score := scores[place]) is not None]
