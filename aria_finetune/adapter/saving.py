"""Write an adapter folder that plain PEFT and transformers load: adapter, tokenizer, processor.

Knows the PEFT model and the processor, not how they were trained.
"""

from __future__ import annotations

from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AriaProcessor

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
