"""Load Aria for training: experts in 4 bit or dense, router in fp32, every key accounted for.

Knows the checkpoint and the modules. Knows nothing of adapters, data or the trainer.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from safetensors import safe_open
from torch import nn
from transformers import (
    AriaConfig,
    AriaForConditionalGeneration,
    AriaProcessor,
    GenerationConfig,
)
from transformers.models.aria.image_processing_pil_aria import AriaImageProcessorPil

from aria_finetune.errors import UserError
from aria_finetune.model.absent import Part, leave_out
from aria_finetune.model.attention import DOCUMENTS
from aria_finetune.model.components import components
from aria_finetune.model.experts import LEAN
from aria_finetune.model.filling import empty_aria, fillings, places
from aria_finetune.model.grouped_experts import GROUPED, limit_experts
from aria_finetune.model.holding import Holding
from aria_finetune.model.host_embedding import hold_embedding_on_host
from aria_finetune.model.host_experts import connect_experts, put_on_host
from aria_finetune.model.hub_layout import (
    INDEX,
    CheckpointSettings,
    HubCheckpoint,
    disk_name,
    memory_name,
    open_checkpoint,
)
from aria_finetune.model.nf4 import prepare_for_nf4, put_experts, put_linear, quantize_linear, unquantised_experts
from aria_finetune.model.nf4_checkpoint import check_files, is_nf4, packed_shapes, state_of, stored_hashes
from aria_finetune.model.norm import install_lean_norms
from aria_finetune.model.packed_linear import install_packed_linears
from aria_finetune.model.parts import Component
from aria_finetune.model.rope import Rope
from aria_finetune.model.router import install_float32_routers
from aria_finetune.model.settings import explained, load_tokenizer
from aria_finetune.model.weight_stream import read_ahead

Experts = Literal["nf4", "bf16", "fp32"]
Watch = Callable[[int, int], None]
"""Takes how many decoder layers are done, and of how many."""
DECODER_LAYER = re.compile(r"language_model\.model\.layers\.(\d+)\.")
GENERATION_CONFIG = "generation_config.json"
COMPUTED = ".rotary_emb.inv_freq"
"""The end of names that older checkpoints have for what is computed nowadays."""
ROUTER_KEY = "language_model.model.layers.{layer}.mlp.router.weight"
NAMED_KEYS = 5
"""How many keys an error names before it only counts the others."""


@dataclass(frozen=True)
class LoadedModel:
    """The frozen base model in evaluation mode, where it came from and what its parts take."""

    model: AriaForConditionalGeneration
    checkpoint: HubCheckpoint
    components: list[Component]


def load_model(  # noqa: PLR0913 (settings of a recipe, each by its name)
    path: str,
    *,
    revision: str | None = None,
    rope: Rope | None = None,
    experts: Experts = "nf4",
    dtype: torch.dtype = torch.bfloat16,
    device: str = "cpu",
    implementation: str = "grouped_mm",
    holding: Holding | None = None,
    without: Part | None = None,
    watch: Watch | None = None,
) -> LoadedModel:
    """Load an Aria checkpoint straight onto `device`, all weights frozen.

    Weights stream in a few megabytes at a time: neither the host nor the device holds more of a tensor in 16 bit than
    one expert beside what it becomes.

    Args:
        path: a folder in the hub layout, a hub id, or `tiny`.
        revision: branch, tag or commit of a hub id.
        rope: in the place of what config.json says.
        experts: `nf4` packs routed experts, attention and shared experts to 4 bit while the shards stream in;
            `bf16` and `fp32` keep everything dense.
        dtype: of the parts that are not 4-bit, and of the arithmetic.
        device: `cpu` or `cuda`.
        implementation: how the routed experts are computed, `grouped_mm`, `eager`, `lean` or `grouped`.
        holding: how the parts are held that can be held in more than one way; plainly, if it is left out.
        without: a part whose weights must be in the checkpoint, but are not read.
        watch: is told how many decoder layers are loaded, and of how many.

    Raises:
        UserError: the checkpoint is not a complete Aria in the hub layout, a routed expert is not NF4
            although NF4 was asked for, or the lm_head is the embedding as well and one is to be held in another way.
        ValueError: `holding` does not go with `experts` or `implementation`.
    """
    holding = holding or Holding()
    checkpoint = open_checkpoint(path, revision)
    packed = is_nf4(checkpoint)
    if packed and experts != "nf4":
        raise UserError(
            f"the checkpoint is NF4, and model.experts is {experts}",
            where=str(checkpoint.folder),
            fix="set model.experts=nf4, or name the original weights",
        )
    model = empty_model(checkpoint, dtype, implementation, rope)
    _check_holding(holding, experts, implementation, model, checkpoint)
    install_lean_norms(model)
    if experts == "nf4":
        prepare_for_nf4(model, dtype, head=holding.lm_head == "nf4")
        install_packed_linears(model)
    check_complete(model, checkpoint, packed=packed)
    if without is not None:
        leave_out(model, without)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))
    count = _LayerCount(model, checkpoint, watch)
    (_take if packed else _fill)(model, checkpoint, device, dtype, holding, count)
    if without != "decoder":
        model.tie_weights()
    _settle(model, holding, device)
    install_float32_routers(model, lambda layer: checkpoint.read(ROUTER_KEY.format(layer=layer)))
    if experts == "nf4":
        _check_quantised(model)
    model.requires_grad_(requires_grad=False)
    return LoadedModel(model=model, checkpoint=checkpoint, components=components(model))


def _settle(model: AriaForConditionalGeneration, holding: Holding, device: str) -> None:
    """What is held in another way than plainly, once its weights are there."""
    if holding.embedding == "host":
        hold_embedding_on_host(model)
    if holding.experts == "host":
        connect_experts(model, device)
    if holding.experts_at_a_time is not None:
        limit_experts(model, holding.experts_at_a_time)


def _check_holding(
    holding: Holding,
    experts: Experts,
    implementation: str,
    model: AriaForConditionalGeneration,
    checkpoint: HubCheckpoint,
) -> None:
    if experts != "nf4" and (holding.lm_head == "nf4" or holding.experts == "host"):
        raise ValueError("an lm_head in NF4 and experts in host memory need experts in NF4")
    if holding.experts == "host" and implementation not in (LEAN, GROUPED):
        raise ValueError(f"{implementation} takes all experts of a layer at once, which must be on the device")
    if holding.experts_at_a_time is not None and implementation != GROUPED:
        raise ValueError(f"{implementation} does not compute some experts at a time")
    if model.config.tie_word_embeddings and (holding.lm_head == "nf4" or holding.embedding == "host"):
        raise UserError(
            "the lm_head of this checkpoint is its embedding, which can't be NF4 or in host memory",
            where=str(checkpoint.folder / "config.json"),
            fix="set model.lm_head=dense model.embedding=device",
        )


def empty_model(
    checkpoint: HubCheckpoint, dtype: torch.dtype, implementation: str, rope: Rope | None = None
) -> AriaForConditionalGeneration:
    """The modules of a checkpoint without their weights, with its settings for generation; `rope` if not its own."""
    config = AriaConfig.from_pretrained(checkpoint.folder)
    if rope is not None:
        set_rope(config, rope)
    kernels = own_kernels(implementation)
    model = empty_aria(
        config, dtype, attention=kernels["attn_implementation"], experts=kernels["experts_implementation"]
    )
    model.name_or_path = model.config.name_or_path = str(checkpoint.folder)
    if (checkpoint.folder / GENERATION_CONFIG).is_file():
        model.generation_config = GenerationConfig.from_pretrained(checkpoint.folder)
    return model


def set_rope(config: AriaConfig, rope: Rope) -> None:
    """Have modules that are made of a configuration tell places apart in another way than it says."""
    text = config.text_config
    text.rope_parameters = {**text.rope_parameters, "rope_theta": rope.theta}
    text.max_position_embeddings = rope.positions


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
    model: AriaForConditionalGeneration,
    checkpoint: HubCheckpoint,
    device: str,
    dtype: torch.dtype,
    holding: Holding,
    count: _LayerCount,
) -> None:
    """Give a model weights that are not packed, packing them where that is wanted."""
    waiting = {disk_name(name): filling for name, filling in fillings(model, device, dtype, holding).items()}
    heights = {name: filling.height for name, filling in waiting.items() if name in checkpoint.stored}
    for piece in read_ahead(checkpoint, heights):
        waiting[piece.name].add(piece.start, piece.rows)
        if piece.start + len(piece.rows) == checkpoint.stored[piece.name].shape[0]:
            waiting[piece.name].finish()
            count(piece.name)


def _take(
    model: AriaForConditionalGeneration,
    checkpoint: HubCheckpoint,
    device: str,
    dtype: torch.dtype,
    holding: Holding,
    count: _LayerCount,
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
            (shard, home): stack.enter_context(safe_open(checkpoint.folder / shard, "pt", device=home))
            for shard in checkpoint.shards
            for home in {device, "cpu"}
        }

        def read(name: str, home: str = device) -> torch.Tensor:
            tensor: torch.Tensor = opened[checkpoint.stored[name].file, home].get_tensor(name)
            return tensor

        for full, module, name, kind in list(places(model)):
            stored = disk_name(full)
            if stored not in checkpoint.stored:
                continue  # tied
            match kind:
                case "experts" if holding.experts == "host":
                    put_on_host(module, name, *state_of(stored, partial(read, home="cpu"), dtype))
                case "experts":
                    put_experts(module, name, *state_of(stored, read, dtype))
                case "linear":
                    put_linear(module, *state_of(stored, read, dtype))
                case "head":  # which is dense in every file
                    put_linear(module, *quantize_linear(read(stored).to(dtype)))
                case "dense":
                    value = read(stored, holding.home(full, device)).to(dtype)
                    setattr(module, name, nn.Parameter(value, requires_grad=False))
            count(stored)


def layer_of(name: str) -> int | None:
    """The decoder layer that a weight of the hub layout belongs to."""
    found = DECODER_LAYER.match(name)
    return int(found[1]) if found else None


def own_kernels(experts: str = "grouped_mm") -> dict[str, Any]:
    """Keywords of `from_pretrained` that override what config.json says of kernels, which may be code on the hub.

    `experts` is how the routed experts are computed.
    """
    return {
        "attn_implementation": {"": "sdpa", "vision_config": "sdpa", "text_config": DOCUMENTS},
        "experts_implementation": {"": "eager", "vision_config": "eager", "text_config": experts},
    }


def load_processor(checkpoint: HubCheckpoint) -> AriaProcessor:
    """Tokenizer and processor of a checkpoint; no code from the hub runs and no torchvision is needed.

    Raises:
        UserError: tokenizer or image processor files are missing or damaged.
    """
    tokenizer = load_tokenizer(checkpoint)
    with explained(checkpoint.folder):
        image_processor = AriaImageProcessorPil.from_pretrained(checkpoint.folder)
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
            if kind in {"linear", "experts"}:
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


def hidden_size(checkpoint: CheckpointSettings) -> int:
    """Width of the decoder, and so of image features."""
    width: int = AriaConfig.from_pretrained(checkpoint.folder).text_config.hidden_size
    return width
