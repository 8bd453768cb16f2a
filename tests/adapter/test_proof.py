"""What is proved layer by layer is what both models say whole, in plain transformers and PEFT; and a bad merge is seen to be one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AriaForConditionalGeneration

from aria_finetune.adapter import proof as proving
from aria_finetune.adapter.drift import Drift
from aria_finetune.adapter.exactness import Exactness
from aria_finetune.adapter.merge import merge
from aria_finetune.adapter.mixture import open_mixture
from aria_finetune.adapter.proof import LIMIT_KL, ROUNDING_KL, MergeProof, Row, SideName, prove, run_beside, sample_rows
from aria_finetune.adapter.sides import Side, Weights, packing_of
from aria_finetune.errors import UserError
from aria_finetune.model.hub_layout import SINGLE, HubCheckpoint, open_checkpoint
from aria_finetune.model.lora import LoraPlan
from aria_finetune.model.nf4_checkpoint import STATE_NAMES, state_of
from aria_finetune.model.vision import normalise
from aria_finetune.quantization import quantize

MakeAdapter = Callable[..., Path]
PLANS = {
    "decoder": LoraPlan(targets=("attention", "router", "shared_experts", "experts"), rank=4, alpha=6, rslora=True),
    "tower and projector": LoraPlan(targets=("vision", "projector"), rank=4, alpha=8),
    "DoRA": LoraPlan(targets=("attention", "shared_experts", "projector", "vision"), rank=4, alpha=8, dora=True),
}


def opened(folder: Path) -> HubCheckpoint:
    return open_checkpoint(str(folder))


def whole(folder: Path, rows: list[Row], adapter: Path | None = None) -> torch.Tensor:
    """Logits of a whole model in plain transformers, with PEFT's adapter; in fp32, row by row."""
    model = AriaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter).eval()
    found = []
    for row in rows:
        pictures = {} if row.pixels is None else {"pixel_values": normalise(row.pixels, torch.float32)}
        with torch.no_grad():
            found.append(model(input_ids=torch.tensor([row.ids]), **pictures).logits[0])
    return torch.cat(found)


def streamed(side: Side, rows: list[Row]) -> torch.Tensor:
    with torch.no_grad():
        return run_beside({"live": side}, rows, "cpu")[0]["live"]


def close(found: torch.Tensor, due: torch.Tensor) -> bool:
    return bool((found - due).abs().max() <= 1e-5 * due.abs().max())


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("kind", ["tiny", "odd"])
def test_a_live_adapter_says_what_peft_says(
    kind: str,
    plan: str,
    fp32_folder: Path,
    odd_bases: dict[torch.dtype, Path],
    make_adapter: MakeAdapter,
) -> None:
    base = {"tiny": fp32_folder, "odd": odd_bases[torch.float32]}[kind]
    adapter = make_adapter(base, PLANS[plan], deviation=0.03)
    rows = sample_rows(opened(fp32_folder))
    assert [row.pixels is None for row in rows] == [True, False]
    side = Side(Weights(opened(base), "cpu"), open_mixture([(adapter, 1.0)]))
    due = whole(base, rows, adapter)
    assert close(streamed(side, rows), due)
    assert close(streamed(Side(Weights(opened(base), "cpu")), rows), whole(base, rows))
    assert (due - whole(base, rows)).abs().max() > 1e-2, "the adapter does nothing"


