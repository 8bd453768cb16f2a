"""Products of rows with the weights of their experts: every way against fp64."""

from __future__ import annotations

import pytest
import torch
from kernel_checks import assert_close, random_tensor

from aria_finetune.kernels.language import for_triton
from aria_finetune.kernels.matmul import PRECISE, Tiling, Way, chosen_tiling, chosen_way, grouped_matmul

SMALL = Tiling(16, 32, 32, 4, 2)
COUNTS = {
    "some idle": [5, 0, 17, 1, 0, 0, 40, 3],
    "one has all": [0, 0, 33, 0, 0, 0, 0, 0],
    "the last has all": [0, 0, 0, 0, 0, 0, 0, 21],
    "whole tiles": [16, 32, 16, 0, 16, 16, 16, 16],
    "many tiles": [300, 1],
    "one row": [0, 1, 0],
}


def ways() -> list[Way]:
    return ["loop", "grouped_mm", *(["triton"] if for_triton(torch.empty(0)) or torch.cuda.is_available() else [])]  # type: ignore[list-item]


def product(rows: torch.Tensor, weight: torch.Tensor, counts: list[int], *, transposed: bool) -> torch.Tensor:
    parts = zip(rows.double().split(counts), weight.double(), strict=True)
    return torch.cat([part @ (matrix.T if transposed else matrix) for part, matrix in parts])


def check(
    device: str,
    counts: list[int],
    sides: tuple[int, int],
    dtype: torch.dtype,
    way: Way,
    tiling: Tiling = SMALL,
) -> None:
    for transposed in (False, True):
        shape = (sides[1], sides[0]) if transposed else sides
        weight = random_tensor(device, len(counts), *shape, dtype=dtype, seed=1)
        rows = random_tensor(device, sum(counts), sides[0], dtype=dtype)
        end = torch.tensor(counts, device=rows.device).cumsum(0).int()
        found = grouped_matmul(rows, weight, end, transposed=transposed, way=way, tiling=tiling)
        assert found.dtype == dtype
        assert_close(found, product(rows, weight, counts, transposed=transposed))


@pytest.mark.parametrize("way", ways())
@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
def test_rows_meet_their_expert(counts: list[int], way: Way, device: str) -> None:
    if way == "triton" and not for_triton(torch.empty(0, device=device)):
        pytest.skip("Triton runs on the other device")
    check(device, counts, (64, 64), torch.float32, way)


@pytest.mark.parametrize("way", ways())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sides", [(48, 80), (32, 40), (72, 32), (200, 24)])
def test_sides_that_are_no_multiples_of_a_tile(
    sides: tuple[int, int], dtype: torch.dtype, way: Way, device: str
) -> None:
    if way == "triton" and not for_triton(torch.empty(0, device=device)):
        pytest.skip("Triton runs on the other device")
    check(device, [3, 0, 20, 9], sides, dtype, way)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sides", [(8, 80), (4, 64), (64, 40)])
def test_a_product_may_be_added_to_what_is_there(sides: tuple[int, int], dtype: torch.dtype, device: str) -> None:
    """Of a rank with a width; summed in fp32 and rounded once."""
    counts = [3, 0, 20, 9]
    end = torch.tensor(counts, device=device).cumsum(0).int()
    for way in ways():
        if way == "grouped_mm" or (way == "triton" and not for_triton(torch.empty(0, device=device))):
            continue
        for transposed in (False, True):
            shape = (sides[1], sides[0]) if transposed else sides
            weight = random_tensor(device, len(counts), *shape, dtype=dtype, seed=1)
            rows = random_tensor(device, sum(counts), sides[0], dtype=dtype)
            there = random_tensor(device, sum(counts), sides[1], dtype=dtype, seed=2)
            due = there.double() + product(rows, weight, counts, transposed=transposed)
            found = grouped_matmul(
                rows, weight, end, transposed=transposed, output_SO=there, add=True, way=way, tiling=SMALL
            )
            assert found is there
            assert_close(found, due)


def test_what_can_not_be_added(device: str) -> None:
    rows, weight = torch.empty(4, 16, device=device), torch.empty(1, 16, 32, device=device)
    end = torch.tensor([4], dtype=torch.int32, device=device)
    with pytest.raises(ValueError, match="nothing to add to"):
        grouped_matmul(rows, weight, end, add=True)
    with pytest.raises(ValueError, match="grouped_mm adds nothing"):
        grouped_matmul(rows, weight, end, add=True, output_SO=torch.empty(4, 32, device=device), way="grouped_mm")


@pytest.mark.parametrize("tiling", [Tiling(32, 16, 64, 4, 3), Tiling(16, 64, 16, 2, 1)])
def test_other_tilings(tiling: Tiling, device: str) -> None:
    if not for_triton(torch.empty(0, device=device)):
        pytest.skip("this is not for Triton")
    check(device, [40, 0, 7], (96, 64), torch.float32, "triton", tiling)


def test_without_rows_there_is_no_product(device: str) -> None:
    weight, end = torch.empty(4, 16, 32, device=device), torch.zeros(4, dtype=torch.int32, device=device)
    assert grouped_matmul(torch.empty(0, 16, device=device), weight, end).shape == (0, 32)
    assert grouped_matmul(torch.empty(0, 32, device=device), weight, end, transposed=True).shape == (0, 16)


def test_the_way_on_a_cpu() -> None:
    rows, weight = torch.empty(4, 16), torch.empty(2, 16, 32)
    assert chosen_way(rows, weight) == ("triton" if for_triton(rows) else "loop")


def test_few_rows_get_low_tiles() -> None:
    heights = [chosen_tiling(torch.empty(rows, 1, dtype=torch.bfloat16), 64).rows for rows in (6, 1024, 4096, 49_152)]
    assert heights == [16, 16, 64, 128]
    assert chosen_tiling(torch.empty(49_152, 1), 64) == PRECISE
