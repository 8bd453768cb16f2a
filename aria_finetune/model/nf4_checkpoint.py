"""An NF4 checkpoint on disk: the hub layout, in which a packed weight lies beside its scales, named as bitsandbytes does.

`config.json` says by which weights it was made (`quantization_config.source`), and the index has the SHA-256 of every
file. Knows files and quantisation states. Knows nothing of modules.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.functional import QuantState

from aria_finetune.errors import UserError
from aria_finetune.model.hub_layout import HubCheckpoint, read_json
from aria_finetune.model.nf4 import BLOCK, METHOD, NESTED_BLOCK, AriaNF4Config
from aria_finetune.provenance import wrong_files

STATE_NAMES = ("absmax", "quant_map", "nested_absmax", "nested_quant_map", "quant_state.bitsandbytes__nf4")
"""What stands behind the name of a packed weight, after a dot."""


@dataclass(frozen=True)
class Source:
    """The weights that a checkpoint was quantised from: folder or hub id, commit on the hub, SHA-256 by file.

    `values` is the fingerprint of their values (`base_identity`), None in checkpoints from before it was kept.
    """

    name: str
    revision: str | None
    sha256: Mapping[str, str]
    values: str | None = None


def is_nf4(checkpoint: HubCheckpoint) -> bool:
    """Whether the weights are packed already, in our way.

    Raises:
        UserError: they are quantised in another.
    """
    found = checkpoint.config.get("quantization_config")
    if found is None:
        return False
    method = found.get("quant_method") if isinstance(found, dict) else None
    if method != METHOD:
        raise UserError(
            f"the checkpoint is quantised in a way that can't be read here ({method})",
            where=str(checkpoint.folder),
            fix="name the original weights; model.experts: nf4 packs them while they load",
        )
    return True


def quantization_config(source: Source) -> dict[str, Any]:
    """What `config.json` says of the quantisation."""
    return AriaNF4Config().to_dict() | {"source": asdict(source)}


def source_of(checkpoint: HubCheckpoint) -> Source:
    """The weights that an NF4 checkpoint was made of.

    Raises:
        UserError: it does not say.
    """
    found = checkpoint.config["quantization_config"].get("source")
    try:
        return Source(
            str(found["name"]),
            found["revision"],
            {str(k): str(v) for k, v in found["sha256"].items()},
            found.get("values"),
        )
    except (TypeError, KeyError, AttributeError) as error:
        raise UserError(
            "the NF4 checkpoint does not say which weights it was made of",
            where=str(checkpoint.folder / "config.json"),
            fix="name the original weights with --base",
        ) from error


def tensors_of(name: str, packed: torch.Tensor, state: QuantState) -> dict[str, torch.Tensor]:
    """The tensors that are written for a packed weight."""
    return {name: packed} | {f"{name}.{end}": tensor for end, tensor in state.as_dict(packed=True).items()}


def packed_shapes(name: str, shape: torch.Size) -> dict[str, tuple[int, ...] | None]:
    """The names and shapes of those tensors for a weight of this shape; None for the one of any length."""
    scales = shape.numel() // BLOCK
    shapes = [(scales,), (16,), (math.ceil(scales / NESTED_BLOCK),), (256,), None]
    return {name: (shape.numel() // 2, 1)} | {
        f"{name}.{end}": length for end, length in zip(STATE_NAMES, shapes, strict=True)
    }


def state_of(name: str, read: Callable[[str], torch.Tensor], dtype: torch.dtype) -> tuple[torch.Tensor, QuantState]:
    """A packed weight as `read` gives its tensors by their names, and the state that dequantises it to `dtype`."""
    packed = read(name)
    state = QuantState.from_dict({end: read(f"{name}.{end}") for end in STATE_NAMES}, packed.device)
    state.dtype = dtype
    return packed, state


def check_files(folder: Path, hashes: Mapping[str, str], what: str, fix: str) -> None:
    """Read some files through and compare them with their hashes.

    Raises:
        UserError: some are missing or differ; all of them are named.
    """
    wrong = wrong_files(folder, hashes)
    if wrong:
        raise UserError(f"{what}: {', '.join(wrong)}", where=str(folder), fix=fix)


def stored_hashes(checkpoint: HubCheckpoint, index: str, shards: Collection[str]) -> dict[str, str]:
    """The SHA-256 of every file as the index has them.

    Raises:
        UserError: it lacks one.
    """
    found = read_json(checkpoint.folder / index).get("metadata", {}).get("sha256")
    if not isinstance(found, dict) or set(shards) - set(found):
        raise UserError("the index lacks hashes of files", where=str(checkpoint.folder / index), fix="quantize again")
    return {name: str(found[name]) for name in shards}