@pytest.fixture(scope="module")
def dequantised(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Aria as its NF4 checkpoint dequantises, stored as plain fp32 weights."""
    folder = tmp_path_factory.mktemp("dequantised")
    packed = quantize(str(tiny_folder), folder / "nf4")
    shutil.copytree(tiny_folder, folder / "plain")
    tensors = {}
    for name in load_file(tiny_folder / SINGLE):
        if f"{name}.{STATE_NAMES[0]}" in packed.stored:
            data, state = state_of(name, packed.read, torch.bfloat16)
            tensors[name] = torch.ops.bitsandbytes.dequantize_4bit.default(
                data, _scales(state), 64, "nf4", state.shape, torch.bfloat16
            ).float()
        else:
            tensors[name] = packed.read(name).float()
    save_file(tensors, folder / "plain" / SINGLE, {"format": "pt"})
    return folder / "plain"


def _scales(state: object) -> torch.Tensor:
    """What double quantisation left of the scales: 256 of them at a time, times theirs, plus the mean."""
    nested = state.state2  # type: ignore[attr-defined]
    codes = state.absmax  # type: ignore[attr-defined]
    values = nested.code[codes.long()]
    return values * nested.absmax.repeat_interleave(256)[: len(values)] + state.offset  # type: ignore[attr-defined]


@pytest.mark.parametrize("plan", ["decoder", "DoRA"])
def test_on_nf4_too(
    plan: str, tiny_folder: Path, fp32_folder: Path, dequantised: Path, make_adapter: MakeAdapter
) -> None:
    adapter = make_adapter(fp32_folder, PLANS[plan], deviation=0.03)
    rows = sample_rows(opened(tiny_folder))
    base = opened(tiny_folder)
    side = Side(Weights(base, "cpu", packing_of(base)), open_mixture([(adapter, 1.0)]))
    due = whole(dequantised, rows, adapter)
    assert close(streamed(side, rows), due)
    assert (due - whole(tiny_folder, rows, adapter)).abs().max() > 0.1


def test_two_adapters_live(fp32_folder: Path, make_adapter: MakeAdapter, tmp_path: Path) -> None:
    """Against both merged, which is tested on its own."""
    adapters = [
        (make_adapter(fp32_folder, PLANS["decoder"]), 0.7),
        (make_adapter(fp32_folder, PLANS["DoRA"], deviation=0.03), 0.3),
    ]
    merge(adapters, tmp_path / "merged")
    rows = sample_rows(opened(fp32_folder))
    side = Side(Weights(opened(fp32_folder), "cpu"), open_mixture(adapters))
    assert close(streamed(side, rows), whole(tmp_path / "merged", rows))


def proof_of(adapter: Path, base: Path, merged: Path, *, packed: bool = False) -> MergeProof:
    return prove(open_mixture([(adapter, 1.0)]), opened(base), opened(merged), packed=packed)


@pytest.mark.parametrize("plan", PLANS)
def test_figures_are_those_of_whole_models(
    plan: str, tiny_folder: Path, dequantised: Path, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    adapter = make_adapter(tiny_folder, PLANS[plan], deviation=0.03)
    merge(adapter, tmp_path / "merged")
    found = proof_of(adapter, tiny_folder, tmp_path / "merged")
    rows = sample_rows(opened(tiny_folder))
    merged = whole(tmp_path / "merged", rows)
    for measured, live in (
        (found.original, whole(tiny_folder, rows, adapter)),
        (found.nf4, whole(dequantised, rows, adapter)),
    ):
        due = proving.compare(live, merged)
        assert measured.logit_max == pytest.approx(due.logit_max, rel=1e-2)
        assert measured.logit_mean == pytest.approx(due.logit_mean, rel=1e-2)
        assert measured.kl == pytest.approx(due.kl, rel=2e-2, abs=1e-6)
        assert measured.agreement == pytest.approx(due.agreement, abs=0.01)
    assert found.rows == {"text": len(rows[0].ids), "image": len(rows[1].ids)}
    assert not found.problems
    assert 0 < found.original.kl < found.nf4.kl
    assert len(found.by_layer) == 2


def test_from_an_fp32_base_nothing_is_lost(fp32_folder: Path, make_adapter: MakeAdapter, tmp_path: Path) -> None:
    for name, plan in PLANS.items():
        adapter = make_adapter(fp32_folder, plan)
        merge(adapter, tmp_path / name)
        found = proof_of(adapter, fp32_folder, tmp_path / name)
        assert found.original.logit_max < 2e-4  # of logits that reach 14, in fp32
        assert abs(found.original.kl) < 1e-6
        assert found.effect.kl > 1e-5
        assert not found.problems


class TestBadMerges:
    @pytest.fixture(scope="class")
    def strong(self, make_adapter: MakeAdapter, tiny_folder: Path) -> Path:
        return make_adapter(tiny_folder, deviation=0.1)

    def test_one_that_lost_the_adapter(self, tiny_folder: Path, strong: Path) -> None:
        found = proof_of(strong, tiny_folder, tiny_folder)
        assert found.original == found.effect
        assert found.original.kl > LIMIT_KL
        assert "not what they should be" in found.problems[0]
        assert "more than 0.01" in found.problems[1]
        with pytest.raises(UserError, match="do not say what base and adapter say") as caught:
            found.refuse_drift(tiny_folder)
        assert "--no-proof" in str(caught.value.fix)
        assert found.as_dict()["verdict"] == "drift"
        assert found.describe().startswith("proof: drift")

    def test_limits(self) -> None:
        near, far, none = (Drift(0.1, 0.1, kl, 1.0) for kl in (1e-3, 5e-3, 0.0))

        def problems(original: Drift, nf4: Drift, effect: Drift, packed: Drift | None = None) -> list[str]:
            return MergeProof({}, original, nf4, effect, packed, [], Exactness(1, 1)).problems

        assert "too much of the adapter is lost" in problems(far, near, near)[0]
        assert "too much of the adapter is lost" in problems(far, near, far)[0], "lost, and below the limit of all"
        assert not problems(near, near, far)
        assert not problems(none, near, none)
        assert not problems(near, near, none), "what rounding costs an adapter that does next to nothing"
        assert "nan" in problems(Drift(1, 1, float("nan"), 1), near, far)[0]
        assert "in NF4" in problems(near, far, far, Drift(1, 1, 0.5, 1))[0]
        assert not problems(near, Drift(1, 1, 0.2, 1), far, Drift(1, 1, 0.5, 1))

    def test_a_small_effect_that_was_lost(self, tiny_folder: Path, make_adapter: MakeAdapter, tmp_path: Path) -> None:
        """Below what logits can tell, the tensors tell; and what rounding alone costs such an adapter is no problem."""
        small = make_adapter(tiny_folder, deviation=2e-4)
        lost = proof_of(small, tiny_folder, tiny_folder)
        assert 0 < lost.effect.kl < ROUNDING_KL
        assert len(lost.problems) == 1
        assert "10 tensor(s) are not what they should be" in lost.problems[0]
        assert "10 are wrong" in lost.describe()
        merge(small, tmp_path / "merged")
        whole = proof_of(small, tiny_folder, tmp_path / "merged")
        assert not whole.problems
        assert whole.is_told_by_tensors_alone
        assert whole.tensors == Exactness(10, len(opened(tiny_folder).stored) - 10)

    def test_one_with_a_misshapen_or_missing_tensor(self, tiny_folder: Path, strong: Path, tmp_path: Path) -> None:
        shutil.copytree(tiny_folder, tmp_path / "merged")
        tensors = load_file(tmp_path / "merged" / SINGLE)
        del tensors["language_model.model.layers.0.mlp.router.weight"]
        save_file(tensors, tmp_path / "merged" / SINGLE)
        with pytest.raises(UserError, match=r"1 tensor\(s\) are not what they are in the base"):
            proof_of(strong, tiny_folder, tmp_path / "merged")

    def test_it_keeps_its_hidden_name_until_it_is_wanted_all_the_same(
        self, strong: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(proving, "LIMIT_KL", 1e-9)
        with pytest.raises(UserError, match="do not say") as caught:
            merge(strong, tmp_path / "out", prove=prove)
        assert caught.value.where == str(tmp_path / ".out.merging")
        assert json.loads((tmp_path / ".out.merging" / "merge.json").read_text())["proof"]["verdict"] == "drift"
        assert not (tmp_path / "out").exists()
        before = (tmp_path / ".out.merging" / SINGLE).stat().st_mtime_ns
        merge(strong, tmp_path / "out")
        assert (tmp_path / "out" / SINGLE).stat().st_mtime_ns == before
        assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_proof_is_in_the_report(tiny_folder: Path, adapter: Path, tmp_path: Path) -> None:
    said: list[tuple[int, int]] = []
    merge(adapter, tmp_path / "out", prove=partial(prove, watch=lambda *done: said.append(done)))
    report = json.loads((tmp_path / "out" / "merge.json").read_text())["proof"]
    due = proof_of(adapter, tiny_folder, tmp_path / "out").as_dict()
    assert report == json.loads(json.dumps(due))
    assert report["verdict"] == "ok"
    assert report["tensors"]["wrong"] == []
    assert report["experts"] == 64
    assert len(report["experts_reached_by_layer"]) == 2
    assert all(6 <= count <= 64 for count in report["experts_reached_by_layer"])
    assert said == [(1, 2), (2, 2)]


def test_what_nf4_makes_of_it(tiny_folder: Path, adapter: Path, tmp_path: Path) -> None:
    """The side that is called packed says what the NF4 checkpoint of the merged weights says."""
    merge(adapter, tmp_path / "merged")
    base = opened(tmp_path / "merged")
    rows = sample_rows(base)
    sides: dict[SideName, Side] = {"packed": Side(Weights(base, "cpu", packing_of(base)))}
    with torch.no_grad():
        logits, by_layer = run_beside(sides, rows, "cpu")
    assert by_layer == []
    found = proof_of(adapter, tiny_folder, tmp_path / "merged", packed=True)
    live = Side(Weights(opened(tiny_folder), "cpu", packing_of(opened(tiny_folder))), open_mixture([(adapter, 1.0)]))
    assert found.packed == proving.compare(streamed(live, rows), logits["packed"])
    assert found.packed is not None
    assert found.packed.kl > found.original.kl
