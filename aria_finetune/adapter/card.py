"""The model card of an exported adapter: what the hub reads (YAML front matter), and what a person wants to know, from `run.json`.

Says nothing that is not written there: a licence only if it is named, a base only if the hub knows it. Of paths of data only
the last name is shown. A `run.json` of another tool, or half of one, makes a card of what can be read in it. Knows files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from aria_finetune.adapter.files import AdapterFiles
from aria_finetune.adapter.layouts import Layout
from aria_finetune.model.rope import Rope, read_rope
from aria_finetune.redaction import redact_values

CARD = "README.md"
EVALUATION = "evaluation.json"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_SCORED = ("base", "adapter")


def card_of(files: AdapterFiles, base: str, layout: Layout, license_id: str | None) -> str:
    """The text of README.md.

    Args:
        files: the adapter.
        base: what it is said to be based on.
        layout: that of what is exported.
        license_id: of the adapter, as the hub spells it, or None if nothing is to be said.
    """
    run = _json(files.folder.parent / "run.json")
    parts = [
        f"---\n{yaml.safe_dump(_front(files, base, license_id), sort_keys=False)}---",
        f"# {_name(files)}",
        _what(files, base, layout),
        "## Use",
        _use(base, read_rope(files.folder)),
        *_about_run(run),
        *_scores(files),
        "## Licence",
        _licence(license_id),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _licence(license_id: str | None) -> str:
    own = f"This adapter: {license_id or 'not stated'}."
    return f"{own} Aria, its base, is under Apache-2.0. Data have licences of their own, which the outputs may follow."


def _front(files: AdapterFiles, base: str, license_id: str | None) -> dict[str, Any]:
    """What the hub's search and widgets go by (https://huggingface.co/docs/hub/model-cards)."""
    front: dict[str, Any] = {"library_name": "peft", "pipeline_tag": "image-text-to-text"}
    if license_id is not None:
        front["license"] = license_id
    if _on_hub(base):
        front |= {"base_model": base, "base_model_relation": "adapter"}
    kind = "dora" if files.has_magnitudes else "lora"
    front["tags"] = ["aria", kind, "transformers", "aria-finetune"]
    return front


def _what(files: AdapterFiles, base: str, layout: Layout) -> str:
    config = files.config
    kind = "DoRA" if files.has_magnitudes else "LoRA"
    newer = "5.18 or newer" if layout == "current" else "up to 5.17"
    parts = sorted({_part(weight) for weight in files.pairs})
    return (
        f"A {kind} adapter of rank {config['r']} (alpha {config['lora_alpha']:g}) for "
        f"{base if _on_hub(base) else 'Aria'}, on {', '.join(parts)}: {len(files.pairs)} weights are adapted. "
        f"It is for transformers {newer} and PEFT, and was trained with aria-finetune."
    )


def _part(weight: str) -> str:
    marks = {
        "vision_tower.": "the vision tower",
        "multi_modal_projector.": "the projector",
        ".self_attn.": "attention",
        ".router.": "routers",
        ".shared_experts.": "shared experts",
        ".experts.": "routed experts",
    }
    return next((part for mark, part in marks.items() if mark in f".{weight}"), "other weights")


def _use(base: str, rope: Rope | None) -> str:
    """A program that is run as it stands, in the folder of the adapter."""
    opening = [
        "from peft import PeftModel",
        "from transformers import AriaConfig, AriaForConditionalGeneration, AriaProcessor",
        "",
        f"base = {json.dumps(base)}",
        'adapter = "."  # this folder, or the name of its repository',
        "config = AriaConfig.from_pretrained(base)",
    ]
    if rope is not None:
        opening.append(f'config.text_config.rope_parameters["rope_theta"] = {rope.theta!r}  # as it was trained')
    lines = [
        *opening,
        'model = AriaForConditionalGeneration.from_pretrained(base, config=config, dtype="auto", device_map="auto")',
        "model = PeftModel.from_pretrained(model, adapter).eval()",
        "processor = AriaProcessor.from_pretrained(adapter)",
        "",
        'messages = [{"role": "user", "content": [{"type": "text", "text": "What can you do?"}]}]',
        "inputs = processor.apply_chat_template(",
        '    messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"',
        ").to(model.device)",
        "output = model.generate(**inputs, max_new_tokens=32, do_sample=False)",
        'print(processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))',
    ]
    return "```python\n" + "\n".join(lines) + "\n```"


