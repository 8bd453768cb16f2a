"""Routed experts in NF4: a quantiser, registered with transformers, that acts while the shards stream in.

transformers' own 4-bit loading converts `nn.Linear` only and leaves Aria's 3-D expert tensors, 90% of the
model, in 16 bit. This one packs them too (NF4, arXiv 2305.14314, blocks of 64, double quantisation), and the
attention and shared-expert linears as bitsandbytes `Linear4bit`. Vision tower, projector, embedding and
lm_head stay as they are. Knows nothing of LoRA or training.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import bitsandbytes as bnb
import torch
from bitsandbytes.functional import QuantState, get_4bit_type, quantize_4bit, quantize_blockwise
from bitsandbytes.nn.parametrize import replace_parameter_4bit_prequantized
from torch import nn
from transformers import BitsAndBytesConfig
from transformers.integrations.bitsandbytes import Bnb4bitQuantize
from transformers.models.aria.modeling_aria import AriaExperts
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer
from transformers.quantizers.quantizers_utils import get_module_from_name

METHOD = "aria_nf4"
EXPERT_TENSORS = ("gate_up_proj", "down_proj")
UNQUANTISED = ["lm_head", "model.vision_tower", "model.multi_modal_projector"]
BLOCK = 64
NESTED_BLOCK = 256
_LOAD_FLAGS = ("load_in_4bit", "load_in_8bit", "_load_in_4bit", "_load_in_8bit")


def quantize_experts(weight_EIO: torch.Tensor) -> tuple[torch.Tensor, QuantState]:
    """NF4 with double quantisation of a stack of experts, one expert at a time.

    Bit-identical to bitsandbytes' `quantize_4bit` of the whole stack (no block of 64 crosses an expert), with
    the scratch memory of one expert instead of all.

    Args:
        weight_EIO: (experts, in, out), bf16 or fp32, `in * out` a multiple of 64.

    Returns:
        The packed bytes, uint8 (experts * in * out / 2, 1), and the state that dequantises them to
        `weight_EIO.shape` in `weight_EIO.dtype`.

    Raises:
        ValueError: an expert's size is not a multiple of 64.
    """
    if weight_EIO[0].numel() % BLOCK:
        raise ValueError(f"an expert of {weight_EIO[0].numel()} weights does not divide into blocks of {BLOCK}")
    packed, scales = [], []
    for expert in weight_EIO:
        data, state = quantize_4bit(expert.contiguous(), blocksize=BLOCK, quant_type="nf4")
        packed.append(data)
        scales.append(state.absmax)
    return torch.cat(packed), double_quantised(torch.cat(scales), weight_EIO.shape, weight_EIO.dtype)


def double_quantised(scale: torch.Tensor, shape: torch.Size, dtype: torch.dtype) -> QuantState:
    """State of NF4 weights whose scales are themselves quantised, to 8 bit in blocks of 256.

    Args:
        scale: fp32 (weights / 64), the largest magnitude of every block of 64 weights.
        shape: of the dequantised weights.
        dtype: of the dequantised weights.
    """
    offset = scale.mean()
    nested_scale, nested_state = quantize_blockwise(scale - offset, blocksize=NESTED_BLOCK)
    return QuantState(
        absmax=nested_scale,
        shape=shape,
        dtype=dtype,
        blocksize=BLOCK,
        code=get_4bit_type("nf4", device=scale.device, blocksize=BLOCK),
        quant_type="nf4",
        offset=offset,
        state2=nested_state,
    )


@register_quantization_config(METHOD)
class AriaNF4Config(BitsAndBytesConfig):  # type: ignore[misc]
    """NF4 with double quantisation for the decoder of Aria; `compute_dtype` is what matmuls run in."""

    def __init__(self, compute_dtype: torch.dtype = torch.bfloat16, **_: Any) -> None:
        super().__init__(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=compute_dtype,
            llm_int8_skip_modules=list(UNQUANTISED),
        )
        self.quant_method = METHOD

    def to_dict(self) -> dict[str, Any]:
        """Plain values; without the flags by which transformers' own 4-bit quantiser would claim the model."""
        return {key: value for key, value in super().to_dict().items() if key not in _LOAD_FLAGS}

    def to_diff_dict(self) -> dict[str, Any]:
        """The same as `to_dict`: every value is kept."""
        return self.to_dict()


