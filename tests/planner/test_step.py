"""What phases hold: against the real model's figures that are known, and in the directions that keys must turn them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from aria_finetune.planner.architecture import Architecture, VisionTower
from aria_finetune.planner.resident import Adapter, Holding, model_components
from aria_finetune.planner.step import Batch, Execution, Setup

GIB = 2**30
REAL = Architecture(28, 2560, 20, 20, 128, 64, 6, 1664, 2, 100_352, VisionTower(27, 1152, 4304, 16, 14, 980))
ADAPTER = Adapter(("attention", "router"), 8)
LONG = Batch(1, 8192, 8192)


def setup(device: str = "cuda", implementation: str = "grouped", **changes: Any) -> Setup:
    holding = Holding(**{name: value for name, value in changes.items() if name in Holding.__dataclass_fields__})
    others = {name: value for name, value in changes.items() if name in Execution.__dataclass_fields__}
    return Setup(REAL, holding, ADAPTER, Execution(device, implementation, **others))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("tokens", "images", "measured"),
    [(32, {}, 14.055), (160, {490: 1}, 14.354)],
)
def test_the_whole_model_on_a_cpu_against_what_was_measured(
    tokens: int, images: dict[int, int], measured: float
) -> None:
    """Peaks of benchmarks/full_size.py with 28 layers, above the bare process (benchmarks/results)."""
    peak = setup("cpu", "lean").peak(Batch(1, tokens, 32, images, lengths=1)).bytes / GIB
    assert peak == pytest.approx(measured, rel=0.05)


@pytest.mark.parametrize(("tile", "measured"), [(490, 89), (980, 161)])
def test_the_tower_on_a_cpu_against_what_was_measured(tile: int, measured: float) -> None:
    """MiB above two layers of the tower and the projector, as benchmarks/meters.py samples them, for one tile of pixels."""
    (vision,) = (part for part in setup("cpu", "lean").phases(Batch(1, 512, 8, {tile: 4})) if part.name == "vision")
    assert vision.parts["tower"] / 2**20 == pytest.approx(measured, rel=0.15)


@pytest.mark.parametrize(("tokens", "due"), [(2048, 16.7), (8192, 18.7), (32_768, 26.7)])
def test_the_whole_model_on_a_gpu_against_the_budget(tokens: int, due: float) -> None:
    """Reckoned by hand from the tensors of a step with fused cross entropy; not measured."""
    assert setup().peak(Batch(1, tokens, tokens)).bytes / GIB == pytest.approx(due, rel=0.1)


def test_the_model_alone() -> None:
    (loading, *_) = setup().phases(LONG)
    assert loading.name == "loading"
    assert loading.parts["model"] / GIB == pytest.approx(13.48, abs=0.03)  # + the fp32 router


@pytest.mark.parametrize(
    ("change", "least_gib"),
    [
        ({"vision": False}, 0.8),
        ({"packed_head": True}, 0.35),
        ({"embedding_on_host": True}, 0.47),
        ({"offloading": True}, 1.0),
        ({"experts_at_a_time": 8}, 0.88),
        ({"implementation": "lean"}, 1.0),
        ({"experts_on_host": True, "implementation": "lean"}, 10.0),
    ],
)
def test_what_keys_save(change: dict[str, Any], least_gib: float) -> None:
    saved = setup().peak(LONG).bytes - setup(**change).peak(LONG).bytes
    assert saved / GIB >= least_gib


def test_experts_are_made_dense_in_memory_that_stays() -> None:
    """All 64 of a layer, gate and up, in bf16: 1.02 GiB; 8 of them 0.13."""
    for changes, due in (({}, 1.016), ({"experts_at_a_time": 8}, 0.127), ({"experts_at_a_time": 100}, 1.016)):
        loading, *others = setup(**changes).phases(LONG, LONG)
        assert "workspace" not in loading.parts
        assert all(phase.parts["workspace"] / GIB == pytest.approx(due, abs=1e-3) for phase in others)
    for implementation in ("lean", "grouped_mm", "eager"):
        assert all("workspace" not in phase.parts for phase in setup(implementation=implementation).phases(LONG))


def test_transformers_own_experts_take_more() -> None:
    peaks = [setup(implementation=each).peak(LONG).bytes for each in ("lean", "grouped", "grouped_mm")]
    assert peaks == sorted(set(peaks))


def test_without_checkpointing_every_layer_is_held() -> None:
    held = {
        wanted: {phase.name: phase for phase in setup(checkpointing=wanted).phases(LONG)}["backward"].parts["layer"]
        for wanted in (True, False)
    }
    assert held[False] == 28 * held[True]


def test_longer_rows_and_larger_batches_take_more() -> None:
    peaks = [setup().peak(Batch(rows, tokens, tokens)).bytes for rows, tokens in [(1, 1024), (1, 4096), (2, 4096)]]
    assert peaks == sorted(set(peaks))


def test_what_is_on_the_host_is_counted_there() -> None:
    hosted = setup(experts_on_host=True, embedding_on_host=True, implementation="lean")
    parts = {part.name: part for part in model_components(REAL, hosted.holding)}
    assert hosted.host_bytes() == parts["routed experts"].bytes + parts["embedding"].bytes
    assert replace(hosted, execution=Execution("cpu", "lean")).host_bytes() == 0  # there it is one memory


def test_phases_of_pictures_and_evaluation_come_with_them() -> None:
    names = [phase.name for phase in setup().phases(LONG)]
    assert names == ["loading", "loss", "backward", "optimizer"]
    names = [phase.name for phase in setup().phases(Batch(1, 8192, 100, {980: 2}), Batch(1, 512, 8))]
    assert names == ["loading", "vision", "loss", "backward", "optimizer", "evaluation"]
    assert "vision" not in [phase.name for phase in setup(vision=False).phases(Batch(1, 8192, 100, {980: 2}))]
