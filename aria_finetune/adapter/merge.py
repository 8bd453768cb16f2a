"""Fold adapters into the weights of their base: fp32 arithmetic, the checkpoint's own dtype and layout.

Shard by shard, tensor by tensor and in a stack of experts one by one, with the memory of a few of them. All that can be known to go
wrong is asked before anything is written; what is written lies in a hidden folder until all of it is there, and is gone on with if
it was cut short. Knows checkpoints on disk; knows nothing of modules or of how an adapter was trained.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from aria_finetune import __version__
from aria_finetune.adapter.base import BaseCheck, check_base, check_one_base, open_base
from aria_finetune.adapter.files import WHOLE, adapter_hashes, check_unharmed
from aria_finetune.adapter.mixture import Mixture, open_mixture
from aria_finetune.adapter.saving import ADAPTER_WEIGHTS
from aria_finetune.adapter.shards import Change, copy_shard
from aria_finetune.checkpoint.space import explain_full_disk, require_space
from aria_finetune.errors import UserError
from aria_finetune.model.hub_layout import HubCheckpoint, open_checkpoint
from aria_finetune.model.rope import Rope
from aria_finetune.provenance import hash_file
from aria_finetune.quantization import DISK_REMEDY, part_bytes, plan_parts, quantize
from aria_finetune.redaction import redact, redact_values
from aria_finetune.staging import remove_folder, replace_text
from aria_finetune.workplace import Workplace, workplace

REPORT = "merge.json"
COPIED_SUFFIXES = {".json", ".jinja", ".model", ".txt", ".md", ""}
"""Of the files beside the weights: configuration, tokenizer, words for people; never pickles or code."""
DOING = "merging"
SPARE_BYTES = 1 << 20
"""For what is written beside the weights and their copied files."""

Watch = Callable[[int, int], None]
"""Takes how many files are done, and of how many."""


@dataclass(frozen=True)
class MergedTensor:
    """What merging did to one tensor: sizes are Frobenius norms, `rounding` of what the dtype could not hold.

    `kept` is the share of the change that is in the rounded weights (its projection on itself), `moved` the share of values
    that are not what they were: a change far below the dtype's step moves few values, but by more, and is kept on average.
    """

    name: str
    dtype: str
    weight_norm: float
    delta_norm: float
    rounding_norm: float
    kept: float
    moved: float


class Proof(Protocol):
    """What is found out of merged weights before they get their name."""

    def as_dict(self) -> dict[str, Any]:
        """As `merge.json` has it."""
        ...

    def refuse_drift(self, folder: Path) -> None:
        """Raise a UserError if the merged weights are not what they should be."""
        ...


Prove = Callable[[Mixture, HubCheckpoint, HubCheckpoint], Proof]
"""Takes the adapters, their base and the merged weights."""


def merge(
    adapters: Path | Sequence[tuple[Path, float]],
    output: Path,
    *,
    base: str | None = None,
    revision: str | None = None,
    any_base: bool = False,
    to_nf4: bool = False,
    prove: Prove | None = None,
    watch: Watch | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> list[MergedTensor]:
    """Write the base checkpoint with adapters folded in: round(W32 + delta32) in the tensor's own dtype.

    Of DoRA it is round(m (W32 + delta32) / |W32 + delta32|), row by row, with the norms of the base that is merged into; of several
    adapters the sum of what each changes, times its weight. config.json has the RoPE base that they were trained with.

    Args:
        adapters: an adapter folder, or the folder of its run; or several, each with its weight.
        output: made by this call. What was begun and not finished lies beside it, and is gone on with.
        base: folder or hub id of the original weights; by default what the (first) adapter names.
        revision: of a hub id.
        any_base: merge into other weights than those that an adapter was trained on.
        to_nf4: write the NF4 checkpoint of the merged weights, which need their place on the disk in between.
        prove: compares the merged weights with base and adapters before the output gets its name.
        watch: is told how many files are done.
        say: is told of files that were found damaged and are made again.

    Returns:
        The changed tensors. The same is written to `merge.json` in the output.

    Raises:
        UserError: the output exists, an adapter is incomplete or damaged, the base is 4-bit or not the one that it was trained on, the
            adapters name several bases, a shape differs, the disk is too small, or `prove` found that the merged weights are not what they should be.
    """
    mixture = open_mixture([(adapters, 1.0)] if isinstance(adapters, Path) else adapters)
    for share in mixture.shares:
        check_unharmed(share.files)
    if base is None and not any_base:
        check_one_base(mixture)
    checkpoint = open_base(mixture, base, revision)
    _refuse_unmergeable(mixture, checkpoint)
    checked = check_base(mixture, checkpoint, any_base=any_base)
    made_of = _made_of(mixture, checkpoint)
    with workplace(output, DOING, made_of, say) as place:
        needed = _bytes_to_write(checkpoint, place) + (_nf4_bytes(checkpoint) if to_nf4 else 0)
        require_space(output.parent, needed, "what is still to be written of the merged checkpoint", DISK_REMEDY)
        what = f"the merged checkpoint (what is finished stays in {place.path.name}, and the same command goes on)"
        with explain_full_disk(output.parent, needed, what, DISK_REMEDY):
            merged = _merge_shards(mixture, checkpoint, place, watch)
            _copy_companions(mixture, checkpoint, place.path)
            report = _report(mixture, checkpoint, checked, merged, place.files)
            if prove is not None:
                proof = prove(mixture, checkpoint, open_checkpoint(str(place.path)))
                report["proof"] = proof.as_dict()
            replace_text(place.path / REPORT, json.dumps(redact_values(report), indent=2) + "\n")
            if prove is not None:
                proof.refuse_drift(place.path)
            if to_nf4:
                quantize(str(place.path), output, name=f"{checkpoint.folder} merged with {mixture.first.folder}")
                remove_folder(place.path)
            else:
                place.release(output)
    return merged


def _merge_shards(
    mixture: Mixture, checkpoint: HubCheckpoint, place: Workplace, watch: Watch | None
) -> list[MergedTensor]:
    for done, shard in enumerate(checkpoint.shards):
        if watch is not None:
            watch(done, len(checkpoint.shards))
        if shard in place.files:
            continue
        merged: list[MergedTensor] = []

        def changed(name: str, merged: list[MergedTensor] = merged) -> Change | None:
            return (lambda weight: _fold(name, weight, mixture, merged)) if name in mixture.weights else None

        sha256 = copy_shard(checkpoint.folder / shard, place.path / f"{shard}.part", changed)
        place.finished(shard, sha256, [asdict(tensor) for tensor in merged])
    if watch is not None:
        watch(len(checkpoint.shards), len(checkpoint.shards))
    every = [MergedTensor(**tensor) for shard in checkpoint.shards for tensor in place.notes[shard]]
    unused = mixture.weights - {tensor.name for tensor in every}
    if unused:
        raise RuntimeError(f"{len(unused)} adapter pair(s) were not used, such as {min(unused)}")
    return every


def _fold(name: str, weight: torch.Tensor, mixture: Mixture, merged: list[MergedTensor]) -> Iterator[torch.Tensor]:
    """The rounded weight, of a stack of experts one after the other; what it did is added to `merged` at the end."""
    norms, along, moved = [], 0.0, 0
    places = weight if weight.ndim > 2 else weight[None]
    for before, (exact, change) in zip(places, mixture.changes(name, weight), strict=True):
        rounded = exact.to(weight.dtype)
        after = rounded.float()
        if not torch.isfinite(after).all():
            raise UserError(f"{name} would not be finite in {weight.dtype}", fix="use an earlier checkpoint of the run")
        norms.append([each.norm().item() for each in (before.float(), change, after - exact)])
        along += ((after - before.float()) * change).sum().item()
        moved += int((rounded != before).sum())
        yield rounded
    weight_norm, delta_norm, rounding_norm = (math.hypot(*parts) for parts in zip(*norms, strict=True))
    kept = along / delta_norm**2 if delta_norm else 1.0
    dtype = str(weight.dtype).removeprefix("torch.")
    merged.append(MergedTensor(name, dtype, weight_norm, delta_norm, rounding_norm, kept, moved / weight.numel()))


def _copy_companions(mixture: Mixture, checkpoint: HubCheckpoint, folder: Path) -> None:
    """What belongs to a checkpoint beside its weights."""
    for path in sorted(checkpoint.folder.iterdir()):
        if path.is_file() and path.suffix in COPIED_SUFFIXES:
            shutil.copyfile(path, folder / path.name)
    own, trained = Rope.of(checkpoint.config), mixture.rope
    if trained is not None and trained != own:
        config = json.dumps(trained.put_in(checkpoint.config), indent=2)
        (folder / "config.json").write_text(config + "\n", encoding="utf-8")


def _report(
    mixture: Mixture,
    checkpoint: HubCheckpoint,
    checked: BaseCheck,
    merged: Sequence[MergedTensor],
    hashes: Mapping[str, str],
) -> dict[str, Any]:
    return {
        "base": redact(str(checkpoint.folder)),
        "base_identity": asdict(checked),
        "adapters": [
            {
                "folder": redact(str(share.files.folder)),
                "weight": share.weight,
                "scaling": share.files.scaling,
                "rank": share.files.config["r"],
                "sha256": adapter_hashes(share.files.folder),
            }
            for share in mixture.shares
        ],
        "rope": asdict(mixture.rope or Rope.of(checkpoint.config)),
        "tensors": [asdict(tensor) for tensor in merged],
        "unchanged_tensors": len(checkpoint.stored) - len(merged),
        "sha256": dict(sorted(hashes.items())),
        "version": __version__,
        "proof": None,
    }


def _made_of(mixture: Mixture, checkpoint: HubCheckpoint) -> dict[str, Any]:
    """What must be the same for a begun output to be gone on with."""
    marks = {shard: (checkpoint.folder / shard).stat() for shard in checkpoint.shards}
    return {
        "base": {shard: [mark.st_size, mark.st_mtime_ns] for shard, mark in marks.items()},
        "adapters": [
            [hash_file(share.files.folder / ADAPTER_WEIGHTS), share.files.config, share.weight]
            for share in mixture.shares
        ],
        "version": __version__,
    }


def _bytes_to_write(checkpoint: HubCheckpoint, place: Workplace) -> int:
    todo = [shard for shard in checkpoint.shards if shard not in place.files]
    companions = (path for path in checkpoint.folder.iterdir() if path.is_file() and path.suffix in COPIED_SUFFIXES)
    copied = sum(path.stat().st_size for path in companions)
    return sum((checkpoint.folder / shard).stat().st_size for shard in todo) + copied + SPARE_BYTES


def _nf4_bytes(checkpoint: HubCheckpoint) -> int:
    return sum(part_bytes(part, checkpoint) for part in plan_parts(checkpoint))


def _refuse_unmergeable(mixture: Mixture, checkpoint: HubCheckpoint) -> None:
    """All that can be seen from headers.

    Raises:
        UserError: the base is 4-bit, lacks a weight, or has one of another shape or of no floating dtype.
    """
    where, fix = str(checkpoint.folder), "name the base that the adapter was trained on with --base"
    if "quantization_config" in checkpoint.config:
        raise UserError(
            "the base is a 4-bit checkpoint; rounding to 4 bit again would destroy the adapter "
            "(for deltas of 1e-4 what is applied has a cosine of 0.02 with what was learned)",
            where=where,
            fix="name the original bf16 weights with --base; `--to nf4` packs what was merged",
        )
    absent = sorted(mixture.weights - set(checkpoint.files))
    if absent:
        raise UserError(
            f"the base lacks {len(absent)} weight(s) that the adapter changes, such as {absent[0]}",
            where=where,
            fix=fix,
        )
    for name in sorted(mixture.weights):
        stored = checkpoint.stored[name]
        for shape in mixture.shapes(name):
            if stored.shape != shape:
                raise UserError(
                    f"{name} is {stored.shape} in the base and {shape} in the adapter", where=where, fix=fix
                )
        if stored.dtype not in WHOLE:
            raise UserError(f"{name} is stored as {stored.dtype}, which nothing is added to", where=where, fix=fix)
