"""Weights of experts by pieces: the values of bitsandbytes, and products that do not depend on how they were cut."""

from __future__ import annotations

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit

from aria_finetune.model import expert_weights
from aria_finetune.model.expert_weights import (
    DenseExperts,
    PackedExperts,
    Weight,
    arithmetic,
    multiply,
    multiply_transposed,
    rounded_up,
)
from aria_finetune.model.nf4 import quantize_experts

CPU = torch.device("cpu")
SHAPES = [(3, 64, 128), (5, 64, 64), (3, 8, 24)]
"""In the last, blocks of scales cross experts, and blocks of weights cross rows."""


def stack(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(dtype)


def rows(count: int, width: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(4)).to(dtype)


def distance(found: torch.Tensor, due: torch.Tensor) -> float:
    return float((found.double() - due.double()).norm() / due.double().norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_an_expert_is_dequantised_to_the_same_bits(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    packed, state = quantize_experts(stack(shape, dtype))
    whole_EIO = dequantize_4bit(packed, state)
    experts = PackedExperts(packed, state)
    for expert in range(shape[0]):
        found_IO = experts[expert].read(0, shape[1], dtype)
        assert found_IO.dtype == dtype
        assert torch.equal(found_IO, whole_EIO[expert])
        assert torch.equal(experts[expert].read(0, shape[1], torch.float32).to(dtype), whole_EIO[expert])


@pytest.mark.parametrize("shape", SHAPES)
def test_pieces_are_the_rows_of_the_whole(shape: tuple[int, ...]) -> None:
    weight = stack(shape)
    for experts in (DenseExperts(weight), PackedExperts(*quantize_experts(weight))):
        for expert in range(shape[0]):
            whole_IO = experts[expert].read(0, shape[1], torch.float32)
            assert experts[expert].shape == whole_IO.shape == shape[1:]
            for start in range(0, shape[1], 8):  # 8 rows of 24 are three blocks
                assert torch.equal(experts[expert].read(start, start + 8, torch.float32), whole_IO[start : start + 8])


@pytest.mark.parametrize("count", [1, 7, 8, 9, 33])
@pytest.mark.parametrize("piece_bytes", [1, 5000, 1 << 20])
@pytest.mark.parametrize("packed", [False, True])
def test_products_are_those_of_fp64(
    count: int, piece_bytes: int, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expert_weights, "PIECE_BYTES", piece_bytes)
    weight_EIO = stack((3, 72, 24))
    experts = PackedExperts(*quantize_experts(weight_EIO)) if packed else DenseExperts(weight_EIO)
    exact_IO = experts[1].read(0, 72, torch.float32).double()
    found_NO = multiply(rows(count, 72), experts[1])
    found_NI = multiply_transposed(rows(count, 24), experts[1])
    assert (found_NO.shape, found_NI.shape) == ((count, 24), (count, 72))
    assert distance(found_NO, rows(count, 72).double() @ exact_IO) < 5e-7
    assert distance(found_NI, rows(count, 24).double() @ exact_IO.T) < 5e-7


@pytest.mark.parametrize("count", [1, 9, 33])
def test_products_of_16_bit_are_those_of_fp64(count: int) -> None:
    """As on a CPU with matrix instructions: whole weights, and rows of zeros that change no row."""
    weight = DenseExperts(stack((1, 64, 32), torch.bfloat16))[0]
    exact_IO = weight.read(0, 64, torch.float32).double()
    for found, due in (
        (multiply(rows(count, 64, torch.bfloat16), weight), rows(count, 64, torch.bfloat16).double() @ exact_IO),
        (
            multiply_transposed(rows(count, 32, torch.bfloat16), weight),
            rows(count, 32, torch.bfloat16).double() @ exact_IO.T,
        ),
    ):
        assert found.dtype == torch.bfloat16
        assert found.shape == due.shape
        assert distance(found, due) < 4e-3


def test_pieces_are_as_small_as_they_should_be_and_whole_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[int, int]] = []

    class Watched:
        shape = torch.Size([72, 24])

        def read(self, start: int, stop: int, dtype: torch.dtype) -> torch.Tensor:
            read.append((start, stop))
            return torch.zeros(stop - start, 24, dtype=dtype)

    weight: Weight = Watched()
    monkeypatch.setattr(expert_weights, "PIECE_BYTES", 24 * 4 * 30)  # 30 rows, of which every eight are whole blocks
    multiply(rows(5, 72), weight)
    multiply_transposed(rows(5, 24), weight)
    multiply_transposed(rows(50, 24), weight)
    assert read == [(0, 24), (24, 48), (48, 72)] * 3
    read.clear()
    multiply(rows(5, 72, torch.bfloat16), weight)  # sums of pieces would be rounded
    multiply_transposed(rows(5, 24, torch.bfloat16), weight)
    assert read == [(0, 72)] * 2


def test_only_matrix_instructions_make_a_cpu_compute_in_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(dtype: torch.dtype, device: torch.device = CPU) -> torch.dtype:
        return arithmetic(dtype, device)

    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True, "amx_bf16": False}, raising=False)
    assert (found(torch.bfloat16), found(torch.float16), found(torch.float32)) == (torch.float32,) * 3
    assert found(torch.bfloat16, torch.device("cuda")) == torch.bfloat16
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True}, raising=False)
    assert found(torch.bfloat16) == torch.bfloat16
    assert (found(torch.float16), found(torch.float32)) == (torch.float32,) * 2
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert found(torch.bfloat16) == torch.float32


def test_products_of_16_bit_have_few_shapes() -> None:
    counts = [rounded_up(count) for count in range(1, 4097)]
    assert len(set(counts)) == 8 + 4 * 9  # all up to 8, then four to each power of two up to 4096
    assert counts[:16] == [1, 2, 3, 4, 5, 6, 7, 8, 10, 10, 12, 12, 14, 14, 16, 16]
    assert all(count <= rounded <= 1.25 * count for count, rounded in enumerate(counts, start=1))
