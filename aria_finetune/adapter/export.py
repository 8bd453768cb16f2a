"""A clean adapter folder to hand on: the adapter, tokenizer and processor, a model card, and nothing else of the run.

Works on files. The base it names can be changed, because a path of this machine means nothing elsewhere, and the layout of modules,
because transformers has changed it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from aria_finetune import ADAPTER_FOLDER
from aria_finetune.adapter.card import CARD, card_of
from aria_finetune.adapter.files import AdapterFiles, check_unharmed, is_of_experts, open_adapter, turned
from aria_finetune.adapter.layouts import Layout, adapted_config, renamed
from aria_finetune.adapter.raw_layout import migrate_checkpoint
from aria_finetune.adapter.saving import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from aria_finetune.errors import UserError
from aria_finetune.model.base_identity import BASE_FILE
from aria_finetune.model.rope import ROPE_FILE
from aria_finetune.redaction import redact, redact_values
from aria_finetune.staging import staged_folder

EXPORTED = (
    BASE_FILE,
    "chat_template.jinja",
    "preprocessor_config.json",
    "processor_config.json",
    ROPE_FILE,
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
)


def export_any(
    source: Path, output: Path, *, base: str | None = None, layout: Layout = "current", license_id: str | None = None
) -> list[str]:
    """Export an adapter, or write a checkpoint in another layout, whichever `source` is; returns the names of the files.

    Raises:
        UserError: as `export` and `migrate_checkpoint` do, or an option is of no use for a checkpoint.
    """
    is_adapter = any((folder / ADAPTER_CONFIG).exists() for folder in (source, source / ADAPTER_FOLDER))
    if is_adapter or not (source / "config.json").is_file():
        return export(source, output, base=base, layout=layout, license_id=license_id)
    if base is not None or license_id is not None:
        raise UserError("--base and --license are for adapters, and this is a checkpoint", where=str(source))
    migrate_checkpoint(str(source), output, layout)
    return sorted(path.name for path in output.iterdir())


def export(
    adapter: Path,
    output: Path,
    *,
    base: str | None = None,
    layout: Layout = "current",
    license_id: str | None = None,
) -> list[str]:
    """Write an adapter folder that plain PEFT and transformers load.

    Args:
        adapter: an adapter folder in any layout, or the folder of its run.
        output: made by this call.
        base: what `base_model_name_or_path` is to say, such as `rhymes-ai/Aria`; by default what it says now.
        layout: `current` for transformers 5.18 and newer, `old` for those up to 5.17.
        license_id: what the card says of the adapter's licence, as the hub spells it.

    Returns:
        Names of the files written.

    Raises:
        UserError: the output exists, or the adapter folder is damaged.
    """
    files = open_adapter(adapter)
    check_unharmed(files)
    with staged_folder(output) as folder:
        _write_weights(files, folder, base or files.base_name, layout)
        for name in EXPORTED:
            if (files.folder / name).is_file():
                shutil.copyfile(files.folder / name, folder / name)
        card = card_of(files, base or files.base_name, layout, license_id)
        (folder / CARD).write_text(redact(card), encoding="utf-8")
        return sorted(path.name for path in folder.iterdir())


def _write_weights(files: AdapterFiles, folder: Path, base: str, layout: Layout) -> None:
    stems = list(files.pairs.values())
    names = {stem: renamed(stem, layout) for stem in stems}
    config = adapted_config(files.config, names.values(), layout)
    if any(stem != name for stem, name in names.items()) or files.turned != (layout == "old"):
        _write_moved(files, folder, names, layout)
    else:
        shutil.copyfile(files.folder / ADAPTER_WEIGHTS, folder / ADAPTER_WEIGHTS)
    config = redact_values(config | {"base_model_name_or_path": base})
    (folder / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _write_moved(files: AdapterFiles, folder: Path, names: Mapping[str, str], layout: Layout) -> None:
    """Every tensor under its name in another layout; those of routed experts lie the other way there."""
    tensors = load_file(files.folder / ADAPTER_WEIGHTS)
    with safe_open(files.folder / ADAPTER_WEIGHTS, "pt") as opened:
        metadata = opened.metadata()
    moved: dict[str, torch.Tensor] = {}
    for weight, stem in files.pairs.items():
        ends = [name.removeprefix(f"{stem}.lora_") for name in tensors if name.rpartition(".lora_")[0] == stem]
        pair = {end: tensors[f"{stem}.lora_{end}"] for end in ends}
        if is_of_experts(weight) and files.turned != (layout == "old"):
            pair["A.weight"], pair["B.weight"] = turned(pair["A.weight"], pair["B.weight"], files.config["r"])
        moved |= {f"{names[stem]}.lora_{end}": tensor for end, tensor in pair.items()}
    save_file(moved, folder / ADAPTER_WEIGHTS, metadata)
