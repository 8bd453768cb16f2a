"""The base of adapters: which weights they name, and whether those are what they were trained on.

Knows adapter folders and checkpoints on disk.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from aria_finetune.adapter.files import AdapterFiles
from aria_finetune.adapter.mixture import Mixture
from aria_finetune.errors import UserError
from aria_finetune.model.base_identity import BaseIdentity, fingerprint_values, read_identity
from aria_finetune.model.hub_layout import HubCheckpoint, open_checkpoint
from aria_finetune.model.nf4_checkpoint import check_files, is_nf4, source_of
from aria_finetune.provenance import wrong_files

Compared = Literal["the same", "not recorded", "not compared"]


@dataclass(frozen=True)
class BaseCheck:
    """What the base that is merged into is known by, and for each adapter whether it was trained on it.

    `not recorded` is of adapters from before that was kept, or from elsewhere.
    """

    values: str
    compared: list[Compared]


def open_base(mixture: Mixture, base: str | None, revision: str | None) -> HubCheckpoint:
    """The checkpoint that `base` names, or the one the first adapter was trained on, at the revision it was trained at.

    Of a base in NF4 that the adapter names, it is the weights that those were made of, if they are still the same.

    Raises:
        UserError: there is none, it is not Aria, or the weights that a base in NF4 was made of are gone or changed.
    """
    if base is not None:
        return open_checkpoint(base, revision)
    files = mixture.first
    checkpoint = open_checkpoint(base_of(files), revision or files.config.get("revision"))
    return _original(checkpoint) if is_nf4(checkpoint) else checkpoint


def check_one_base(mixture: Mixture) -> None:
    """Refuse adapters that name different bases, where none is said to be the one that is meant.

    Two names may be of the same weights (a copy, or what was packed from them); that is so if both recorded the same values.

    Raises:
        UserError: two adapters name different bases, or revisions of one, and are not known to be of the same weights.
    """
    first = mixture.first
    for share in mixture.shares[1:]:
        names = [_named(files) for files in (first, share.files)]
        recorded = [read_identity(files.folder) for files in (first, share.files)]
        if names[0] == names[1] or _are_same(*recorded):
            continue
        raise UserError(
            f"the adapters name different bases ({' and '.join(names)}), and are not known to be of the same weights",
            where=f"{first.folder}, {share.files.folder}",
            fix="merge adapters of one base; if these are, name it with --base, or take the first one's with --any-base",
        )


def _named(files: AdapterFiles) -> str:
    revision = files.config.get("revision")
    return f"{files.base_name or 'none'}{f' at {revision}' if revision else ''}"


def _are_same(one: BaseIdentity, other: BaseIdentity) -> bool:
    if one.values is not None and other.values is not None:
        return one.values == other.values
    return one.sha256 is not None and one.sha256 == other.sha256


def check_base(mixture: Mixture, checkpoint: HubCheckpoint, *, any_base: bool) -> BaseCheck:
    """Compare the base with what was written beside each adapter when it was trained.

    Raises:
        UserError: an adapter was trained on other weights, and not `any_base`; or a shard can't be read.
    """
    values = fingerprint_values(checkpoint)
    compared: list[Compared] = []
    for share in mixture.shares:
        found = "not compared" if any_base else _compared(share.files, checkpoint, values)
        if found is None:
            raise UserError(
                "these are not the weights that the adapter was trained on: their values differ",
                where=f"{checkpoint.folder}, {share.files.folder}",
                fix="name its base with --base, or merge into these all the same with --any-base",
            )
        compared.append(found)
    return BaseCheck(values, compared)


def _compared(files: AdapterFiles, checkpoint: HubCheckpoint, values: str) -> Compared | None:
    """None if it was trained on other weights."""
    recorded = read_identity(files.folder)
    if recorded.values is not None:
        return "the same" if recorded.values == values else None
    if recorded.sha256 is not None and set(recorded.sha256) == set(checkpoint.shards):
        return None if wrong_files(checkpoint.folder, recorded.sha256) else "the same"
    return "not recorded"


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
