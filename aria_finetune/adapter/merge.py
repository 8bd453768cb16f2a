"""Fold an adapter into the weights of its base: fp32 arithmetic, the checkpoint's own dtype and layout.

Shard by shard, tensor by tensor and in a stack of experts one by one, with the memory of a few tensors. Knows checkpoints on
disk; knows nothing of modules or of how the adapter was trained.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from aria_finetune.adapter.files import AdapterFiles, open_adapter
from aria_finetune.adapter.shards import copy_shard
from aria_finetune.errors import UserError
from aria_finetune.model.hub_layout import HubCheckpoint, open_checkpoint
from aria_finetune.model.nf4_checkpoint import check_files, is_nf4, source_of
from aria_finetune.model.rope import Rope, read_rope
from aria_finetune.redaction import redact
from aria_finetune.staging import staged_folder

REPORT = "merge.json"
COPIED_SUFFIXES = {".json", ".jinja", ".model", ".txt", ".md", ""}
"""Of the files beside the weights: configuration, tokenizer, words for people; never pickles or code."""


@dataclass(frozen=True)
class MergedTensor:
    """What merging did to one tensor: sizes are Frobenius norms, `rounding` of what the dtype could not hold."""

    name: str
    dtype: str
    weight_norm: float
    delta_norm: float
    rounding_norm: float


def merge(adapter: Path, output: Path, *, base: str | None = None, revision: str | None = None) -> list[MergedTensor]:
    """Write the base checkpoint with the adapter folded in: round(W32 + delta32) in the tensor's own dtype.

    Of DoRA it is round(m (W32 + delta32) / |W32 + delta32|), row by row, with the norms of the base that is merged into.
    Its config.json has the RoPE base that the adapter was trained with (`model.rope_theta`).

    Args:
        adapter: an adapter folder, or the folder of its run.
        output: made by this call; nothing of it is left if anything fails.
        base: folder or hub id of the original weights; by default what the adapter names.
        revision: of a hub id.

    Returns:
        The changed tensors. The same is written to `merge.json` in the output.

    Raises:
        UserError: the output exists, the base is 4-bit or lacks a weight that the adapter changes, a shape
            differs, or either folder is damaged.
    """
    files = open_adapter(adapter)
    checkpoint = open_base(files, base, revision)
    _refuse_unmergeable(files, checkpoint)
    with staged_folder(output) as folder:
        return _write(files, checkpoint, folder)


def _write(files: AdapterFiles, checkpoint: HubCheckpoint, folder: Path) -> list[MergedTensor]:
    merged: list[MergedTensor] = []

    def changed(name: str) -> Callable[[torch.Tensor], torch.Tensor] | None:
        return (lambda weight: _fold(name, weight, files, merged)) if name in files.pairs else None

    for shard in checkpoint.shards:
        copy_shard(checkpoint.folder / shard, folder / shard, changed)
    unused = set(files.pairs) - {tensor.name for tensor in merged}
    if unused:
        raise RuntimeError(f"{len(unused)} adapter pair(s) were not used, such as {min(unused)}")
    for path in sorted(checkpoint.folder.iterdir()):
        if path.is_file() and path.suffix in COPIED_SUFFIXES:
            shutil.copyfile(path, folder / path.name)
    own, trained = Rope.of(checkpoint.config), read_rope(files.folder)
    if trained is not None and trained != own:
        config = json.dumps(trained.put_in(checkpoint.config), indent=2)
        (folder / "config.json").write_text(config + "\n", encoding="utf-8")
    report = {
        "base": redact(str(checkpoint.folder)),
        "adapter": redact(str(files.folder)),
        "scaling": files.scaling,
        "rope": asdict(trained or own),
        "tensors": [asdict(tensor) for tensor in merged],
    }
    (folder / REPORT).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return merged


def _fold(name: str, weight: torch.Tensor, files: AdapterFiles, merged: list[MergedTensor]) -> torch.Tensor:
    shape = files.shape(name)
    if weight.shape != shape:
        raise UserError(
            f"{name} is {tuple(weight.shape)} in the base and {shape} in the adapter",
            fix="name the base that the adapter was trained on with --base",
        )
    rounded = torch.empty_like(weight)
    norms = []
    stacks = (weight, rounded) if weight.ndim > 2 else (weight[None], rounded[None])
    for place, target, delta in zip(*stacks, files.deltas(name), strict=True):
        exact = files.rescaled(name, place.float() + delta)
        target.copy_(exact)
        change = exact - place.float() if files.has_magnitudes else delta
        norms.append([each.norm().item() for each in (place.float(), change, target.float() - exact)])
    weight_norm, delta_norm, rounding_norm = (math.hypot(*parts) for parts in zip(*norms, strict=True))
    dtype = str(weight.dtype).removeprefix("torch.")
    merged.append(MergedTensor(name, dtype, weight_norm, delta_norm, rounding_norm))
    return rounded


def open_base(files: AdapterFiles, base: str | None, revision: str | None) -> HubCheckpoint:
    """The checkpoint that `base` names, or the one the adapter was trained on, at the revision it was trained at.

    Of a base in NF4 that the adapter names, it is the weights that those were made of, if they are still the same.

    Raises:
        UserError: there is none, it is not Aria, or the weights that a base in NF4 was made of are gone or changed.
    """
    if base is not None:
        return open_checkpoint(base, revision)
    checkpoint = open_checkpoint(base_of(files), revision or files.config.get("revision"))
    return _original(checkpoint) if is_nf4(checkpoint) else checkpoint


def _original(packed: HubCheckpoint) -> HubCheckpoint:
    """The weights that an NF4 checkpoint was made of."""
    source = source_of(packed)
    fix = "name the original weights with --base"
    try:
        original = open_checkpoint(source.name, source.revision)
    except UserError as error:
        raise UserError(
            f"the adapter was trained on an NF4 checkpoint whose original weights can't be opened: {error.message}",
            where=str(packed.folder),
            fix=fix,
        ) from error
    check_files(original.folder, source.sha256, "these are not the weights that the NF4 checkpoint was made of", fix)
    return original


def base_of(files: AdapterFiles) -> str:
    """The base that an adapter names, or the copy of it beside the adapter.

    Raises:
        UserError: it names none.
    """
    name = files.base_name
    beside = files.folder.parent / "base"
    if not name or (not Path(name).exists() and beside.is_dir()):
        if beside.is_dir():
            return str(beside)
        raise UserError("the adapter names no base model", where=str(files.folder), fix="name it with --base")
    return name


def _refuse_unmergeable(files: AdapterFiles, checkpoint: HubCheckpoint) -> None:
    if "quantization_config" in checkpoint.config:
        raise UserError(
            "the base is a 4-bit checkpoint; rounding to 4 bit again would destroy the adapter "
            "(for deltas of 1e-4 what is applied has a cosine of 0.02 with what was learned)",
            where=str(checkpoint.folder),
            fix="name the original bf16 weights with --base",
        )
    absent = sorted(set(files.pairs) - set(checkpoint.files))
    if absent:
        raise UserError(
            f"the base lacks {len(absent)} weight(s) that the adapter changes, such as {absent[0]}",
            where=str(checkpoint.folder),
            fix="name the base that the adapter was trained on with --base",
        )
