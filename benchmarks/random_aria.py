"""Aria with random weights, made in memory on the device it will run on: no checkpoint is read or written.

Every tensor is drawn from (seed, its name), so two processes that ask for the same seed hold the same weights.
4-bit weights are random bytes with scales that give them a standard deviation of 0.02. Routing is balanced by
construction, because with plain random weights it collapses to about 20 of 64 experts: token ids are given
experts in turn, and a token's embedding points at the router rows of its own. Knows nothing of how a path trains.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import bitsandbytes as bnb
import torch
from accelerate import init_empty_weights
from bitsandbytes.functional import QuantState
from torch import nn
from transformers import AriaConfig, AriaForConditionalGeneration, AriaTextConfig
from transformers.models.aria.modeling_aria import AriaExperts, AriaTextMoELayer
from transformers.models.idefics3.configuration_idefics3 import Idefics3VisionConfig

from aria_finetune.model.nf4 import BLOCK, EXPERT_TENSORS, double_quantised, put_linear
from aria_finetune.model.vision import normalise

Scale = Literal["full", "small"]
NF4_ROOT_MEAN_SQUARE = 0.517
"""Of the 16 code values of NF4, each as likely as the others."""
FIRST_TEXT_ID = 64
"""Below lie the control tokens; id 9 is the image token."""
IMAGE_TOKEN_ID = 9
TEXT_IDS = 4096
VOCABULARY: dict[Scale, int] = {"full": 100_352, "small": 768}
"""Of the real Aria, and of the tiny one, whose tokenizer a made checkpoint gets."""
STRENGTHS = (0.75, 1.1)
"""Weakest and strongest share of a token in the directions of its experts, beside its share in all the others."""
LOGIT_SPREAD = 2.0
"""Between the router logits of a token's first and last expert; the experts not chosen lie as far below."""
PROJECTOR_GAIN = 2.0

PutExperts = Callable[[AriaExperts, str, torch.Tensor, QuantState], None]
"""Puts packed bytes and their state into an expert module under a tensor name, as a path wants to have them."""


@dataclass(frozen=True)
class Batch:
    """One row. Tiles are (images, 3, side, side), uint8 and, as the stock processor would give them, bf16."""

    input_ids: torch.Tensor
    pixels: torch.Tensor | None
    normalised_pixels: torch.Tensor | None


def aria_config(scale: Scale, layers: int, *, images: bool, whole_vocabulary: bool = False) -> AriaConfig:
    """Aria's dimensions (`full`) or a sixteenth of them (`small`), with `layers` decoder layers.

    The vocabulary is short unless the whole is wanted, for where a step is measured neither embedding nor lm_head is.
    Without images the vision tower is a stub of one small layer, which is never called.
    """
    full = scale == "full"
    text = AriaTextConfig(
        vocab_size=VOCABULARY[scale] if whole_vocabulary else FIRST_TEXT_ID + TEXT_IDS,
        hidden_size=2560 if full else 256,
        intermediate_size=1664 if full else 128,
        num_hidden_layers=layers,
        num_attention_heads=20 if full else 4,
        num_key_value_heads=20 if full else 4,
        moe_num_experts=64,
        moe_topk=6,
        moe_num_shared_experts=2,
        max_position_embeddings=65536,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 5e6},
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    real_tower = full and images
    vision = Idefics3VisionConfig(
        hidden_size=1152 if real_tower else 64,
        intermediate_size=4304 if real_tower else 128,
        num_hidden_layers=27 if real_tower else 2,
        num_attention_heads=16 if real_tower else 4,
        image_size=980,
        patch_size=14,
    )
    return AriaConfig(
        text_config=text,
        vision_config=vision,
        image_token_index=IMAGE_TOKEN_ID,
        projector_patch_to_query_dict={1225: 128, 4900: 256},
    )


def empty_model(config: AriaConfig) -> AriaForConditionalGeneration:
    """The modules, with parameters that take no memory yet."""
    with init_empty_weights(include_buffers=False):
        model = AriaForConditionalGeneration(config)
    for parameter in model.parameters():  # `.to` would round the buffers of the rotary embedding too
        parameter.data = parameter.data.to(torch.bfloat16)
    return model


def fill(model: AriaForConditionalGeneration, device: str, seed: int, put_experts: PutExperts) -> None:
    """Give every parameter its random values on `device`.

    Args:
        model: from `empty_model`, its 4-bit linears already `Linear4bit`.
        device: `cpu` or `cuda`.
        seed: of all values.
        put_experts: called for the two tensors of every expert module.
    """
    text = model.config.text_config
    # 0.02 at Aria's size, its own initialisation; smaller dimensions need more for layers that do as much.
    deviation = 1 / math.sqrt(text.hidden_size)
    # torch's own layer of meta parameters would refuse `.to`; buffers are real and small.
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))
    for path, module in list(model.named_modules()):
        for name, parameter in list(module.named_parameters(recurse=False)):
            full_name = f"{path}.{name}"
            generator = generator_for(device, seed, full_name)
            if isinstance(module, AriaExperts) and name in EXPERT_TENSORS:
                put_experts(module, name, *random_nf4(parameter.shape, deviation, generator))
            elif isinstance(module, bnb.nn.Linear4bit) and name == "weight":
                put_linear(module, *random_nf4(parameter.shape, deviation, generator))
            else:
                wanted = _projector_deviation(full_name, parameter, text.num_hidden_layers) or deviation
                values = random_values(full_name, parameter, wanted, generator)
                setattr(module, name, nn.Parameter(values, requires_grad=False))
    _balance_routing(model, device, seed)
    model.tie_weights()