class _QuantizeOnLoad(Bnb4bitQuantize):  # type: ignore[misc]
    """The step of transformers' weight loading that turns one tensor from a shard into its 4-bit form."""

    def convert(
        self,
        input_dict: dict[str, Any],
        full_layer_name: str | None = None,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        converted: dict[str, Any] = {}
        for name, value in input_dict.items():
            module, _ = get_module_from_name(model, name)
            if not isinstance(module, AriaExperts):
                converted |= super().convert({name: value}, full_layer_name=full_layer_name, model=model, **kwargs)
                continue
            packed, state = quantize_experts(value[0] if isinstance(value, list) else value)
            converted[name] = bnb.nn.Params4bit(
                packed,
                requires_grad=False,
                quant_state=state,
                quant_type="nf4",
                blocksize=BLOCK,
                compress_statistics=True,
                bnb_quantized=True,
            )
            module._is_hf_initialized = True  # noqa: SLF001 (transformers' own flag against re-initialising)
        return converted


@register_quantizer(METHOD)
class AriaNF4Quantizer(Bnb4BitHfQuantizer):  # type: ignore[misc]
    """transformers' hook into loading: which tensors become 4-bit, and what is done once all are there."""

    def param_needs_quantization(self, model: nn.Module, param_name: str, **kwargs: Any) -> bool:
        """Expert stacks, and what the stock quantiser takes (`Linear4bit` weights)."""
        module, tensor = get_module_from_name(model, param_name)
        if isinstance(module, AriaExperts):
            return tensor in EXPERT_TENSORS
        return bool(super().param_needs_quantization(model, param_name, **kwargs))

    def get_quantize_ops(self) -> _QuantizeOnLoad:
        """The conversion that replaces the stock one."""
        return _QuantizeOnLoad(self)

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        for module in model.modules():
            if isinstance(module, AriaExperts):
                _dequantise_on_access(module)
            elif isinstance(module, bnb.nn.Linear4bit):
                # On AVX512-BF16 processors one forward without grad repacks the weight, and gradients after
                # it are wrong without a word (bitsandbytes 0.50, nn/modules.py, Linear4bit.forward).
                module.support_avx512bf16_for_cpu = False
        processed: nn.Module = super()._process_model_after_weight_loading(model, **kwargs)
        return processed


def _dequantise_on_access(experts: AriaExperts) -> None:
    """Make `experts.gate_up_proj` and `.down_proj` read as dense tensors, dequantised when used."""
    for name in EXPERT_TENSORS:
        parameter = getattr(experts, name)
        state = getattr(parameter, "quant_state", None)
        if state is None:
            continue  # `unquantised_experts` names it, with its layer
        setattr(experts, name, nn.Parameter(parameter.data, requires_grad=False))
        replace_parameter_4bit_prequantized(experts, name, state.as_dict(packed=True), parameter.device)


def expert_state(experts: AriaExperts, name: str) -> tuple[torch.Tensor, QuantState] | None:
    """Packed bytes and quantisation state of an expert stack, or None where it is dense."""
    parametrisations = getattr(experts, "parametrizations", {})
    if name not in parametrisations:
        return None
    return parametrisations[name].original, parametrisations[name][0].quant_state


def misshapen_weights(model: nn.Module) -> list[tuple[str, tuple[int, ...], tuple[int, ...]]]:
    """Name, shape and due shape of every 4-bit weight that does not fit its module.

    transformers compares the shapes of dense weights only: another shape in 4 bit would load without a word.
    """
    packed = [found for path, module in model.named_modules() for found in _packed(path, module)]
    return [(name, tuple(state.shape), due) for name, state, due in packed if tuple(state.shape) != due]


def _packed(path: str, module: nn.Module) -> Iterator[tuple[str, QuantState, tuple[int, ...]]]:
    """Name, quantisation state and due shape of the 4-bit weights that `module` itself holds."""
    if isinstance(module, AriaExperts):
        due_sides = ((module.hidden_dim, 2 * module.intermediate_dim), (module.intermediate_dim, module.hidden_dim))
        for tensor, sides in zip(EXPERT_TENSORS, due_sides, strict=True):
            found = expert_state(module, tensor)
            if found is not None:
                yield f"{path}.{tensor}", found[1], (module.num_experts, *sides)
    elif isinstance(module, bnb.nn.Linear4bit) and hasattr(module.weight, "quant_state"):
        yield f"{path}.weight", module.weight.quant_state, (module.out_features, module.in_features)


def unquantised_experts(model: nn.Module) -> list[str]:
    """Names of routed-expert tensors that are not NF4 with double quantisation."""
    names = []
    for path, module in model.named_modules():
        if not isinstance(module, AriaExperts):
            continue
        for tensor in EXPERT_TENSORS:
            found = expert_state(module, tensor)
            if found is None or found[0].dtype != torch.uint8 or found[1].quant_type != "nf4" or not found[1].nested:
                names.append(f"{path}.{tensor}")
    return names
