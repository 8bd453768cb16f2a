"""What an evaluation leaves: figures, every answer with its score, and a page of them with their pictures."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from aria_finetune.evaluation.answering import VIEWING
from aria_finetune.evaluation.scoring import BASE, Asked, Scored
from aria_finetune.material import Material, build_collator
from aria_finetune.metrics.summary import is_right
from aria_finetune.needles.grid import GRID_FILE, GRID_PICTURE, grid_of, hidden_in, write_grid
from aria_finetune.recipe import Recipe
from aria_finetune.redaction import redact_values
from aria_finetune.staging import staged_folder
from aria_finetune.viewing.answers import Answered, Comparison, Given, compose, draw_answered
from aria_finetune.viewing.drawing import DrawnRow

EVALUATION_FILE = "evaluation.json"
PREDICTIONS_FILE = "predictions.jsonl"
PAGE_FILE = "evaluation.html"
WRITTEN = (PREDICTIONS_FILE, EVALUATION_FILE, PAGE_FILE, GRID_FILE, GRID_PICTURE)

PAGE_ROWS = 400
"""Rows on the page; where there are more, those whose score changed come first, then those that are wrong."""

ROW_PICTURES = 4
PAGE_PICTURE_BYTES = 24 * 2**20
"""From so many bytes of pictures on the page shows no more of them."""


@dataclass(frozen=True)
class Report:
    """All that is known at the end."""

    recipe: Recipe
    material: Material
    asked: Asked
    scored: Scored
    adapter: Path | None
    merged: Path | None
    metric: str
    max_new_tokens: int

    @property
    def models(self) -> dict[str, str]:
        """Where each who answered comes from."""
        places = {BASE: self.recipe.model.path, "adapter": self.adapter, "merged": self.merged}
        return {who: str(place) for who, place in places.items() if place is not None}

    def figures(self, seconds: float) -> dict[str, Any]:
        """What `evaluation.json` says."""
        scored = sum(metric is not None for metric in self.asked.metrics)
        return {
            "recipe": str(self.recipe.file),
            "models": self.models,
            "metric": self.metric,
            "max_new_tokens": self.max_new_tokens,
            "metrics": {
                metric.name: {"title": metric.title, "source": metric.source, "rows": len(self.asked.places(metric))}
                for metric in self.asked.used
            },
            "rows": len(self.asked.rows),
            "scored": scored,
            "unscored": self.asked.unscored,
            "joined": self.asked.joined,
            "rejected": self.material.eval_rows.reasons(),
            **self.scored.figures,
            "differences": self.scored.differences,
            "seconds": seconds,
        }

    def lines(self) -> Iterator[dict[str, Any]]:
        """What `predictions.jsonl` says: a line for each row."""
        rows = zip(self.asked.plans, self.asked.rows, self.asked.metrics, strict=True)
        for place, (plan, row, metric) in enumerate(rows):
            scores = {who: given[place] for who, given in self.scored.scores.items()}
            yield {
                "id": plan.record.id,
                "metric": metric.name if metric else None,
                "question": row.question,
                "expected": list(row.expected),
                "answers": {who: given[place].text for who, given in self.scored.said.items()},
                "scores": {who: score and score.value for who, score in scores.items()},
                "correct": {who: score is not None and is_right(score) for who, score in scores.items()},
                "parsed": {who: score and score.parsed for who, score in scores.items()},
                "cut": {who: given[place].cut for who, given in self.scored.said.items()},
                "read": {who: score.read for who, score in scores.items() if score and score.read},
            }


def draw_answers(recipe: Recipe, material: Material, asked: Asked, scored: Scored) -> list[DrawnRow]:
    """The rows of the page with small pictures in them, read again one by one: pictures are held for no longer."""
    collator = build_collator(recipe, material, **VIEWING)
    drawn: list[DrawnRow] = []
    left = PAGE_PICTURE_BYTES
    for place in chosen_rows(scored):
        plan, metric = asked.plans[place], asked.metrics[place]
        tiles = collator.first_tiles(place, ROW_PICTURES) if left > 0 else []
        row = Answered(
            number=place + 1,
            id=plan.record.id,
            where=f"{plan.record.source.file}:{plan.record.source.ordinal}",
            metric=metric.name if metric else "not scored",
            question=asked.rows[place].question,
            expected=asked.rows[place].expected,
            given=[_given(scored, who, place) for who in scored.said],
            pictures=len(plan.sights),
            judged=_judged(scored),
        )
        drawing = draw_answered(row, tiles)
        left -= len(drawing.body) if tiles else 0
        drawn.append(drawing)
    return drawn


def chosen_rows(scored: Scored) -> list[int]:
    """The rows of the page in their order: all, or those that changed, then those that are wrong, then the first."""
    count, judged = len(scored.said[BASE]), _judged(scored)

    def rank(place: int) -> tuple[int, int]:
        scores = {who: scored.scores[who][place] for who in (BASE, *judged)}
        values = {score.value for score in scores.values() if score is not None}
        wrong = any(score is not None and not is_right(score) for who, score in scores.items() if who in judged)
        return (0 if len(values) > 1 else 1 if wrong else 2), place

    return sorted(sorted(range(count), key=rank)[:PAGE_ROWS])


def _judged(scored: Scored) -> list[str]:
    """Whose answers make a row wrong: what was tuned, else the base; the adapter without its sight is not meant to see."""
    return [who for who in scored.said if who in {"adapter", "merged"}] or [BASE]


def _given(scored: Scored, who: str, place: int) -> Given:
    reply, score = scored.said[who][place], scored.scores[who][place]
    if score is None:
        return Given(who, reply.text, None, right=False, parsed=True, cut=reply.cut)
    return Given(who, reply.text, score.value, is_right(score), score.parsed, score.read, reply.cut)


def write(output: Path, report: Report, drawn: Sequence[DrawnRow], *, seconds: float) -> dict[str, Any]:
    """Write all files of an evaluation in the place of an earlier one's; returns what `evaluation.json` says."""
    result: dict[str, Any] = redact_values(report.figures(seconds))
    needles = [hidden_in(plan.record) for plan in report.asked.plans]
    for name in WRITTEN:  # of an earlier evaluation; nothing else is there
        (output / name).unlink(missing_ok=True)
    with staged_folder(output) as folder:
        with (folder / PREDICTIONS_FILE).open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(redact_values(line), ensure_ascii=False) + "\n" for line in report.lines())
        (folder / EVALUATION_FILE).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        (folder / PAGE_FILE).write_text(compose(_comparison(report, result, len(drawn)), drawn), encoding="utf-8")
        if any(needles):
            write_grid(folder, grid_of(needles, report.scored.texts))
    return result