def _about_run(run: Mapping[str, Any]) -> Iterator[str]:
    """Of what `run.json` says, all that is as a run of ours writes it; what is absent or otherwise is left out."""
    yield from _section("Data", _sources(_mapping(run.get("data"))), _counts(_mapping(run.get("rows"))))
    yield from _section("Training", _facts(run), _recipe(_mapping(run.get("recipe"))), _versions(run))


def _section(title: str, *parts: str) -> Iterator[str]:
    if any(parts):
        yield f"## {title}"
        yield from parts


def _sources(data: Mapping[str, Any]) -> str:
    lines = [
        f"| {split} | `{Path(source['path']).name}` | `{str(source.get('sha256') or 'not recorded')[:16]}` |"
        for split, sources in data.items()
        for source in (sources if isinstance(sources, list) else [])
        if isinstance(source, dict) and isinstance(source.get("path"), str)
    ]
    return "\n".join(["| rows of | source | SHA-256 |", "|---|---|---|", *lines]) if lines else ""


def _counts(rows: Mapping[str, Any]) -> str:
    counts = ", ".join(f"{n:,} {what}" for what, n in _mapping(rows.get("train")).items() if isinstance(n, int))
    return f"For training: {counts}." if counts else ""


def _facts(run: Mapping[str, Any]) -> str:
    """Losses, steps and time in a line."""
    facts = [f"{name} loss {value:.4g}" for name, value in _mapping(run.get("losses")).items() if _is_number(value)]
    if isinstance(run.get("steps"), int):
        facts.append(f"{run['steps']:,} steps")
    if _is_number(run.get("training_seconds")):
        facts.append(f"{run['training_seconds']:.0f} seconds on {run.get('device') or 'cpu'}")
    return ", ".join(facts) + "." if facts else ""


def _recipe(recipe: Mapping[str, Any]) -> str:
    told = {key: recipe[key] for key in ("lora", "moe", "train") if key in recipe}
    return "The recipe:\n\n```yaml\n" + yaml.safe_dump(redact_values(told), sort_keys=False) + "```" if told else ""


def _versions(run: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in _mapping(run.get("versions")).items())
    return f"Versions: {versions}." if versions else ""


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _scores(files: AdapterFiles) -> Iterator[str]:
    """Of every evaluation that lies in the folder of the run."""
    for file in sorted(files.folder.parent.glob(f"*/{EVALUATION}")):
        found = _json(file)
        sides = {side: found[side] for side in _SCORED if isinstance(found.get(side), dict)}
        names = sorted({name for scores in sides.values() for name, value in scores.items() if _is_number(value)})
        if names:
            lines = [f"| {file.parent.name} | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
            lines += [
                f"| {side} | {' | '.join(f'{scores[name]:.4g}' if _is_number(scores.get(name)) else '' for name in names)} |"
                for side, scores in sides.items()
            ]
            yield "## Scores"
            yield "\n".join(lines)


def _name(files: AdapterFiles) -> str:
    folder = files.folder.parent if files.folder.name == "adapter" else files.folder
    return f"Aria, fine-tuned: {folder.resolve().name}"


def _on_hub(base: str) -> bool:
    return bool(_HUB_ID.fullmatch(base)) and not Path(base).exists()


def _json(file: Path) -> dict[str, Any]:
    """What a file says, empty where there is none: a card is made of what is there."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return redact_values(found) if isinstance(found, dict) else {}
