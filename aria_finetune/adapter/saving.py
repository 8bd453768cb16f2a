"""Write an adapter folder that plain PEFT and transformers load: adapter, tokenizer, processor, RoPE base.

Knows the PEFT model and the processor, not how they were trained.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AriaProcessor

from aria_finetune.errors import UserError
from aria_finetune.model.base_identity import BaseIdentity, write_identity
from aria_finetune.model.loftq import LOFTQ, joined, joined_config, parted, set_start, start_of
from aria_finetune.model.lora import START, saved_names
from aria_finetune.model.rope import Rope, write_rope

ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"


def save_adapter(
    model: PeftModel, folder: str | Path, processor: AriaProcessor, base: BaseIdentity | None = None
) -> None:
    """Save the adapter of `model` with tokenizer, processor, what places are told apart by and what its base is known by,
    and check what was written.

    Raises:
        RuntimeError: a written tensor is absent, not finite, or not what the model holds.
    """
    # Embeddings are never trained here; without the flag PEFT asks the hub whether the vocabulary grew.
    model.save_pretrained(str(folder), save_embedding_layers=False)
    if start_of(model) is not None:
        _write_change(model, Path(folder))
    processor.save_pretrained(str(folder))
    write_rope(Path(folder), Rope.of(model.config.to_dict()))
    if base is not None:
        write_identity(Path(folder), base)
    check_saved(model, Path(folder))


def _write_change(model: PeftModel, folder: Path) -> None:
    """Write what adapters have learned since a start that is none of the original weights' own."""
    save_file(held(model), folder / ADAPTER_WEIGHTS, {"format": "pt", START: LOFTQ})
    path = folder / ADAPTER_CONFIG
    config = joined_config(json.loads(path.read_text(encoding="utf-8")))
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def held(model: PeftModel) -> dict[str, torch.Tensor]:
    """The tensors that an adapter file of `model` has."""
    start, now = start_of(model), saved_names(model)
    return dict(now) if start is None else joined(now, start)


def check_saved(model: PeftModel, folder: Path) -> None:
    """Compare the file with the adapters in memory.

    Raises:
        RuntimeError: a tensor is absent, unexpected, not finite, or differs.
    """
    saved = load_file(folder / ADAPTER_WEIGHTS)
    due = held(model)
    if set(saved) != set(due):
        odd = sorted(set(saved) ^ set(due))
        raise RuntimeError(f"the saved adapter's keys differ from the model's, such as {odd[0]}")
    for name, tensor in saved.items():
        if not torch.isfinite(tensor).all():
            raise RuntimeError(f"{name} is not finite")
        if not torch.equal(tensor, due[name].detach().to(tensor).cpu()):
            raise RuntimeError(f"{name} differs from what the model holds")


def restore_adapter(model: PeftModel, folder: Path) -> None:
    """Put the tensors of a saved adapter into the adapters that `model` has, bit for bit.

    Raises:
        UserError: the file holds other tensors, or tensors of other shapes.
    """
    saved, now = load_file(folder / ADAPTER_WEIGHTS), saved_names(model)
    start: Mapping[str, torch.Tensor] | None = None
    if start_of(model) is not None:
        saved, start = parted(saved)
    odd = sorted(set(saved) ^ set(now)) or [name for name, tensor in saved.items() if tensor.shape != now[name].shape]
    if odd:
        raise UserError(
            f"the checkpoint's adapter does not fit the recipe's: {odd[0]}",
            where=str(folder),
            fix="resume with the recipe that the run was started with",
        )
    with torch.no_grad():
        for name, tensor in saved.items():
            now[name].copy_(tensor)
    if start is not None:
        set_start(model, {name: tensor.contiguous() for name, tensor in start.items()})


class TrainedCheck:
    """Remembers adapters as they start, by hash, to tell later whether training reached every one.

    Args:
        start: adapter tensors by name, `lora_A` and `lora_B` of each place.
    """

    def __init__(self, start: Mapping[str, torch.Tensor]) -> None:
        self._start = {name: _digest(tensor) for name, tensor in start.items()}

    def check(self, now: Mapping[str, torch.Tensor]) -> None:
        """Compare after at least one update; what `now` leaves out is not looked at.

        Raises:
            UserError: neither matrix of a place has changed, so that the adapter does nothing there.
        """
        changed = {_place(name) for name, tensor in now.items() if _digest(tensor) != self._start[name]}
        still = sorted({_place(name) for name in now} - changed)
        if still:
            raise UserError(
                f"{len(still)} adapter(s) have not changed since the start, such as {still[0]}",
                fix="a train.learning_rate this small changes nothing; raise it, or leave these lora.targets out",
            )


def _place(name: str) -> str:
    return name.partition(".lora_")[0]


def _digest(tensor: torch.Tensor) -> bytes:
    return hashlib.sha256(tensor.detach().cpu().contiguous().numpy().tobytes()).digest()
