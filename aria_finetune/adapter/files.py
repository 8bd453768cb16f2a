"""An adapter folder on disk, read without PEFT: its configuration and its low-rank pairs.

Knows the names PEFT writes and the hub layout they belong to. Opens only safetensors and JSON.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from aria_finetune import ADAPTER_FOLDER
from aria_finetune.adapter.saving import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from aria_finetune.checkpoint.sealing import MANIFEST_FILE, BrokenSeal, read_manifest
from aria_finetune.errors import UserError
from aria_finetune.model.hub_layout import disk_name, memory_name, read_json
from aria_finetune.model.lora import MAGNITUDE
from aria_finetune.model.targets import PLACES
from aria_finetune.provenance import hash_file

RUN_FILE = "run.json"
PEFT_PREFIX = "base_model.model."
EXPERT_PAIRS = PLACES["experts"].parameters
"""The weights of routed experts by their names in memory, and what an adapter file calls their pairs."""
UNSUPPORTED = {
    "modules_to_save": "whole modules saved beside the adapter",
    "alpha_pattern": "an alpha that differs by layer",
    "rank_pattern": "a rank that differs by layer",
    "fan_in_fan_out": "transposed weights",
    "lora_bias": "biases",
    "trainable_token_indices": "trained token embeddings",
    "alora_invocation_tokens": "an adapter that is active behind certain tokens only",
    "layer_replication": "layers used more than once",
    "use_qalora": "inputs pooled in groups",
}
"""Features of PEFT that change what an adapter means, and that this reader would get wrong."""
WHOLE = ("BF16", "F16", "F32", "F64")
"""Dtypes, as safetensors names them, of weights that something can be added to."""
BASE_CHANGING_STARTS = ("pissa", "olora", "corda", "loftq")


@dataclass(frozen=True)
class AdapterFiles:
    """A LoRA or DoRA adapter. `pairs` maps a hub-layout weight to the name of its pair in the adapter file.

    `turned` says that pairs of routed experts lie as PEFT has them where the modules don't say that they hold (in, out), as up to
    transformers 5.17: A is on what comes out and B on what goes in.
    """

    folder: Path
    config: dict[str, Any]
    pairs: dict[str, str]
    turned: bool = False

    @property
    def scaling(self) -> float:
        """Alpha / rank, or alpha / sqrt(rank) for rank-stabilised LoRA (arXiv 2312.03732)."""
        rank = self.config["r"]
        return float(self.config["lora_alpha"] / (math.sqrt(rank) if self.config.get("use_rslora") else rank))

    @property
    def has_magnitudes(self) -> bool:
        """Whether it is DoRA."""
        return bool(self.config.get("use_dora"))

    @property
    def base_name(self) -> str:
        """What the adapter says it was trained on."""
        return str(self.config.get("base_model_name_or_path") or "")

    def shape(self, weight: str) -> tuple[int, ...]:
        """That of the hub-layout weight that the adapter was made for: (out, in), or of routed experts (experts, in, out).

        Raises:
            UserError: the pairs of routed experts don't divide among experts by the adapter's rank.
        """
        with safe_open(self.folder / ADAPTER_WEIGHTS, "pt") as opened:
            (ranks, into), (out, columns) = (
                opened.get_slice(f"{self.pairs[weight]}.lora_{matrix}.weight").get_shape() for matrix in "AB"
            )
        if self.turned and is_of_experts(weight):
            into, out = out, into
        if not is_of_experts(weight):
            return out, into
        if ranks % self.config["r"] or columns != ranks:
            raise UserError(
                f"{self.pairs[weight]} has {ranks} rows in A and {columns} columns in B, at a rank of {self.config['r']}",
                where=str(self.folder),
            )
        return ranks // self.config["r"], into, out

    def matrices(self, weight: str) -> tuple[torch.Tensor, torch.Tensor]:
        """A and B of a hub-layout weight, fp32; of routed experts as PEFT lays them out today."""
        with safe_open(self.folder / ADAPTER_WEIGHTS, "pt") as opened:
            a_RI, b_OR = (opened.get_tensor(f"{self.pairs[weight]}.lora_{matrix}.weight").float() for matrix in "AB")
        if self.turned and is_of_experts(weight):
            return turned(a_RI, b_OR, self.config["r"])
        return a_RI, b_OR

    def magnitude(self, weight: str) -> torch.Tensor:
        """DoRA's magnitudes (out,) of a hub-layout weight, fp32."""
        with safe_open(self.folder / ADAPTER_WEIGHTS, "pt") as opened:
            length_O: torch.Tensor = opened.get_tensor(f"{self.pairs[weight]}.{MAGNITUDE}").float()
        return length_O

    def delta(self, weight: str) -> torch.Tensor:
        """The change (out, in), fp32, that the adapter makes to a hub-layout weight of a linear layer or a router."""
        (delta_OI,) = self.deltas(weight)
        return delta_OI

    def deltas(self, weight: str) -> Iterator[torch.Tensor]:
        """That change; of a stack of routed experts the changes (in, out) of its experts, one after the other."""
        a_RI, b_OR = self.matrices(weight)
        if not is_of_experts(weight):
            yield self.scaling * (b_OR @ a_RI)
            return
        experts = self.shape(weight)[0]
        # As PEFT lays them out: A by expert, B with the experts' columns alternating.
        b_ORE = b_OR.view(len(b_OR), -1, experts)
        for expert, a_of_one_RI in enumerate(a_RI.chunk(experts)):
            yield self.scaling * (b_ORE[:, :, expert] @ a_of_one_RI).T

    def rescaled(self, weight: str, changed_OI: torch.Tensor) -> torch.Tensor:
        """A hub-layout weight with its change, its rows brought to the lengths that DoRA has learned for them (arXiv 2402.09353).

        The rows' own lengths are those of what is given: of the base that is merged into, as they are for PEFT there.

        Raises:
            UserError: there is not one magnitude for each row.
        """
        if not self.has_magnitudes:
            return changed_OI
        length_O = self.magnitude(weight)
        if length_O.shape != changed_OI.shape[:1]:
            raise UserError(f"the magnitudes of {weight} are not one for each of its rows", where=str(self.folder))
        norm_O = changed_OI.norm(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
        rescaled_OI: torch.Tensor = changed_OI * (length_O / norm_O)[:, None]
        return rescaled_OI


def adapter_folder(folder: Path) -> Path:
    """Where the files of an adapter are: `folder`, or a folder in it where that of a run was given."""
    inner = folder / ADAPTER_FOLDER
    return inner if not (folder / ADAPTER_CONFIG).is_file() and (inner / ADAPTER_CONFIG).is_file() else folder


def open_adapter(folder: Path) -> AdapterFiles:
    """Read the configuration and the names of an adapter folder.

    Raises:
        UserError: a file is missing or damaged, it is not LoRA, a tensor has no partner or is not finite, or it
            uses a feature of PEFT that would be merged wrongly.
    """
    folder = adapter_folder(folder)
    config = _config(folder)
    with _opened(folder) as adapter:
        names = set(adapter.keys())
        for name in sorted(names):
            if not torch.isfinite(adapter.get_tensor(name)).all():
                raise UserError(f"{name} is not finite", where=str(folder), fix="use an earlier checkpoint of the run")
    stems = {name.removesuffix(".lora_A.weight") for name in names if name.endswith(".lora_A.weight")}
    parts = ("lora_A.weight", "lora_B.weight", *([MAGNITUDE] if config.get("use_dora") else []))
    odd = names ^ {f"{stem}.{part}" for stem in stems for part in parts}
    if odd or not stems:
        example = min(odd) if odd else "no tensor at all"
        what = "pairs of A and B with a magnitude" if MAGNITUDE in parts else "pairs of A and B"
        raise UserError(f"the adapter's tensors are not {what}: {example}", where=str(folder))
    single = [stem for stem in sorted(stems) if _partner(stem) not in {None, *stems}]
    if single:
        raise UserError(
            f"{single[0]} is of one of the two weights of routed experts, and does not say of which", where=str(folder)
        )
    return AdapterFiles(folder, config, {hub_name(stem): stem for stem in sorted(stems)}, _is_turned(folder, stems))


def turned(a: torch.Tensor, b: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The pair of a stack of experts the other way round: each product of one expert is transposed. Twice is what it was.

    A (experts * rank, i) by expert and B (o, rank * experts) with the experts' columns alternating become the like of (o, i).
    """
    a_ERI, b_ORE = a.view(-1, rank, a.shape[1]), b.view(b.shape[0], rank, -1)
    return (
        b_ORE.permute(2, 1, 0).reshape(-1, b.shape[0]).contiguous(),
        a_ERI.permute(2, 1, 0).reshape(a.shape[1], -1).contiguous(),
    )


def check_unharmed(files: AdapterFiles) -> None:
    """Compare weights and configuration with the hashes that the run or the seal has of them, where there are any.

    Raises:
        UserError: one of them is not what was written, or what is recorded of them can't be read.
    """
    for name, due in _recorded_hashes(files.folder).items():
        if hash_file(files.folder / name) != due:
            raise UserError(
                f"{name} was changed since it was written: its SHA-256 differs",
                where=str(files.folder),
                fix="use a checkpoint of the run; to merge with a smaller or larger share of its change, --adapter DIR:WEIGHT",
            )


def adapter_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of both files that say what an adapter is: of its weights, and of the rank and the alpha that they are scaled by."""
    return {name: hash_file(folder / name) for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)}


def _recorded_hashes(folder: Path) -> dict[str, str]:
    """Of an adapter's files by the manifest beside them or by `run.json` above; empty where none was recorded."""
    if (folder / MANIFEST_FILE).is_file():
        try:
            manifest = read_manifest(folder)
        except BrokenSeal as error:
            raise UserError(str(error), where=str(folder), fix="use another checkpoint of the run") from error
        return {name: manifest[name]["sha256"] for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS) if name in manifest}
    if folder.name != ADAPTER_FOLDER or not (folder.parent / RUN_FILE).is_file():
        return {}
    recorded = read_json(folder.parent / RUN_FILE).get("adapter_sha256")
    if isinstance(recorded, str):  # of runs from before the configuration was hashed too
        return {ADAPTER_WEIGHTS: recorded}
    if not isinstance(recorded, dict):
        return {}
    return {name: recorded[name] for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS) if name in recorded}