def router_weight(layer: int, config: AriaConfig, device: str, seed: int) -> torch.Tensor:
    """(experts, hidden), bf16: orthogonal rows, the same set in every layer in another order."""
    rows_EH = _directions(config, device, seed)
    order = torch.randperm(len(rows_EH), generator=generator_for(device, seed, f"router {layer}"), device=device)
    weakest, strongest = STRENGTHS
    text = config.text_config
    # What the strengths below leave of a token after the norm before the router.
    spread = (strongest - weakest) * math.sqrt(text.hidden_size / text.moe_topk) / math.sqrt(2)
    return (rows_EH[order] * (LOGIT_SPREAD / spread)).to(torch.bfloat16)


def random_batch(config: AriaConfig, tokens: int, images: int, tile: int, device: str, seed: int) -> Batch:
    """One row of `tokens` tokens, the first of them the images of `tile` pixels; other seeds give other ids and pixels."""
    generator = generator_for(device, seed, "batch")
    tokens_of_image = config.projector_patch_to_query_dict[(tile // config.vision_config.patch_size) ** 2]
    text = tokens - images * tokens_of_image
    start = int(torch.randint(TEXT_IDS, (1,), generator=generator, device=device))
    # Neighbouring ids take experts in turn: the load stays even however many tokens there are.
    offsets = (start + torch.randperm(text, generator=generator, device=device)) % TEXT_IDS
    image_ids = torch.full((images * tokens_of_image,), config.image_token_index, device=device)
    ids = torch.cat([image_ids, FIRST_TEXT_ID + offsets])[None]
    if not images:
        return Batch(ids, None, None)
    pixels = torch.randint(0, 256, (images, 3, tile, tile), generator=generator, device=device, dtype=torch.uint8)
    return Batch(ids, pixels, normalise(pixels, torch.bfloat16))


def generator_for(device: str, seed: int, name: str) -> torch.Generator:
    """The source of a tensor's random values, the same in every process."""
    return torch.Generator(device).manual_seed(zlib.crc32(f"{seed} {name}".encode()))


def random_nf4(shape: torch.Size, deviation: float, generator: torch.Generator) -> tuple[torch.Tensor, QuantState]:
    """Packed bytes and state of weights with a standard deviation, on the device of the generator."""
    device = generator.device
    packed = torch.randint(0, 256, (shape.numel() // 2, 1), generator=generator, device=device, dtype=torch.uint8)
    scale = torch.rand(shape.numel() // BLOCK, generator=generator, device=device)
    scale = scale.mul_(0.2).add_(0.9).mul_(deviation / NF4_ROOT_MEAN_SQUARE)
    return packed, double_quantised(scale, shape, torch.bfloat16)


def random_values(name: str, parameter: torch.Tensor, deviation: float, generator: torch.Generator) -> torch.Tensor:
    """Values for a dense parameter by its name: ones for norms, zeros for biases, else normally distributed."""
    device, dtype = generator.device, parameter.dtype
    if "norm" in name and name.endswith("weight"):
        return torch.ones(parameter.shape, device=device, dtype=dtype)
    if name.endswith("bias"):
        return torch.zeros(parameter.shape, device=device, dtype=dtype)
    return torch.randn(parameter.shape, generator=generator, device=device, dtype=dtype).mul_(deviation)


def _projector_deviation(name: str, parameter: nn.Parameter, layers: int) -> float | None:
    """Wider than elsewhere: else every query attends to all patches alike, and an image's tokens are all the same."""
    if ".multi_modal_projector." not in name:
        return None
    deviation = PROJECTOR_GAIN / math.sqrt(parameter.shape[-1])
    return deviation * math.sqrt(layers) if name.endswith("linear_out.weight") else deviation


def _directions(config: AriaConfig, device: str, seed: int) -> torch.Tensor:
    """(experts, hidden), fp32, orthonormal rows."""
    text = config.text_config
    generator = generator_for(device, seed, "directions")
    random_HE = torch.randn(text.hidden_size, text.moe_num_experts, generator=generator, device=device)
    return torch.linalg.qr(random_HE).Q.T.contiguous()


def _balance_routing(model: AriaForConditionalGeneration, device: str, seed: int) -> None:
    layers = [module for module in model.modules() if isinstance(module, AriaTextMoELayer)]
    for index, layer in enumerate(layers):
        weight = router_weight(index, model.config, device, seed)
        layer.router.weight = nn.Parameter(weight, requires_grad=False)
    embedding = model.get_input_embeddings().weight
    rows = embedding[FIRST_TEXT_ID : FIRST_TEXT_ID + TEXT_IDS]
    rows.copy_(_routed_embedding(model.config, device, seed)[: len(rows)])


def _routed_embedding(config: AriaConfig, device: str, seed: int) -> torch.Tensor:
    """(text ids, hidden), fp32: half a token's square norm in its experts' directions, half across them all.

    A layer adds a standard deviation of about 0.5. Growing with the square root of the layers, the embedding
    stays larger than their sum, and not so much larger that the layers would hardly show in the gradients.
    """
    rows_EH = _directions(config, device, seed)
    experts, hidden = rows_EH.shape
    top_k = config.text_config.moe_topk
    noise_VH = torch.randn(TEXT_IDS, hidden, generator=generator_for(device, seed, "embedding"), device=device)
    noise_VH -= noise_VH @ rows_EH.T @ rows_EH
    chosen_VK = torch.arange(TEXT_IDS * top_k, device=device).view(TEXT_IDS, top_k) % experts
    strength_K = torch.linspace(*STRENGTHS, top_k, device=device) * math.sqrt(hidden / top_k)
    strength_VE = torch.zeros(TEXT_IDS, experts, device=device)
    strength_VE.scatter_(1, chosen_VK, strength_K.expand(TEXT_IDS, top_k))
    return (noise_VH + strength_VE @ rows_EH) * math.sqrt(config.text_config.num_hidden_layers)
