"""Score base and adapter on held-out rows: greedy answers, exact match.

Knows recipes and generation; the rows are those that `data.eval` or `data.eval_fraction` holds out.
"""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from aria_finetune.adapter.files import open_adapter
from aria_finetune.errors import UserError
from aria_finetune.generation import generate_answers
from aria_finetune.material import Material, build_collator, load_base, prepare_prompts
from aria_finetune.metrics.exact import is_correct
from aria_finetune.metrics.rows import expected_answers
from aria_finetune.model.lora import load_adapter
from aria_finetune.model.rope import check_same_theta
from aria_finetune.needles.grid import GRID_FILE, GRID_PICTURE, grid_of, hidden_in, write_grid
from aria_finetune.recipe import Recipe
from aria_finetune.redaction import redact_values
from aria_finetune.sources import build_rope
from aria_finetune.staging import staged_folder

EVALUATION_FILE = "evaluation.json"
PREDICTIONS_FILE = "predictions.jsonl"
WRITTEN = (PREDICTIONS_FILE, EVALUATION_FILE, GRID_FILE, GRID_PICTURE)


@dataclass(frozen=True)
class EvaluationOptions:
    """What to run: without `adapter` the base alone; `blank_images` adds the adapter without its sight."""

    adapter: Path | None = None
    blank_images: bool = False
    max_new_tokens: int = 64
    batch_size: int = 8


def evaluate(recipe: Recipe, output: Path, options: EvaluationOptions, console: Console) -> dict[str, Any]:
    """Write `evaluation.json` and `predictions.jsonl` to `output`; returns what the former says.

    Where rows hide needles, `needles.json` and `needles.png` say how many were found by length and depth.

    Raises:
        UserError: no evaluation data, no row with a known answer, an adapter that does not load, or an output
            folder that holds something else.
    """
    _check(output, options)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as store:
        material = prepare_prompts(recipe, Path(store))
        if options.adapter is not None:
            rope = build_rope(recipe, material.checkpoint)
            check_same_theta(open_adapter(options.adapter).folder, rope.theta)
        truths = [expected_answers(plan.record) for plan in material.plans]
        if not any(truths):
            raise UserError("no evaluation row has a known answer", where=str(recipe.file))
        said = _answers(recipe, material, options, console)
    scores: dict[str, Any] = {
        name: {"accuracy": accuracy(truths, given), "correct": correct(truths, given)} for name, given in said.items()
    }
    result = {
        "recipe": str(recipe.file),
        "adapter": str(options.adapter) if options.adapter else None,
        "metric": "exact match, aside from case, surrounding space and a final full stop",
        "rows": len(truths),
        "scored": sum(map(bool, truths)),
        "rejected": material.eval_rows.reasons(),
        **scores,
        "seconds": round(time.monotonic() - began, 3),
    }
    _write(output, result, material, truths, said)
    for name, score in scores.items():
        console.print(
            f"{name:16} accuracy {score['accuracy']:.3f}  ({score['correct']} of {result['scored']})", highlight=False
        )
    console.print(f"answers and scores are in {output}/", highlight=False)
    return result


def _check(output: Path, options: EvaluationOptions) -> None:
    """Refuse before the first answer what would fail after the last."""
    if output.exists() and not output.is_dir():
        raise UserError("the output is a file", where=str(output), fix="choose another --output")
    if output.is_dir() and any(path.name not in WRITTEN for path in output.iterdir()):
        raise UserError("the output holds other files", where=str(output), fix="choose another --output")
    if options.adapter is not None:
        open_adapter(options.adapter)
    elif options.blank_images:
        raise UserError("--blank-images shows what an adapter sees", fix="name one with --adapter")


def _answers(recipe: Recipe, material: Material, options: EvaluationOptions, console: Console) -> dict[str, list[str]]:
    """What each variant says to every row, by variant."""
    base = load_base(recipe).model.eval()
    settings: dict[str, Any] = {
        "base": base,
        "chat": material.chat,
        "max_new_tokens": options.max_new_tokens,
        "batch_size": options.batch_size,
    }
    # Whatever the recipe says for training: a score over fewer rows would not be the same score.
    viewing = {"generation": True, "on_bad_media": "fail"}
    collator = build_collator(recipe, material, **viewing)
    console.print(f"answering {len(material.plans):,} rows", highlight=False)
    said = {"base": generate_answers(base, collator, **settings)}
    if options.adapter is not None:
        model = load_adapter(base, str(options.adapter)).eval()
        said["adapter"] = generate_answers(model, collator, **settings)
        if options.blank_images:
            blind = build_collator(recipe, material, blank_images=True, **viewing)
            said["adapter_blank"] = generate_answers(model, blind, **settings)
    return said


def correct(truths: list[tuple[str, ...]], given: list[str]) -> int:
    """How many answers are right; rows without a known answer don't count."""
    return sum(bool(truth) and is_correct(truth, answer) for truth, answer in zip(truths, given, strict=True))


def accuracy(truths: list[tuple[str, ...]], given: list[str]) -> float:
    """Share of rows with a known answer that were answered right."""
    return correct(truths, given) / sum(map(bool, truths))


def _write(
    output: Path, result: dict[str, Any], material: Material, truths: list[tuple[str, ...]], said: dict[str, list[str]]
) -> None:
    lines = []
    for row, (plan, truth) in enumerate(zip(material.plans, truths, strict=True)):
        given = {name: spoken[row] for name, spoken in said.items()}
        right = {name: bool(truth) and is_correct(truth, answer) for name, answer in given.items()}
        lines.append({"id": plan.record.id, "expected": list(truth), "answers": given, "correct": right})
    needles = [hidden_in(plan.record) for plan in material.plans]
    for name in WRITTEN:  # of an earlier evaluation; nothing else is there
        (output / name).unlink(missing_ok=True)
    with staged_folder(output) as folder:
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (folder / PREDICTIONS_FILE).write_text(text, encoding="utf-8")
        report = json.dumps(redact_values(result), indent=2)
        (folder / EVALUATION_FILE).write_text(report + "\n", encoding="utf-8")
        if any(needles):
            write_grid(folder, grid_of(needles, said))