def hub_name(stem: str) -> str:
    """The hub-layout weight that a pair belongs to: PEFT's name without prefix, as on disk."""
    name = stem.removeprefix(PEFT_PREFIX)
    for parameter, pair in EXPERT_PAIRS.items():
        if name.endswith(f".{pair}"):
            return disk_name(name.removesuffix(pair) + parameter)
    return disk_name(f"{name}.weight")


def is_of_experts(weight: str) -> bool:
    """Whether a hub-layout weight is a stack of routed experts."""
    return memory_name(weight).endswith(tuple(EXPERT_PAIRS))


def _is_turned(folder: Path, stems: set[str]) -> bool:
    """Whether pairs of routed experts in an older layout have A on what comes out: today's PEFT turns them there, earlier ones did not.

    Both stacks of a layer tell: what goes into the second is half as wide as what comes out of the first.
    """
    first, second = (
        min((stem for stem in stems if stem.endswith(f".mlp.experts.{name}")), default="") for name in ("fc1", "fc2")
    )
    if not first and not second:
        return False
    if not (first and second):
        raise UserError(
            f"{first or second} is of one of the two weights of routed experts alone, and which way it lies can't be told",
            where=str(folder),
        )
    with _opened(folder) as opened:
        a1, b1, a2, b2 = (
            opened.get_slice(f"{stem}.lora_{matrix}.weight").get_shape() for stem in (first, second) for matrix in "AB"
        )
    if b1[0] == 2 * a2[1] and a1[1] == b2[0]:
        return False
    if a1[1] == 2 * b2[0] and b1[0] == a2[1]:
        return True
    raise UserError(f"{first} and {second} do not fit together", where=str(folder))


