"""Load Aria for training: experts in 4 bit or dense, router in fp32, every key accounted for.

Knows the checkpoint and the modules. Knows nothing of adapters, data or the trainer.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
from safetensors import safe_open
from torch import nn
from transformers import (
    AriaConfig,
    AriaForConditionalGeneration,
    AriaProcessor,
    AutoTokenizer,
    GenerationConfig,
)
from transformers.models.aria.image_processing_pil_aria import AriaImageProcessorPil

from aria_finetune.errors import UserError
from aria_finetune.model import experts as _registered  # noqa: F401
from aria_finetune.model.absent import Part, leave_out
from aria_finetune.model.components import Component, components
from aria_finetune.model.filling import empty_aria, fillings, places
from aria_finetune.model.hub_layout import INDEX, HubCheckpoint, disk_name, memory_name, open_checkpoint
from aria_finetune.model.nf4 import prepare_for_nf4, put_experts, put_linear, unquantised_experts
from aria_finetune.model.nf4_checkpoint import check_files, is_nf4, packed_shapes, state_of, stored_hashes
from aria_finetune.model.router import install_float32_routers
from aria_finetune.model.weight_stream import read_ahead

Experts = Literal["nf4", "bf16", "fp32"]
Watch = Callable[[int, int], None]
"""Takes how many decoder layers are done, and of how many."""
DECODER_LAYER = re.compile(r"language_model\.model\.layers\.(\d+)\.")
GENERATION_CONFIG = "generation_config.json"
COMPUTED = ".rotary_emb.inv_freq"
"""The end of names that older checkpoints have for what is computed nowadays."""
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
    without: Part | None = None,
    watch: Watch | None = None,
) -> LoadedModel:
    """Load an Aria checkpoint straight onto `device`, all weights frozen.

    Weights stream in a few megabytes at a time: neither the host nor the device holds more of a tensor in 16 bit than
    one expert beside what it becomes.

    Args:
        path: a folder in the hub layout, a hub id, or `tiny`.
        revision: branch, tag or commit of a hub id.
        experts: `nf4` packs routed experts, attention and shared experts to 4 bit while the shards stream in;
            `bf16` and `fp32` keep everything dense.
        dtype: of the parts that are not 4-bit, and of the arithmetic.
        device: `cpu` or `cuda`.
        implementation: how the routed experts are computed, `grouped_mm` or `eager`.
        without: a part whose weights must be in the checkpoint, but are not read.
        watch: is told how many decoder layers are loaded, and of how many.

    Raises:
        UserError: the checkpoint is not a complete Aria in the hub layout, or a routed expert is not NF4
            although NF4 was asked for.
    """
    checkpoint = open_checkpoint(path, revision)
    packed = is_nf4(checkpoint)
    if packed and experts != "nf4":
        raise UserError(
            f"the checkpoint is NF4, and model.experts is {experts}",
            where=str(checkpoint.folder),
            fix="set model.experts=nf4, or name the original weights",
        )
    model = empty_model(checkpoint, dtype, implementation)
    if experts == "nf4":
        prepare_for_nf4(model, dtype)
    check_complete(model, checkpoint, packed=packed)
    if without is not None:
        leave_out(model, without)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))
    (_take if packed else _fill)(model, checkpoint, device, dtype, _LayerCount(model, checkpoint, watch))
    if without != "decoder":
        model.tie_weights()
    install_float32_routers(model, lambda layer: checkpoint.read(ROUTER_KEY.format(layer=layer)))
    if experts == "nf4":
        _check_quantised(model)
    model.requires_grad_(requires_grad=False)
    return LoadedModel(model=model, checkpoint=checkpoint, components=components(model))


def empty_model(checkpoint: HubCheckpoint, dtype: torch.dtype, implementation: str) -> AriaForConditionalGeneration:
    """The modules of a checkpoint without their weights, with its settings for generation."""
    config = AriaConfig.from_pretrained(checkpoint.folder)
    kernels = own_kernels(implementation)
    model = empty_aria(
        config, dtype, attention=kernels["attn_implementation"], experts=kernels["experts_implementation"]
    )
    model.name_or_path = model.config.name_or_path = str(checkpoint.folder)
    if (checkpoint.folder / GENERATION_CONFIG).is_file():
        model.generation_config = GenerationConfig.from_pretrained(checkpoint.folder)
    return model


class _LayerCount:
    """Counts decoder layers of which all weights are there."""

    def __init__(self, model: AriaForConditionalGeneration, checkpoint: HubCheckpoint, watch: Watch | None) -> None:
        names = (disk_name(name) for name, _ in model.named_parameters())
        self._left = Counter(layer_of(name) for name in names if name in checkpoint.stored)
        self._layers = model.config.text_config.num_hidden_layers
        self._watch = watch

    def __call__(self, name: str) -> None:
        """The weight with this name on the disk is there."""
        self._left[layer_of(name)] -= 1
        if self._watch is not None:
            self._watch(sum(self._left[layer] == 0 for layer in range(self._layers)), self._layers)


def _fill(
    model: AriaForConditionalGeneration, checkpoint: HubCheckpoint, device: str, dtype: torch.dtype, count: _LayerCount
) -> None:
    """Give a model weights that are not packed, packing them where that is wanted."""
    waiting = {disk_name(name): filling for name, filling in fillings(model, device, dtype).items()}
    heights = {name: filling.height for name, filling in waiting.items() if name in checkpoint.stored}
    for piece in read_ahead(checkpoint, heights):
        waiting[piece.name].add(piece.start, piece.rows)
        if piece.start + len(piece.rows) == checkpoint.stored[piece.name].shape[0]:
            waiting[piece.name].finish()
            count(piece.name)


def _take(
    model: AriaForConditionalGeneration, checkpoint: HubCheckpoint, device: str, dtype: torch.dtype, count: _LayerCount
) -> None:
    """Give a model the weights of an NF4 checkpoint; on a CPU they stay in the file, which is mapped into memory."""
    check_files(
        checkpoint.folder,
        stored_hashes(checkpoint, INDEX, checkpoint.shards),
        "files of the NF4 checkpoint are damaged",
        "make it again with `aria-finetune quantize`",
    )
    with ExitStack() as stack:
        opened = {
            shard: stack.enter_context(safe_open(checkpoint.folder / shard, "pt", device=device))
            for shard in checkpoint.shards
        }

        def read(name: str) -> torch.Tensor:
            tensor: torch.Tensor = opened[checkpoint.stored[name].file].get_tensor(name)
            return tensor

        for full, module, name, kind in list(places(model)):
            stored = disk_name(full)
            if stored not in checkpoint.stored:
                continue  # tied
            match kind:
                case "experts":
                    put_experts(module, name, *state_of(stored, read, dtype))
                case "linear":
                    put_linear(module, *state_of(stored, read, dtype))
                case "dense":
                    setattr(module, name, nn.Parameter(read(stored).to(dtype), requires_grad=False))
            count(stored)


def layer_of(name: str) -> int | None:
    """The decoder layer that a weight of the hub layout belongs to."""
    found = DECODER_LAYER.match(name)
    return int(found[1]) if found else None


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


def check_complete(model: AriaForConditionalGeneration, checkpoint: HubCheckpoint, *, packed: bool = False) -> None:
    """Compare names and shapes of a checkpoint with those of a model, before any weight is read.

    Raises:
        UserError: weights are missing, unexpected or misshapen; they are named.
    """
    due: dict[str, tuple[int, ...] | None] = {name: tuple(value.shape) for name, value in model.named_parameters()}
    there = {memory_name(name): tensor.shape for name, tensor in checkpoint.stored.items()}
    if packed:
        for full, module, name, kind in places(model):
            if kind != "dense":
                due |= packed_shapes(full, getattr(module, name).shape)
    tied = set(model.all_tied_weights_keys) if model.config.tie_word_embeddings else set()
    found = {
        "missing": [name for name in due if name not in there and name not in tied],
        "unexpected": [name for name in there if name not in due and not name.endswith(COMPUTED)],
        "misshapen": [
            f"{name} {there[name]} instead of {shape}"
            for name, shape in due.items()
            if shape is not None and there.get(name, shape) != shape
        ],
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


def hidden_size(checkpoint: HubCheckpoint) -> int:
    """Width of the decoder, and so of image features."""
    width: int = AriaConfig.from_pretrained(checkpoint.folder).text_config.hidden_size
    return width


def pad_id(checkpoint: HubCheckpoint) -> int:
    """The id that fills up short rows; inside the embedding, which the hub tokenizer's `<pad>` is not."""
    text = checkpoint.config.get("text_config", {})
    for key in ("pad_token_id", "eos_token_id", "bos_token_id"):
        token = text.get(key)
        if isinstance(token, int) and 0 <= token < text.get("vocab_size", 0):
            return token
    return 0
