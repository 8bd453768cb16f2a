"""What phases hold: against the real model's figures that are known, and in the directions that keys must turn them."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from aria_finetune.model.targets import Target
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


def test_a_long_row_on_a_cpu_against_what_was_measured() -> None:
    """The peak of benchmarks/long_rows.py: one layer, 480 images of which features are given, 4,096 labels."""
    one = replace(
        setup("cpu", "lean", vision=False, cached=True), architecture=replace(REAL, layers=1), adapter=ADAPTER
    )
    peak = one.peak(Batch(1, 65_536, 4096, {490: 480})).bytes / GIB
    assert peak == pytest.approx(8.058, rel=0.1)


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


@pytest.mark.parametrize(
    "change", [{}, {"device": "cpu", "implementation": "lean"}, {"experts_at_a_time": 8}, {"offloading": True}]
)
@pytest.mark.parametrize("phase", ["loss", "backward"])
def test_memory_is_linear_in_tokens_up_to_65536(change: dict[str, Any], phase: str) -> None:
    """From where every tile is full, each 8,192 tokens take as much as the last, pictures and labels growing along."""
    held = setup(**change)
    sizes = []
    for tokens in range(16_384, 65_537, 8192):
        batch = Batch(1, tokens, tokens // 2, {490: tokens // 256}, lengths=1)
        sizes.append(next(found.bytes for found in held.phases(batch) if found.name == phase))
    steps = [after - before for before, after in pairwise(sizes)]
    assert min(steps) > 0
    assert max(steps) == pytest.approx(min(steps), rel=0.005)


def test_a_row_of_65536_tokens_fits_a_card_of_80_gb() -> None:
    """By hand, GiB: 8.75 of layer inputs (28 x 5 KiB a token), 12.7 of weights, and what one layer holds."""
    batch = Batch(1, 65_536, 4096, {490: 480})
    (backward,) = (found for found in setup(vision=False, cached=True).phases(batch) if found.name == "backward")
    assert backward.parts["layer inputs"] == 28 * 5 * 1024 * 65_536
    assert 30 < backward.bytes / GIB < 45


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


def seeing(*targets: Target, **changes: Any) -> dict[str, int]:
    """MiB that are kept of two small tiles from the forward of the tower to its backward, and in the tower meanwhile."""
    made = replace(setup(**changes), adapter=Adapter(targets, 8))
    phases = {phase.name: phase for phase in made.phases(Batch(1, 400, 8, {490: 2}), Batch(1, 400, 8, {490: 2}))}
    assert "tower inputs" not in phases["evaluation"].parts
    kept = phases["backward"].parts.get("tower inputs", 0)
    assert phases["vision"].parts.get("tower inputs", 0) == kept
    return {"kept": kept // 2**20, "tower": phases["vision"].parts["tower"] // 2**20}


def test_what_a_trained_tower_keeps() -> None:
    """By hand: 1225 patches of 1152 numbers in 16 bit are 2.7 MiB, on a CPU in fp32 twice that."""
    assert seeing("attention")["kept"] == 0
    assert seeing("projector")["kept"] == 5
    assert seeing("vision")["kept"] == seeing("projector", "vision")["kept"] == 28 * 1225 * 1152 * 2 * 2 // 2**20
    assert seeing("vision", device="cpu", implementation="lean")["kept"] == 28 * 1225 * 1152 * 4 * 2 // 2**20
    assert seeing("vision", checkpointing=False)["kept"] > 10 * seeing("vision")["kept"]
    assert seeing("vision")["tower"] == pytest.approx(3 * seeing("attention")["tower"], abs=3)


def test_answers_hold_keys_and_values() -> None:
    """Of a row of 8,192 tokens in 28 layers and once more of one, of 20 heads of 128, in bf16."""
    (asked,) = (phase for phase in setup().phases(LONG, replace(LONG, answers=(1, 8192))) if phase.name == "answers")
    assert asked.parts["keys and values"] == 2 * 29 * 20 * 128 * 8192 * 2
    assert "loss" not in asked.parts
    assert not [phase for phase in setup().phases(LONG, LONG) if phase.name == "answers"]
