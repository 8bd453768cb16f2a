"""Write an adapter folder that plain PEFT and transformers load: adapter, tokenizer, processor.

Knows the PEFT model and the processor, not how they were trained.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AriaProcessor

from aria_finetune.errors import UserError
from aria_finetune.model.lora import saved_names

ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"


def save_adapter(model: PeftModel, folder: str | Path, processor: AriaProcessor) -> None:
    """Save the adapter of `model` with tokenizer and processor, and check what was written.

    Raises:
        RuntimeError: a written tensor is absent, not finite, or not what the model holds.
    """
    # Embeddings are never trained here; without the flag PEFT asks the hub whether the vocabulary grew.
    model.save_pretrained(str(folder), save_embedding_layers=False)
    processor.save_pretrained(str(folder))
    check_saved(model, Path(folder))


def check_saved(model: PeftModel, folder: Path) -> None:
    """Compare the file with the adapters in memory.

    Raises:
        RuntimeError: a tensor is absent, unexpected, not finite, or differs.
    """
    saved = load_file(folder / ADAPTER_WEIGHTS)
    held = saved_names(model)
    if set(saved) != set(held):
        odd = sorted(set(saved) ^ set(held))
        raise RuntimeError(f"the saved adapter's keys differ from the model's, such as {odd[0]}")
    for name, tensor in saved.items():
        if not torch.isfinite(tensor).all():
            raise RuntimeError(f"{name} is not finite")
        if not torch.equal(tensor, held[name].detach().to(tensor).cpu()):
            raise RuntimeError(f"{name} differs from what the model holds")


def restore_adapter(model: PeftModel, folder: Path) -> None:
    """Put the tensors of a saved adapter into the adapters that `model` has, bit for bit.

    Raises:
        UserError: the file holds other tensors, or tensors of other shapes.
    """
    saved = load_file(folder / ADAPTER_WEIGHTS)
    held = saved_names(model)
    odd = sorted(set(saved) ^ set(held)) or [name for name, tensor in saved.items() if tensor.shape != held[name].shape]
    if odd:
        raise UserError(
            f"the checkpoint's adapter does not fit the recipe's: {odd[0]}",
            where=str(folder),
            fix="resume with the recipe that the run was started with",
        )
    with torch.no_grad():
        for name, tensor in saved.items():
            held[name].copy_(tensor)


class TrainedCheck:
    """Remembers adapters as they start, by hash, to tell later whether training reached every one.

    Args:
        start: adapter tensors by name, `lora_A` and `lora_B` of each place.
    """

    def __init__(self, start: Mapping[str, torch.Tensor]) -> None:
        self._start = {name: _digest(tensor) for name, tensor in start.items()}

    def check(self, now: Mapping[str, torch.Tensor]) -> None:
        """Compare after at least one update.

        Raises:
            UserError: neither matrix of a place has changed, so that the adapter does nothing there.
        """
        changed = {_place(name) for name, digest in self._start.items() if _digest(now[name]) != digest}
        still = sorted({_place(name) for name in self._start} - changed)
        if still:
            raise UserError(
                f"{len(still)} adapter(s) have not changed since the start, such as {still[0]}",
                fix="a train.learning_rate this small changes nothing; raise it, or leave these lora.targets out",
            )


def _place(name: str) -> str:
    return name.partition(".lora_")[0]


def _digest(tensor: torch.Tensor) -> bytes:
    return hashlib.sha256(tensor.detach().cpu().contiguous().numpy().tobytes()).digest()