def _partner(stem: str) -> str | None:
    """The other pair of the same routed experts, if this is one of routed experts."""
    first, second = EXPERT_PAIRS.values()
    for mine, other in ((first, second), (second, first)):
        if stem.endswith(f".{mine}"):
            return stem.removesuffix(mine) + other
    return None


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(
            f"there is no {ADAPTER_CONFIG}", where=str(folder), fix="give the adapter folder of a finished run"
        ) from error
    except ValueError as error:
        raise UserError(f"{ADAPTER_CONFIG} is not valid JSON ({error})", where=str(folder)) from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise UserError("the adapter is not LoRA", where=str(folder))
    if not all(isinstance(config.get(key), int | float) and config[key] > 0 for key in ("r", "lora_alpha")):
        raise UserError(f"{ADAPTER_CONFIG} has no positive r and lora_alpha", where=str(folder))
    used = [meaning for key, meaning in UNSUPPORTED.items() if config.get(key)]
    if str(config.get("init_lora_weights", "")).split("_")[0].lower() in BASE_CHANGING_STARTS:
        used.append(f"{config['init_lora_weights']} initialisation, which changes the base weights")
    if config.get("bias", "none") != "none":
        used.append("trained biases")
    if used:
        raise UserError(f"the adapter uses {', '.join(used)}, which can't be merged here", where=str(folder))
    return config


@contextmanager
def _opened(folder: Path) -> Iterator[Any]:
    path = folder / ADAPTER_WEIGHTS
    try:
        with safe_open(path, "pt") as opened:
            yield opened
    except (SafetensorError, OSError) as error:
        raise UserError(f"{ADAPTER_WEIGHTS} can't be read ({error})", where=str(folder)) from error
