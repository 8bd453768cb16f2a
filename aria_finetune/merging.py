"""What `merge` does: fold, prove, say. Knows the console."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from aria_finetune.adapter.merge import MergedTensor, Prove, merge
from aria_finetune.adapter.mixture import Mixture, parse_adapter
from aria_finetune.adapter.proof import MergeProof, prove
from aria_finetune.errors import UserError
from aria_finetune.layer_progress import LayerProgress
from aria_finetune.material import device_named
from aria_finetune.model.hub_layout import HubCheckpoint


def merge_and_prove(
    adapters: Sequence[str],
    output: Path,
    console: Console,
    *,
    base: str | None = None,
    revision: str | None = None,
    any_base: bool = False,
    to_nf4: bool = False,
    device: str | None = "auto",
) -> None:
    """Merge adapters (`DIR` or `DIR:WEIGHT`) and say what was found; without a `device` nothing is proved.

    Raises:
        UserError: as `merge` does, or no adapter is named.
    """
    if not adapters:
        fix = "aria-finetune merge ADAPTER OUTPUT, or merge OUTPUT --adapter A:0.7 --adapter B:0.3"
        raise UserError("no adapter is named", fix=fix)
    proofs: list[MergeProof] = []

    def proved(mixture: Mixture, checkpoint: HubCheckpoint, merged: HubCheckpoint) -> MergeProof:
        with LayerProgress("proving", console, "layers") as progress:
            where = device_named(device or "cpu")
            proofs.append(prove(mixture, checkpoint, merged, packed=to_nf4, device=where, watch=progress))
        return proofs[-1]

    wanted: Prove | None = None if device is None else proved
    with LayerProgress("merging", console, "files") as progress:
        merged = merge(
            [parse_adapter(text) for text in adapters],
            output,
            base=base,
            revision=revision,
            any_base=any_base,
            to_nf4=to_nf4,
            prove=wanted,
            watch=progress,
            say=progress.say,
        )
    kind = "NF4 checkpoint of the merged weights" if to_nf4 else "merged checkpoint"
    console.print(f"{describe_change(merged)}; the {kind} is in {output}/", highlight=False, soft_wrap=True)
    for proof in proofs:
        console.print(proof.describe(), highlight=False, soft_wrap=True)


def describe_change(merged: Sequence[MergedTensor]) -> str:
    """How many weights are others than they were, and how much of what the adapters change their dtype holds."""
    wanted = sum(tensor.delta_norm**2 for tensor in merged)
    changed = sum(tensor.moved > 0 for tensor in merged)
    if not wanted:
        return "no weight is changed, for the adapter changes nothing"
    if not changed:
        return "no weight is changed, for their dtype holds nothing of the adapter's change"
    kept = sum(tensor.kept * tensor.delta_norm**2 for tensor in merged) / wanted
    return f"{changed} weights changed, {kept:.1%} of the change is in their dtype"
