"""Load Aria for training: experts in 4 bit or dense, router in fp32, every key accounted for.

Knows the checkpoint and the modules. Knows nothing of adapters, data or the trainer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import AriaForConditionalGeneration, AriaProcessor, AutoTokenizer
from transformers.models.aria.image_processing_pil_aria import AriaImageProcessorPil

from aria_finetune.errors import UserError
from aria_finetune.model.components import Component, components
from aria_finetune.model.hub_layout import HubCheckpoint, open_checkpoint
from aria_finetune.model.nf4 import AriaNF4Config, misshapen_weights, unquantised_experts
from aria_finetune.model.router import install_float32_routers

Experts = Literal["nf4", "bf16", "fp32"]
ROUTER_KEY = "language_model.model.layers.{layer}.mlp.router.weight"
DEFAULT_PATCH = 14
DEFAULT_QUERIES = {1225: 128, 4900: 256}
NAMED_KEYS = 5
"""How many keys an error names before it only counts the others."""


@dataclass(frozen=True)
class LoadedModel:
    """The frozen base model in evaluation mode, where it came from and what its parts take."""

    model: AriaForConditionalGeneration
    checkpoint: HubCheckpoint
    components: list[Component]


def load_model(
    path: str,
    *,
    revision: str | None = None,
    experts: Experts = "nf4",
    dtype: torch.dtype = torch.bfloat16,
    device: str = "cpu",
    implementation: str = "grouped_mm",
) -> LoadedModel:
    """Load an Aria checkpoint straight onto `device`, all weights frozen.

    Args:
        path: a folder in the hub layout, a hub id, or `tiny`.
        revision: branch, tag or commit of a hub id.
        experts: `nf4` packs routed experts, attention and shared experts to 4 bit while the shards stream in;
            `bf16` and `fp32` keep everything dense.
        dtype: of the parts that are not 4-bit, and of the arithmetic.
        device: `cpu` or `cuda`.
        implementation: how the routed experts are computed, `grouped_mm` or `eager`.

    Raises:
        UserError: the checkpoint is not a complete Aria in the hub layout, or a routed expert is not NF4
            although NF4 was asked for.
    """
    checkpoint = open_checkpoint(path, revision)
    if "quantization_config" in checkpoint.config:
        raise UserError(
            "the checkpoint is quantised already",
            where=str(checkpoint.folder),
            fix="name the original weights; model.experts: nf4 packs them while they load",
        )
    extra: dict[str, Any] = {"quantization_config": AriaNF4Config(dtype)} if experts == "nf4" else {}
    model, report = AriaForConditionalGeneration.from_pretrained(
        checkpoint.folder,
        dtype=dtype,
        device_map={"": device},
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # told below, with names and shapes
        **own_kernels(implementation),
        **extra,
    )
    _check_complete(report, misshapen_weights(model), checkpoint)
    install_float32_routers(model, lambda layer: checkpoint.read(ROUTER_KEY.format(layer=layer)))
    if experts == "nf4":
        _check_quantised(model)
    model.requires_grad_(requires_grad=False)
    return LoadedModel(model=model, checkpoint=checkpoint, components=components(model))


def own_kernels(experts: str = "grouped_mm") -> dict[str, Any]:
    """Keywords of `from_pretrained` that override what config.json says of kernels, which may be code on the hub.

    `experts` is how the routed experts are computed.
    """
    return {"attn_implementation": "sdpa", "experts_implementation": {"": "eager", "text_config": experts}}


def load_processor(checkpoint: HubCheckpoint) -> AriaProcessor:
    """Tokenizer and processor of a checkpoint; no code from the hub runs and no torchvision is needed.

    Raises:
        UserError: tokenizer or image processor files are missing or damaged.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint.folder, trust_remote_code=False)
        if not hasattr(tokenizer, "image_token"):  # checkpoints from before transformers knew Aria
            named = {"image_token": "<|img|>"}
            tokenizer = AutoTokenizer.from_pretrained(
                checkpoint.folder, trust_remote_code=False, extra_special_tokens=named
            )
        image_processor = AriaImageProcessorPil.from_pretrained(checkpoint.folder)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"tokenizer or image processor can't be loaded ({error})",
            where=str(checkpoint.folder),
            fix="the folder needs tokenizer.json, tokenizer_config.json and preprocessor_config.json",
        ) from error
    template = tokenizer.chat_template
    file = checkpoint.folder / "chat_template.jinja"
    if file.is_file():
        template = file.read_text(encoding="utf-8")
    return AriaProcessor(image_processor=image_processor, tokenizer=tokenizer, chat_template=template)


def _check_complete(
    report: dict[str, Any], misshapen: list[tuple[str, tuple[int, ...], tuple[int, ...]]], checkpoint: HubCheckpoint
) -> None:
    shapes = [(name, tuple(shape), tuple(due)) for name, shape, due in report["mismatched_keys"]] + misshapen
    found = {
        "missing": report["missing_keys"],
        "unexpected": report["unexpected_keys"],
        "misshapen": [f"{name} {shape} instead of {due}" for name, shape, due in shapes],
    }
    problems = [_named(kind, sorted(keys)) for kind, keys in found.items() if keys]
    if problems:
        raise UserError(
            "the weights don't fit Aria's architecture: " + "; ".join(problems),
            where=str(checkpoint.folder),
            fix="download the checkpoint again, or check that config.json belongs to these weights",
        )


def _named(kind: str, keys: list[str]) -> str:
    more = f" and {len(keys) - NAMED_KEYS} more" if len(keys) > NAMED_KEYS else ""
    return f"{len(keys)} {kind} keys: {', '.join(keys[:NAMED_KEYS])}{more}"


def _check_quantised(model: AriaForConditionalGeneration) -> None:
    dense = unquantised_experts(model)
    if dense:
        raise UserError(
            f"{len(dense)} routed-expert tensor(s) are not NF4 although model.experts is nf4, such as {dense[0]}",
            fix="report this with your versions (aria-finetune doctor); model.experts: bf16 loads them dense",
        )


def vision_tokens(checkpoint: HubCheckpoint) -> dict[int, int]:
    """Image tokens of one tile by its side in pixels, from the projector's table of patches and queries."""
    patch = checkpoint.config.get("vision_config", {}).get("patch_size", DEFAULT_PATCH)
    table = checkpoint.config.get("projector_patch_to_query_dict") or DEFAULT_QUERIES
    return {math.isqrt(int(patches)) * patch: int(queries) for patches, queries in table.items()}


def pad_id(checkpoint: HubCheckpoint) -> int:
    """The id that fills up short rows; inside the embedding, which the hub tokenizer's `<pad>` is not."""
    text = checkpoint.config.get("text_config", {})
    for key in ("pad_token_id", "eos_token_id", "bos_token_id"):
        token = text.get(key)
        if isinstance(token, int) and 0 <= token < text.get("vocab_size", 0):
            return token
    return 0
