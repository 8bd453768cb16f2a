"""Checkpoints in Aria's older raw layout, as the authors' own code wrote them, and the same in the hub layout, both ways.

Only names differ, and what config.json calls the parts (transformers' `convert_aria_weights_to_hf.py` has the table). No value is touched: shards are copied with
another header. Knows checkpoints on disk.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from aria_finetune.adapter.layouts import Layout
from aria_finetune.adapter.shards import copy_shard
from aria_finetune.checkpoint.space import explain_full_disk, require_space
from aria_finetune.errors import UserError
from aria_finetune.model.hub_layout import INDEX, HubCheckpoint, is_raw, open_checkpoint
from aria_finetune.staging import staged_folder

NAMES = (
    ("vision_tower.vision_model.", "vision_tower."),
    ("multi_modal_projector.ln_ffn.", "multi_modal_projector.layer_norm."),
    ("multi_modal_projector.ffn.", "multi_modal_projector.feed_forward."),
    ("multi_modal_projector.cross_attn.ln_kv.", "multi_modal_projector.cross_attn.layer_norm_kv."),
)
"""How names start in the raw layout and in the hub layout."""
MODEL_TYPES = {"text_config": ("aria_moe_lm", "aria_text"), "vision_config": ("aria_vision_model", "idefics3_vision")}
UNUSED = ("vision_tower.post_layernorm.weight", "vision_tower.post_layernorm.bias")
"""Of the hub layout alone: nothing is computed with them, and transformers' own conversion fills them with zeros."""
COPIED_SUFFIXES = {".json", ".jinja", ".model", ".txt", ".md"}
DISK_REMEDY = "free some space, or name an output on another disk"


def migrate_checkpoint(path: str, output: Path, layout: Layout) -> HubCheckpoint:
    """Write a checkpoint in the hub layout (`current`) or in the raw one (`old`).

    Args:
        path: a folder, in the other layout.
        output: made by this call; nothing of it is left if anything fails.
        layout: that of the output.

    Raises:
        UserError: it is in that layout already, a file is damaged, the disk is too small, or the output exists.
    """
    source = open_checkpoint(path, raw_too=True)
    if is_raw(source) == (layout == "old"):
        kind = "raw" if layout == "old" else "hub"
        raise UserError(f"the checkpoint is in the {kind} layout already", where=str(source.folder))
    needed = sum((source.folder / shard).stat().st_size for shard in source.shards) + (1 << 20)
    require_space(output.parent, needed, "the checkpoint", DISK_REMEDY)
    with explain_full_disk(output.parent, needed, "the checkpoint", DISK_REMEDY), staged_folder(output) as folder:
        _write_shards(source, folder, layout)
        for file in sorted(source.folder.iterdir()):
            if file.is_file() and file.suffix in COPIED_SUFFIXES and file.name not in {INDEX, "config.json"}:
                shutil.copyfile(file, folder / file.name)
        config = json.dumps(_config(source.config, layout), indent=2)
        (folder / "config.json").write_text(config + "\n", encoding="utf-8")
    return open_checkpoint(str(output), raw_too=True)


def renamed(name: str, layout: Layout) -> str:
    """A weight's name in a layout."""
    for raw, hub in NAMES:
        before, after = (raw, hub) if layout == "current" else (hub, raw)
        if name.startswith(before):
            return after + name.removeprefix(before)
    return name


def _write_shards(source: HubCheckpoint, folder: Path, layout: Layout) -> None:
    there = {renamed(name, layout) for name in source.stored}
    absent = [name for name in UNUSED if layout == "current" and name not in there]
    count = len(source.shards) + bool(absent)
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(source.shards, 1):
        file = f"model-{number:05d}-of-{count:05d}.safetensors"
        copy_shard(source.folder / shard, folder / file, lambda _: None, lambda name: renamed(name, layout))
        weight_map |= {renamed(name, layout): file for name, home in source.files.items() if home == shard}
    if absent:
        file = f"model-{count:05d}-of-{count:05d}.safetensors"
        width = next(
            tensor.shape[0] for name, tensor in source.stored.items() if name.endswith("layers.0.layer_norm1.weight")
        )
        zeros = {name: torch.zeros(width, dtype=torch.bfloat16) for name in absent}
        save_file(zeros, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(absent, file)
    index = {"metadata": {}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _config(config: Mapping[str, Any], layout: Layout) -> dict[str, Any]:
    """config.json with the parts called as a layout calls them; code that came with raw checkpoints is not."""
    changed = copy.deepcopy(dict(config))
    changed.pop("auto_map", None)
    for part, (raw, hub) in MODEL_TYPES.items():
        changed.setdefault(part, {})["model_type"] = hub if layout == "current" else raw
    text, vision = changed["text_config"], changed["vision_config"]
    if layout == "current":
        # The authors' configuration kept the width of an expert beside one of a dense model, which nothing has.
        text["intermediate_size"] = text.get("moe_intermediate_size", text.get("intermediate_size"))
        if "attention_heads" in vision:
            vision.setdefault("num_attention_heads", vision["attention_heads"])
    else:
        text["moe_intermediate_size"] = text.get("intermediate_size")
    return changed
