"""The independent reference of a merge: both models whole, in plain transformers and PEFT, one after the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AriaConfig, AriaForConditionalGeneration

from aria_finetune.adapter.base import open_base
from aria_finetune.adapter.drift import Drift, compare
from aria_finetune.adapter.mixture import open_mixture
from aria_finetune.data.chat import ChatTokenizer, Picture, Text, Turn
from aria_finetune.errors import UserError
from aria_finetune.model.dora import use_exact_norms
from aria_finetune.model.loading import load_processor, own_kernels, set_rope
from aria_finetune.model.rope import Rope, read_rope
from aria_finetune.model.settings import vision_tokens
from aria_finetune.model.vision import normalise

PROMPT = "What is in this picture?"
TILE = 490


def measure_drift(adapter: Path, merged: Path, *, base: str | None = None, revision: str | None = None) -> Drift:
    """Compare a merged checkpoint with base + adapter on a text prompt and on one with a picture of noise.

    Both are dense and run in the dtype of the checkpoint, so this is what rounding the merged weights did. How far
    a 4-bit base, which an adapter may have been trained on, is from the dense one is not in it.

    Raises:
        UserError: one of the two checkpoints does not load completely.
    """
    mixture = open_mixture([(adapter, 1.0)])
    files, checkpoint = mixture.first, open_base(mixture, base, revision)
    inputs = inputs_of(ChatTokenizer(load_processor(checkpoint).tokenizer), vision_tokens(checkpoint)[TILE])
    with torch.no_grad():
        base_model = load_whole(checkpoint.folder, read_rope(files.folder))
        adapted = PeftModel.from_pretrained(base_model, str(files.folder))
        use_exact_norms(adapted, fresh=False)
        live = logits_of(adapted, inputs)
        alone = logits_of(load_whole(merged), inputs)
    return compare(live, alone)


def inputs_of(chat: ChatTokenizer, image_tokens: int) -> list[dict[str, torch.Tensor]]:
    def ids(*content: Text | Picture) -> torch.Tensor:
        return torch.tensor([chat.encode([Turn("user", content)], generation_prompt=True).ids])

    noise = torch.randint(0, 256, (1, 3, TILE, TILE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    picture = {"pixel_values": noise, "pixel_mask": torch.ones(1, TILE, TILE, dtype=torch.bool)}
    return [{"input_ids": ids(Text(PROMPT))}, {"input_ids": ids(Picture(image_tokens), Text(PROMPT)), **picture}]


def load_whole(folder: Path, rope: Rope | None = None) -> AriaForConditionalGeneration:
    config = AriaConfig.from_pretrained(folder)
    if rope is not None:
        set_rope(config, rope)
    model, report = AriaForConditionalGeneration.from_pretrained(
        folder, config=config, output_loading_info=True, **own_kernels()
    )
    if report["missing_keys"] or report["unexpected_keys"]:
        raise UserError("the checkpoint does not load completely", where=str(folder))
    return model.eval()


def logits_of(model: Any, inputs: list[dict[str, torch.Tensor]]) -> torch.Tensor:
    """Logits (positions of all prompts, vocabulary), fp32."""
    rows = []
    for prompt in inputs:
        pixels = prompt.get("pixel_values")
        ready = prompt if pixels is None else prompt | {"pixel_values": normalise(pixels, model.dtype)}
        rows.append(model(**ready).logits[0].float())
    return torch.cat(rows)
