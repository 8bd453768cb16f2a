"""Which weights an adapter was trained on, told apart by their values: of whatever dtype, in however many files.

A fingerprint takes a sample of every tensor as fp32, so that a copy in fp32 of bf16 weights is the same base, and any fine-tuned
checkpoint is another: training moves nearly every value of what it moves at all. It reads some megabytes of 50 GB. Of weights in NF4
it is that of what they were packed from. Knows checkpoints on disk.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from aria_finetune.errors import UserError
from aria_finetune.model.hub_layout import HubCheckpoint
from aria_finetune.model.nf4_checkpoint import is_nf4, source_of

BASE_FILE = "base.json"
SAMPLED_ROWS, SAMPLED_VALUES = 16, 512
"""Of a tensor at least so many rows, spread evenly, and of a row so many values; of a stack of experts a row of each."""
COMPUTED = ".inv_freq"


@dataclass(frozen=True)
class BaseIdentity:
    """The original weights: fingerprint of their values, and SHA-256 by file where an NF4 checkpoint has them."""

    values: str | None
    sha256: Mapping[str, str] | None = None


def identity_of(checkpoint: HubCheckpoint) -> BaseIdentity:
    """Of the weights that adapters on this checkpoint are merged into: its own, or those that it was packed from.

    Raises:
        UserError: a shard can't be read.
    """
    if not is_nf4(checkpoint):
        return BaseIdentity(fingerprint_values(checkpoint))
    try:
        source = source_of(checkpoint)
    except UserError:  # it does not say, which only merging minds
        return BaseIdentity(None)
    return BaseIdentity(source.values, source.sha256)


def fingerprint_values(checkpoint: HubCheckpoint) -> str:
    """SHA-256 over names, shapes and sampled values of the tensors of dense weights.

    Raises:
        UserError: a shard can't be read.
    """
    parts = {}
    for shard in checkpoint.shards:
        try:
            with safe_open(checkpoint.folder / shard, "pt") as opened:
                for name in opened.offset_keys():
                    if checkpoint.files.get(name) == shard and not name.endswith(COMPUTED):
                        parts[name] = _sample(opened.get_slice(name))
        except (SafetensorError, OSError) as error:
            where = str(checkpoint.folder / shard)
            raise UserError(f"the shard can't be read ({error})", where=where, fix="download it again") from error
    return hashlib.sha256("".join(f"{name} {parts[name]}\n" for name in sorted(parts)).encode()).hexdigest()


def _sample(stored: Any) -> str:
    """Shape and a hash of some values of a tensor, as fp32."""
    shape = stored.get_shape()
    digest = hashlib.sha256(repr(list(shape)).encode())
    if not math.prod(shape):
        return digest.hexdigest()
    if len(shape) < 2:
        rows = [stored[:]]
    else:
        *outer, width = shape
        count = math.prod(outer)
        taken = min(count, max(SAMPLED_ROWS, shape[0] if len(shape) > 2 else 0))
        rows = [
            stored[(*_place(count * number // taken, outer), slice(0, min(width, SAMPLED_VALUES)))]
            for number in range(taken)
        ]
    for row in rows:
        digest.update(row.float().numpy().tobytes())
    return digest.hexdigest()


def _place(number: int, outer: list[int]) -> list[int]:
    """The indices of a row by its number, the last running fastest."""
    place = []
    for length in reversed(outer):
        number, index = divmod(number, length)
        place.append(index)
    return place[::-1]


def write_identity(folder: Path, identity: BaseIdentity) -> None:
    """Say beside an adapter what it was trained on."""
    (folder / BASE_FILE).write_text(json.dumps(asdict(identity), indent=1) + "\n", encoding="utf-8")


def read_identity(folder: Path) -> BaseIdentity:
    """What an adapter was trained on; without a fingerprint where that was not written, as before it was kept.

    Raises:
        UserError: the file is damaged.
    """
    try:
        found = json.loads((folder / BASE_FILE).read_text(encoding="utf-8"))
        identity = BaseIdentity(found["values"], found["sha256"] and dict(found["sha256"]))
    except FileNotFoundError:
        return BaseIdentity(None)
    except (OSError, ValueError, TypeError, KeyError) as error:
        fix = f"take {BASE_FILE} from another checkpoint of the run"
        raise UserError(f"{BASE_FILE} can't be read ({error})", where=str(folder), fix=fix) from error
    return identity
