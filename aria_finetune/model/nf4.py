"""Aria's decoder in NF4: routed experts, attention and shared experts packed while their weights stream in.

transformers' own 4-bit loading converts `nn.Linear` only and leaves Aria's 3-D expert tensors, 90% of the
model, in 16 bit; and it reads a whole tensor before it packs it, of which one is 1.1 GB here. These pack an expert at a
time (NF4, arXiv 2305.14314, blocks of 64, double quantisation), and the attention and shared-expert linears as
bitsandbytes `Linear4bit`. Vision tower, projector and embedding stay as they are, and so does the lm_head unless it is asked
for. Knows nothing of LoRA or training, nor of where weights come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import bitsandbytes as bnb
import torch
from bitsandbytes.functional import (
    QuantState,
    dequantize_4bit,
    dequantize_blockwise,
    get_4bit_type,
    quantize_4bit,
    quantize_blockwise,
)
from bitsandbytes.nn.parametrize import replace_parameter_4bit_prequantized
from torch import nn
from transformers import BitsAndBytesConfig
from transformers.models.aria.modeling_aria import AriaExperts
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer

from aria_finetune.errors import UserError

METHOD = "aria_nf4"
EXPERT_TENSORS = ("gate_up_proj", "down_proj")
HEAD = "lm_head"
HOST = "host_experts"
"""The attribute of an experts module that has them where they are in host memory."""
UNQUANTISED = [HEAD, "model.vision_tower", "model.multi_modal_projector"]
BLOCK = 64
NESTED_BLOCK = 256
_LOAD_FLAGS = ("load_in_4bit", "load_in_8bit", "_load_in_4bit", "_load_in_8bit")


class Packer:
    """NF4 with double quantisation of a tensor whose rows (of the first dimension) come some at a time.

    Bit-identical to bitsandbytes' `quantize_4bit` of the whole tensor (no block of 64 crosses a row), with the scratch
    memory of those rows instead of all. A row is an expert of a stack of experts, or a token of the lm_head.

    Args:
        shape: (rows, ...), the size of a row a multiple of 64.
        dtype: of the weights, packed and dequantised: bf16 or fp32.
        device: where the packed bytes are to be.
        workplace: the device that packs them, the same if it is left out; the bytes are the same too.

    Raises:
        ValueError: the size of a row is not a multiple of 64.
    """

    def __init__(
        self,
        shape: torch.Size,
        dtype: torch.dtype,
        device: torch.device | str,
        workplace: torch.device | str | None = None,
    ) -> None:
        weights = _row_size(shape)
        self._shape, self._dtype, self._workplace = shape, dtype, workplace or device
        self._packed = torch.empty(shape[0], weights // 2, dtype=torch.uint8, device=device)
        self._scales = torch.empty(shape[0], weights // BLOCK, device=device)

    def add(self, start: int, rows: torch.Tensor) -> None:
        """Pack some rows from `start` on, which may be on another device or of another dtype."""
        values = rows.to(self._workplace, self._dtype).contiguous()
        data, state = quantize_4bit(values, blocksize=BLOCK, quant_type="nf4")
        taken = slice(start, start + len(rows))
        self._packed[taken].copy_(data.view(len(rows), -1))
        self._scales[taken].copy_(state.absmax.view(len(rows), -1))

    def finish(self) -> tuple[torch.Tensor, QuantState]:
        """The packed bytes, uint8 (experts * in * out / 2, 1), and the state that dequantises them."""
        scales, self._scales = self._scales, torch.empty(0)
        return self._packed.view(-1, 1), double_quantised(scales.view(-1), self._shape, self._dtype)


def quantize_experts(weight_EIO: torch.Tensor) -> tuple[torch.Tensor, QuantState]:
    """NF4 with double quantisation of a stack of experts that is in memory; see `Packer`."""
    packer = Packer(weight_EIO.shape, weight_EIO.dtype, weight_EIO.device)
    for index in range(len(weight_EIO)):
        packer.add(index, weight_EIO[index : index + 1])
    return packer.finish()


class PackedRows:
    """A weight in NF4 of which some rows (of the first dimension) are dequantised, to the same bits as all at once.

    Raises:
        ValueError: the size of a row is not a multiple of 64.
    """

    def __init__(self, packed: torch.Tensor, state: QuantState) -> None:
        weights = _row_size(state.shape)
        self._packed = packed.view(-1, weights // 2)
        self._scales = read_scales(state, 0, state.absmax.numel()).view(-1, weights // BLOCK)
        self._state = state

    def __len__(self) -> int:
        """How many rows there are."""
        return len(self._packed)

    def __getitem__(self, rows: Any) -> torch.Tensor:
        """Rows (n, ...), by a slice or by a tensor of n indices, in the dtype they were quantised from."""
        packed, scales = self._packed[rows], self._scales[rows]
        shape = torch.Size([len(packed), *self._state.shape[1:]])
        if not shape.numel():
            return torch.empty(shape, dtype=self._state.dtype, device=packed.device)
        state = QuantState(
            absmax=scales.reshape(-1),
            shape=shape,
            dtype=self._state.dtype,
            blocksize=BLOCK,
            code=self._state.code,
            quant_type="nf4",
        )
        weight: torch.Tensor = dequantize_4bit(packed.reshape(-1, 1), state)
        return weight


def read_scales(state: QuantState, start: int, stop: int) -> torch.Tensor:
    """The scales of some blocks of 64 weights in fp32, to the same bits as all at once; their own blocks are of 256."""
    nested = state.state2
    first, last = start // nested.blocksize, -(-stop // nested.blocksize)
    absmax = state.absmax.view(-1)[first * nested.blocksize : last * nested.blocksize]
    scales: torch.Tensor = dequantize_blockwise(
        absmax, absmax=nested.absmax[first:last], code=nested.code, blocksize=nested.blocksize
    )
    scales += state.offset
    return scales[start - first * nested.blocksize : stop - first * nested.blocksize]


def _row_size(shape: torch.Size) -> int:
    weights = shape[1:].numel()
    if weights % BLOCK:
        raise ValueError(f"a row of {weights} weights does not divide into blocks of {BLOCK}")
    return weights


def quantize_linear(weight_OI: torch.Tensor) -> tuple[torch.Tensor, QuantState]:
    """NF4 with double quantisation of the weight of a linear layer, as bitsandbytes has it."""
    packed, state = quantize_4bit(weight_OI.contiguous(), blocksize=BLOCK, compress_statistics=True, quant_type="nf4")
    return packed, state


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
    """NF4 with double quantisation for the decoder of Aria; `compute_dtype` is what matmuls run in.

    `unquantised` names the modules that stay as they are.
    """

    def __init__(
        self, compute_dtype: torch.dtype = torch.bfloat16, unquantised: Sequence[str] = tuple(UNQUANTISED), **_: Any
    ) -> None:
        super().__init__(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=compute_dtype,
            llm_int8_skip_modules=list(unquantised),
        )
        self.quant_method = METHOD

    def to_dict(self) -> dict[str, Any]:
        """Plain values; without the flags by which transformers' own 4-bit quantiser would claim the model."""
        return {key: value for key, value in super().to_dict().items() if key not in _LOAD_FLAGS}

    def to_diff_dict(self) -> dict[str, Any]:
        """The same as `to_dict`: every value is kept."""
        return self.to_dict()


