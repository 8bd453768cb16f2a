"""A checkpoint on disk in the hub layout: which file holds which tensor, of which shape, read one tensor at a time.

Opens only safetensors and JSON. Knows nothing of modules or of what is done with the tensors.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open

from aria_finetune.errors import UserError
from aria_finetune.tiny import CHECKPOINT as TINY

if TYPE_CHECKING:
    import torch

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
SMALL_FILES = ("*.json", "*.jinja", "tokenizer.model")
DOWNLOADED = (*SMALL_FILES, "*.safetensors")
RAW_LAYOUT_MARKS = ("vision_tower.vision_model.", ".ln_ffn.", ".ln_kv.", "multi_modal_projector.ffn.")
"""Parts of key names that only the older raw layout of Aria's checkpoints has."""


STARTS = (
    ("model.language_model.", "language_model.model."),
    ("lm_head.", "language_model.lm_head."),
    ("model.vision_tower.", "vision_tower."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
)
"""How names start in memory, with transformers 5.18 and newer, and on disk."""
EXPERTS = (
    (".mlp.experts.gate_up_proj", ".mlp.experts.fc1.weight"),
    (".mlp.experts.down_proj", ".mlp.experts.fc2.weight"),
)
"""How names of routed experts end in memory and on disk."""


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor is and what it is: the file's name, the shape, and safetensors' name of the dtype (`BF16`)."""

    file: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class CheckpointSettings:
    """A folder with `config.json`, tokenizer and processor, its weights aside."""

    folder: Path
    config: dict[str, Any]


@dataclass(frozen=True)
class HubCheckpoint(CheckpointSettings):
    """A folder with `config.json` and safetensors, and the tensors in it by name."""

    stored: Mapping[str, StoredTensor]

    @property
    def files(self) -> dict[str, str]:
        """The names of the files that tensors are in."""
        return {name: tensor.file for name, tensor in self.stored.items()}

    @property
    def shards(self) -> list[str]:
        """Names of the safetensors files, sorted."""
        return sorted(set(self.files.values()))

    def read(self, name: str) -> torch.Tensor:
        """Tensor `name` on the CPU in the dtype it is stored in.

        Raises:
            KeyError: the checkpoint has no such tensor.
        """
        with safe_open(self.folder / self.files[name], "pt") as shard:
            tensor: torch.Tensor = shard.get_tensor(name)
        return tensor

    def tensors(self, shard: str) -> Iterator[tuple[str, torch.Tensor]]:
        """Names and tensors of one file, read one after the other."""
        with safe_open(self.folder / shard, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118 (not a dict)
                yield name, opened.get_tensor(name)


def disk_name(name: str) -> str:
    """The name in the hub layout of a weight that has `name` in memory."""
    return _renamed(name, STARTS, EXPERTS)


def memory_name(name: str) -> str:
    """The name in memory of a weight that has `name` in the hub layout."""
    return _renamed(name, [pair[::-1] for pair in STARTS], [pair[::-1] for pair in EXPERTS])


def open_checkpoint(path: str, revision: str | None = None, *, raw_too: bool = False) -> HubCheckpoint:
    """Find an Aria checkpoint by folder, hub id or the word `tiny`; no weight is read.

    Raises:
        UserError: nothing is there, it is not Aria, it is not safetensors, a shard is missing or can't be
            read, or it has the older raw layout, unless `raw_too`.
    """
    settings = _settings(checkpoint_folder(path, revision))
    folder, stored = settings.folder, _stored_tensors(settings.folder)
    raw = _raw_names(stored)
    if raw and not raw_too:
        raise UserError(
            f"the weights have Aria's older raw layout ({len(raw)} keys such as {raw[0]}), "
            "with which half of the model would stay random",
            where=str(folder),
            fix="use the current files of rhymes-ai/Aria, whose keys start with language_model.model., "
            "or write these in that layout with `aria-finetune export FOLDER OUTPUT`",
        )
    return HubCheckpoint(folder=folder, config=settings.config, stored=stored)


def is_raw(checkpoint: HubCheckpoint) -> bool:
    """Whether names are those of the older raw layout."""
    return bool(_raw_names(checkpoint.stored))


def _raw_names(names: Iterable[str]) -> list[str]:
    return sorted(name for name in names if any(mark in name for mark in RAW_LAYOUT_MARKS))


def open_settings(path: str, revision: str | None = None) -> CheckpointSettings:
    """The same without its weights, which are neither looked at nor fetched from the hub.

    Raises:
        UserError: nothing is there, or it is not Aria.
    """
    return _settings(checkpoint_folder(path, revision, SMALL_FILES))


def checkpoint_folder(path: str, revision: str | None = None, files: Sequence[str] = DOWNLOADED) -> Path:
    """Local folder of `path`: itself, the packaged tiny Aria, or a snapshot of some files fetched from the hub.

    Raises:
        UserError: no such folder and no such hub repository in reach.
    """
    if path == "tiny":
        return TINY
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_absolute() or path.startswith((".", "~")) or path.count("/") != 1:
        raise UserError(
            f"no such checkpoint folder: {path}", fix="give a folder, a hub id such as rhymes-ai/Aria, or tiny"
        )
    try:
        return Path(snapshot_download(path, revision=revision, allow_patterns=list(files)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"{path} is neither a folder here nor a model that can be fetched from the hub ({type(error).__name__})",
            fix="check the name, the network and HF_TOKEN, or download it and give the folder",
        ) from error


def _settings(folder: Path) -> CheckpointSettings:
    config = read_json(folder / "config.json")
    if config.get("model_type") != "aria":
        raise UserError(
            f"this is not an Aria checkpoint: config.json says model_type {config.get('model_type')!r}",
            where=str(folder),
            fix="model.path must name rhymes-ai/Aria, a folder with its files, or tiny",
        )
    return CheckpointSettings(folder=folder, config=config)


def _renamed(name: str, starts: Sequence[tuple[str, ...]], experts: Sequence[tuple[str, ...]]) -> str:
    for old, new in starts:
        if name.startswith(old):
            name = new + name.removeprefix(old)
            break
    for old, new in experts:
        before, found, behind = name.partition(old)
        if found and (not behind or behind.startswith(".")):  # behind it, the name of a packed weight's scales
            return before + new + behind
    return name


def _stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    if (folder / INDEX).is_file():
        files = _indexed_files(folder / INDEX)
    elif (folder / SINGLE).is_file():
        return _header(folder / SINGLE)
    else:
        other = sorted(path.name for path in folder.glob("*.bin"))
        detail = f"; {', '.join(other[:3])} is pickle, which is never opened" if other else ""
        raise UserError(f"no {SINGLE} and no {INDEX} there{detail}", where=str(folder), fix="use the safetensors files")
    missing = sorted(name for name in set(files.values()) if not (folder / name).is_file())
    if missing:
        raise UserError(
            f"{len(missing)} shard(s) named by {INDEX} are missing: {', '.join(missing)}",
            where=str(folder),
            fix="download them again",
        )
    stored: dict[str, StoredTensor] = {}
    for shard in sorted(set(files.values())):
        header = _header(folder / shard)
        listed = {name for name, file in files.items() if file == shard}
        absent = listed - set(header)
        if absent:
            raise UserError(
                f"{len(absent)} tensor(s) are not in the shard that {INDEX} names, such as {min(absent)}",
                where=str(folder / shard),
                fix="download the shard again",
            )
        stored |= {name: tensor for name, tensor in header.items() if name in listed}
    return stored


def _indexed_files(index: Path) -> dict[str, str]:
    files = read_json(index).get("weight_map")
    if not isinstance(files, dict) or not files:
        raise UserError("the index names no tensor (weight_map)", where=str(index), fix="download it again")
    # Merging writes files by these names: one with a folder in it could lie outside the output.
    foreign = sorted(str(name) for name in files.values() if not isinstance(name, str) or Path(name).name != name)
    if foreign:
        raise UserError(f"the index names a file that is not in its folder: {foreign[0]}", where=str(index))
    return files


def _header(shard: Path) -> dict[str, StoredTensor]:
    """The tensors of a file in the order in which they stand there."""
    try:
        with safe_open(shard, "pt") as opened:
            slices = {name: opened.get_slice(name) for name in opened.offset_keys()}
            return {
                name: StoredTensor(shard.name, tuple(piece.get_shape()), piece.get_dtype())
                for name, piece in slices.items()
            }
    except (SafetensorError, OSError) as error:
        raise UserError(f"the shard can't be read ({error})", where=str(shard), fix="download it again") from error


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a checkpoint.

    Raises:
        UserError: there is none.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError("config.json is missing: this is not a checkpoint", where=str(path.parent)) from error
    except (ValueError, OSError) as error:
        raise UserError(f"not valid JSON ({error})", where=str(path), fix="download it again") from error
    if not isinstance(data, dict):
        raise UserError("not a JSON object", where=str(path), fix="download it again")
    return data
