"""Score base and fine-tuned model on held-out rows: greedy answers, the metrics of the field, a page to look at.

The rows are those that `data.eval` or `data.eval_fraction` holds out. A page of verbs: which rows are scored by what is
for `scoring`, who answers them for `answering`, what is written for `reporting`.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from aria_finetune.adapter.files import open_adapter
from aria_finetune.errors import UserError
from aria_finetune.evaluation.answering import answer_rows, check_models, open_journal
from aria_finetune.evaluation.journal import kept_alone
from aria_finetune.evaluation.reporting import WRITTEN, Report, draw_answers, say, write
from aria_finetune.evaluation.scoring import choose_rows, score_answers
from aria_finetune.material import prepare_prompts
from aria_finetune.metrics import metric_named
from aria_finetune.metrics.registry import AUTO
from aria_finetune.recipe import Recipe
from aria_finetune.staging import check_named


@dataclass(frozen=True)
class EvaluationOptions:
    """What to run: without `adapter` and `merged` the base alone; `blank_images` adds the adapter without its sight.

    `metric` is a name, or `auto` for that of each row. Only with `run_code` are answers run as programs.
    """

    adapter: Path | None = None
    blank_images: bool = False
    max_new_tokens: int = 64
    batch_size: int = 8
    merged: Path | None = None
    metric: str = AUTO
    run_code: bool = False


def evaluate(recipe: Recipe, output: Path, options: EvaluationOptions, console: Console) -> dict[str, Any]:
    """Write `evaluation.json`, `predictions.jsonl` and `evaluation.html` to `output`; returns what the first says.

    Answers are kept as they come, so that an evaluation which was cut short goes on where it was.
    Where rows hide needles, `needles.json` and `needles.png` say how many were found by length and depth.

    Raises:
        UserError: no evaluation data, no row that can be scored, a metric that is not known, an adapter or a merged
            model that does not load, an output folder that holds something else or that another process evaluates to, or
            kept answers that are damaged.
    """
    _check(output, options)
    began = time.monotonic()
    with kept_alone(output), tempfile.TemporaryDirectory() as store:
        material = prepare_prompts(recipe, Path(store))
        check_models(recipe, material, options.adapter, options.merged)
        asked = choose_rows(material.eval_rows.plans, options.metric, run_code=options.run_code)
        asked.check(str(recipe.file))
        material = asked.of(material)
        journal = open_journal(recipe, material, options, output)
        said = answer_rows(recipe, material, options, journal, console)
        scored = score_answers(asked, said)
        drawn = draw_answers(recipe, material, asked, scored)
        report = Report(
            recipe, material, asked, scored, options.adapter, options.merged, options.metric, options.max_new_tokens
        )
        result = write(output, report, drawn, seconds=round(time.monotonic() - began, 3))
        journal.remove()
    say(result, output, console)
    return result


def _check(output: Path, options: EvaluationOptions) -> None:
    """Refuse before the first answer what would fail after the last."""
    check_named(output)
    if output.exists() and not output.is_dir():
        raise UserError("the output is a file", where=str(output), fix="choose another --output")
    if output.is_dir() and any(path.name not in WRITTEN for path in output.iterdir()):
        raise UserError("the output holds other files", where=str(output), fix="choose another --output")
    if options.metric != AUTO:
        metric = metric_named(options.metric)
        if metric.runs_code and not options.run_code:
            raise UserError(
                f"the metric {metric.name} runs what the model writes on this machine",
                fix="add --run-code if that is what you want, better where nothing else is kept",
            )
    if options.adapter is not None:
        open_adapter(options.adapter)
    elif options.blank_images:
        raise UserError("--blank-images shows what an adapter sees", fix="name one with --adapter")