@register_quantizer(METHOD)
class AriaNF4Quantizer(Bnb4BitHfQuantizer):  # type: ignore[misc]
    """What transformers, PEFT and TRL ask a quantised model for; weights are packed by `load_model`."""

    def validate_environment(self, *_: Any, **__: Any) -> None:
        """Refuse `from_pretrained`, which calls this before it reads weights and would leave experts in 16 bit."""
        raise UserError(
            "transformers can't load Aria's experts in NF4", fix="use aria_finetune.model.loading.load_model"
        )


def prepare_for_nf4(model: nn.Module, compute_dtype: torch.dtype, *, head: bool = False) -> None:
    """Make the linears of an Aria that is still empty `Linear4bit`, where NF4 is for them; with `head` the lm_head too."""
    unquantised = [name for name in UNQUANTISED if not head or name != HEAD]
    quantiser = AriaNF4Quantizer(AriaNF4Config(compute_dtype, unquantised))
    quantiser.preprocess_model(model, device_map={})
    quantiser.postprocess_model(model)
    model.hf_quantizer = quantiser
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            # On AVX512-BF16 processors one forward without grad repacks the weight, and gradients after
            # it are wrong without a word (bitsandbytes 0.50, nn/modules.py, Linear4bit.forward).
            module.support_avx512bf16_for_cpu = False


def put_experts(experts: AriaExperts, name: str, packed: torch.Tensor, state: QuantState) -> None:
    """Make `experts.gate_up_proj` or `.down_proj` read as a dense tensor that is dequantised when used."""
    setattr(experts, name, nn.Parameter(packed, requires_grad=False))
    replace_parameter_4bit_prequantized(experts, name, state.as_dict(packed=True), packed.device)


def put_linear(linear: bnb.nn.Linear4bit, packed: torch.Tensor, state: QuantState) -> None:
    """Give a linear layer its packed weight."""
    linear.weight = bnb.nn.Params4bit(
        packed,
        requires_grad=False,
        quant_state=state,
        quant_type="nf4",
        blocksize=BLOCK,
        module=linear,
        bnb_quantized=True,
    )
    linear.quant_state = state


def expert_state(experts: AriaExperts, name: str) -> tuple[torch.Tensor, QuantState] | None:
    """Packed bytes and quantisation state of an expert stack where it is held, or None where it is dense."""
    if HOST in experts.__dict__:
        found: tuple[torch.Tensor, QuantState] = experts.__dict__[HOST].stacks[name]
        return found
    parametrisations = getattr(experts, "parametrizations", {})
    if name not in parametrisations:
        return None
    return parametrisations[name].original, parametrisations[name][0].quant_state


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
