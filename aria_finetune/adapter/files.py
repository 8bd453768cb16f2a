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
from aria_finetune.errors import UserError

PEFT_PREFIX = "base_model.model."
DECODER_IN_MEMORY, DECODER_ON_DISK = "model.language_model.", "language_model.model."
UNSUPPORTED = {
    "use_dora": "DoRA",
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
BASE_CHANGING_STARTS = ("pissa", "olora", "corda", "loftq")


@dataclass(frozen=True)
class AdapterFiles:
    """A LoRA adapter. `pairs` maps a hub-layout weight to the name of its pair in the adapter file."""

    folder: Path
    config: dict[str, Any]
    pairs: dict[str, str]

    @property
    def scaling(self) -> float:
        """Alpha / rank, or alpha / sqrt(rank) for rank-stabilised LoRA (arXiv 2312.03732)."""
        rank = self.config["r"]
        return float(self.config["lora_alpha"] / (math.sqrt(rank) if self.config.get("use_rslora") else rank))

    @property
    def base_name(self) -> str:
        """What the adapter says it was trained on."""
        return str(self.config.get("base_model_name_or_path") or "")

    def delta(self, weight: str) -> torch.Tensor:
        """The change (out, in), fp32, that the adapter makes to a hub-layout weight."""
        name = self.pairs[weight]
        with safe_open(self.folder / ADAPTER_WEIGHTS, "pt") as opened:
            a_RI = opened.get_tensor(f"{name}.lora_A.weight").float()
            b_OR = opened.get_tensor(f"{name}.lora_B.weight").float()
        delta_OI: torch.Tensor = self.scaling * (b_OR @ a_RI)
        return delta_OI


def open_adapter(folder: Path) -> AdapterFiles:
    """Read the configuration and the names of an adapter folder.

    Raises:
        UserError: a file is missing or damaged, it is not LoRA, a tensor has no partner or is not finite, or it
            uses a feature of PEFT that would be merged wrongly.
    """
    if not (folder / ADAPTER_CONFIG).is_file() and (folder / ADAPTER_FOLDER / ADAPTER_CONFIG).is_file():
        folder = folder / ADAPTER_FOLDER  # the run's folder was given
    config = _config(folder)
    with _opened(folder) as adapter:
        names = set(adapter.keys())
        for name in sorted(names):
            if not torch.isfinite(adapter.get_tensor(name)).all():
                raise UserError(f"{name} is not finite", where=str(folder), fix="use an earlier checkpoint of the run")
    stems = {name.removesuffix(".lora_A.weight") for name in names if name.endswith(".lora_A.weight")}
    odd = names - {f"{stem}.lora_{matrix}.weight" for stem in stems for matrix in "AB"}
    lonely = {stem for stem in stems if f"{stem}.lora_B.weight" not in names}
    if odd or lonely or not stems:
        example = min(odd | lonely) if odd | lonely else "no tensor at all"
        raise UserError(f"the adapter's tensors are not pairs of A and B: {example}", where=str(folder))
    return AdapterFiles(folder, config, {hub_name(stem): stem for stem in sorted(stems)})


def hub_name(stem: str) -> str:
    """The hub-layout weight that a pair belongs to: PEFT's name without prefix, the decoder's name as on disk."""
    name = stem.removeprefix(PEFT_PREFIX)
    if name.startswith(DECODER_IN_MEMORY):
        name = DECODER_ON_DISK + name.removeprefix(DECODER_IN_MEMORY)
    return f"{name}.weight"


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