def _comparison(report: Report, result: dict[str, Any], shown: int) -> Comparison:
    facts = [
        *report.models.items(),
        *(
            (name, f"{said['title']} ({said['source']}); {said['rows']:,} rows")
            for name, said in result["metrics"].items()
        ),
        *((f"{count:,} rows not scored", reason) for reason, count in result["unscored"].items()),
    ]
    return Comparison(report.recipe.file.name, facts, table(result), shown, result["rows"])


def answered(result: dict[str, Any]) -> list[str]:
    """Who gave the answers that `evaluation.json` is of."""
    return [who for who in (BASE, "adapter", "adapter_blank", "merged") if who in result]


def table(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """A line for each metric and each who answered: metric, who, mean, interval, unparsed, difference, its interval, p."""
    lines: list[tuple[str, ...]] = []
    for metric in result["metrics"]:
        for who in answered(result):
            said, change = result[who]["metrics"][metric], result["differences"].get(who, {}).get(metric)
            difference = (
                (f"{change['difference']:+.3f}", _interval(change, "+.3f"), _p(change["p_value"])) if change else ()
            )
            line = (metric, who, f"{said['mean']:.3f}", _interval(said, ".3f"), f"{said['unparsed']:,}")
            lines.append((*line, *(difference or ("", "", ""))))
    return lines


def _interval(said: dict[str, Any], form: str) -> str:
    low, high = said["interval"]
    return f"{low:{form}} to {high:{form}}"


def _p(value: float) -> str:
    return "< 0.0001" if value < 0.0001 else f"{value:.4f}"


def say(result: dict[str, Any], output: Path, console: Console) -> None:
    """The figures in the terminal."""
    for metric, who, mean, interval, unparsed, difference, _, p_value in table(result):
        of = result[who]["metrics"][metric]
        change = f"; {difference} on base, p {p_value}" if difference else ""
        lost = f"; {unparsed} unparsed" if unparsed != "0" else ""
        score = f"{who:14} {metric} {mean}, 95 % {interval} ({of['correct']} of {of['n']} right{lost}{change})"
        console.print(score, highlight=False)
    for who in answered(result):
        if cut := result[who]["cut"]:
            said = f"{cut:,} of {result['rows']:,} answers of {who} were cut at {result['max_new_tokens']} tokens"
            console.print(f"{said}; --max-new-tokens gives them more", highlight=False)
    for reason, count in result["unscored"].items():
        console.print(f"{count:,} rows not scored: {reason}", highlight=False)
    console.print(f"answers, scores and {PAGE_FILE} are in {output}/", highlight=False)
