"""Maps of where a model sends tokens of images, videos, documents and text: the page of verbs behind the command `experts`."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from aria_finetune.adapter.files import open_adapter
from aria_finetune.data.collation import Batch
from aria_finetune.errors import UserError
from aria_finetune.material import Material, build_collator, load_base, prepare
from aria_finetune.model.lora import load_adapter
from aria_finetune.model.settings import vision_tokens
from aria_finetune.recipe import Recipe
from aria_finetune.redaction import redact_values
from aria_finetune.sources import build_batches
from aria_finetune.specialisation.counting import Found, count_routing
from aria_finetune.specialisation.picture import draw_maps
from aria_finetune.specialisation.shares import DOMAINS, LEAST_SHARE, shared_by_all, table, visual_experts
from aria_finetune.staging import staged_folder

REPORT_FILE, TABLE_FILE, PICTURE_FILE = "experts.json", "experts.parquet", "experts.png"
FILES = (REPORT_FILE, TABLE_FILE, PICTURE_FILE)


@dataclass(frozen=True)
class MapOptions:
    """What to map: with `adapter` beside the base; of `rows` training rows, None for all; experts from `threshold` on are visual."""

    adapter: Path | None = None
    rows: int | None = 1000
    threshold: float = 10.0


def map_experts(recipe: Recipe, output: Path, options: MapOptions, console: Console) -> dict[str, Any]:
    """Write `experts.json`, `experts.parquet` and `experts.png` to `output`; returns what the first says.

    Raises:
        UserError: an adapter that does not load, rows that can't be read, or an output folder that holds something else.
    """
    _check(output, options)
    with tempfile.TemporaryDirectory() as store:
        material = prepare(recipe, Path(store))
        found = _count(recipe, material, options, console)
    report = describe(found, options.threshold)
    report = {"recipe": str(recipe.file), "adapter": str(options.adapter) if options.adapter else None, **report}
    _write(output, found, report)
    _show(report, console)
    console.print(f"the maps are in {output}/", highlight=False)
    return report


def _check(output: Path, options: MapOptions) -> None:
    """Refuse before the first row what would fail after the last."""
    if output.exists() and not output.is_dir():
        raise UserError("the output is a file", where=str(output), fix="choose another --output")
    if output.is_dir() and any(path.name not in FILES for path in output.iterdir()):
        raise UserError("the output holds other files", where=str(output), fix="choose another --output")
    if options.adapter is not None:
        open_adapter(options.adapter)


def _count(recipe: Recipe, material: Material, options: MapOptions, console: Console) -> Found:
    seen = material.has_pictures or options.adapter is not None  # an adapter may be on the tower too
    model: Any = load_base(recipe, without=None if seen else "vision").model
    if options.adapter is not None:
        model = load_adapter(model, str(options.adapter))
    batches = _batches(recipe, material, options.rows)
    total = len(material.train_rows.plans)
    console.print(f"sending {min(options.rows or total, total):,} of {total:,} rows through the model", highlight=False)
    return count_routing(model.eval(), batches, material.plans, vision_tokens(material.checkpoint))


def _batches(recipe: Recipe, material: Material, rows: int | None) -> Iterator[Batch]:
    """Packed rows in the order of training, `rows` of them."""
    collator = build_collator(recipe, material, packed=True)
    packs = (pack for pack in build_batches(recipe, material.train_rows) if pack)
    left = rows if rows is not None else len(material.train_rows.order(recipe.train.seed))
    for pack in packs:
        taken = list(islice(pack, left))
        left -= len(taken)
        if not taken:
            return
        batch = collator([{"row": row} for row in taken])
        if len(batch.get("rows", ())):
            yield batch


def describe(found: Found, threshold: float) -> dict[str, Any]:
    """What was found, as JSON values."""
    load_LDE = next(iter(found.loads.values()))
    visual = {name: visual_experts(load, threshold) for name, load in found.loads.items()}
    report: dict[str, Any] = {
        "rows": found.rows,
        "tokens": {domain: found.tokens[domain] for domain in DOMAINS},
        "layers": load_LDE.shape[0],
        "experts": load_LDE.shape[2],
        "threshold": threshold,
        "least_share": LEAST_SHARE,
        "ways": {
            name: {"visual_experts": by_domain, "shared_by_all_domains": shared_by_all(by_domain)}
            for name, by_domain in visual.items()
        },
    }
    if found.changed is not None:
        report["changed"] = {
            domain: [int(count) / found.tokens[domain] for count in found.changed[:, number]]
            for number, domain in enumerate(DOMAINS)
            if found.tokens[domain]
        }
    return report


def _write(output: Path, found: Found, report: dict[str, Any]) -> None:
    columns: dict[str, list[Any]] = {"way": []}
    for name, load_LDE in found.loads.items():
        made = table(load_LDE)
        columns["way"] += [name] * len(made["layer"])
        for column, values in made.items():
            columns.setdefault(column, []).extend(values)
    for name in FILES:  # of an earlier map; nothing else is there
        (output / name).unlink(missing_ok=True)
    with staged_folder(output) as folder:
        pq.write_table(pa.table(columns), folder / TABLE_FILE)
        draw_maps(found.loads, folder / PICTURE_FILE)
        (folder / REPORT_FILE).write_text(json.dumps(redact_values(report), indent=2) + "\n", encoding="utf-8")


def _show(report: dict[str, Any], console: Console) -> None:
    shown = Table(title=f"visual experts: at least {report['threshold']:g} times the share of text tokens")
    shown.add_column("layer", justify="right")
    ways: dict[str, Any] = report["ways"]
    for name, way in ways.items():
        for domain in (*way["visual_experts"], "all of them"):
            shown.add_column(f"{name}: {domain}")
    for layer in range(report["layers"]):
        cells = [
            by_layer[layer] if by_layer else []
            for way in ways.values()
            for by_layer in (*way["visual_experts"].values(), way["shared_by_all_domains"])
        ]
        shown.add_row(str(layer), *(", ".join(map(str, experts)) for experts in cells))
    console.print(shown)
    tokens = ", ".join(f"{count:,} of {domain}" for domain, count in report["tokens"].items())
    console.print(f"tokens: {tokens}", highlight=False)
