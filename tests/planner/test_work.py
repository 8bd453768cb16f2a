"""Operations against the figures of the real Aria that can be computed by hand."""

from __future__ import annotations

import pytest

from aria_finetune.planner.architecture import Architecture, VisionTower
from aria_finetune.planner.work import row_work, tile_work

REAL = Architecture(28, 2560, 20, 20, 128, 64, 6, 1664, 2, 100_352, VisionTower(27, 1152, 4304, 16, 14, 980))


def test_a_decoder_layer_by_hand() -> None:
    active = 4 * 2560**2 + 64 * 2560 + 3 * 2560 * (6 * 1664 + 2 * 1664) + 2 * 2560  # two norms
    assert row_work(REAL, 1, 0, {}).decoder == pytest.approx(6 * active * 28, rel=1e-9)


def test_work_per_token_is_what_the_step_of_the_real_model_takes() -> None:
    """22.6 GFLOP with every token in the loss, and 0.645 MFLOP for each token before it, counted from its layers."""
    work = row_work(REAL, 8192, 8192, {})
    assert (work.decoder + work.head) / 8192 == pytest.approx(22.6e9, rel=0.03)
    assert work.attention / 8192**2 == pytest.approx(0.645e6, rel=0.01)


@pytest.mark.parametrize(("side", "due"), [(980, 7.0e12), (490, 1.2e12)])
def test_the_vision_tower(side: int, due: float) -> None:
    assert tile_work(REAL, side) == pytest.approx(due, rel=0.01)
    assert row_work(REAL, 300, 10, {side: 3}).vision == 3 * tile_work(REAL, side)


@pytest.mark.parametrize(("checkpointing", "passes"), [(True, 3), (False, 2)])
def test_a_tower_that_is_trained_has_a_backward(checkpointing: bool, passes: int) -> None:
    work = row_work(REAL, 300, 10, {490: 2}, checkpointing=checkpointing, tower_trained=True)
    assert work.vision == passes * 2 * tile_work(REAL, 490)


def test_only_labels_reach_the_head() -> None:
    assert row_work(REAL, 100, 10, {}).head == pytest.approx(6 * 100_352 * 2560 * 10)


def test_a_sum() -> None:
    one, two = row_work(REAL, 100, 10, {}), row_work(REAL, 50, 5, {490: 1})
    assert (one + two).total == pytest.approx(one.total + two.total)
