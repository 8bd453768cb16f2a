"""The ruler: its output, that both paths hold the same weights, and that it notices when they differ.

Nothing here looks at how fast anything is.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from benchmark_runs import Load, run
from bitsandbytes.nn.parametrize import replace_parameter_4bit
from safetensors.torch import save_file
from torch import nn
from transformers.models.aria.modeling_aria import AriaExperts

from aria_finetune.model.loading import load_model
from aria_finetune.model.lora import add_lora
from aria_finetune.model.nf4 import EXPERT_TENSORS, expert_state, quantize_experts


def test_the_last_line_is_the_result() -> None:
    small = ("--scale", "small", "--layers", "2", "--tokens", "64")
    *table, last = run("step.py", *small, "--repeats", "1", "--steps", "2", "--json")
    result = json.loads(last)
    assert any("tokens per second" in line for line in table)
    assert (result["layers"], result["tokens"], result["images"], result["device"]) == (2, 64, 0, "cpu")
    assert result["allocator"] == {"THP_MEM_ALLOC_ENABLE": "0"}, "the caller's setting was not kept"
    assert result["versions"]["torch"] == torch.__version__
    for path in ("stock", "ours"):
        side = result[path]
        assert len(side["seconds"]) == 2
        assert side["tokens_per_second"] == pytest.approx(64 / side["seconds_per_step"])
        assert side["processor_seconds_per_step"] > 0
        assert side["peak_gib"] >= 0, "may be too short to be seen"
        assert side["experts_implementation"] is not None
        # 64 tokens of 6 choices each are exactly 6 for each of 64 experts.
        assert side["expert_load"] == pytest.approx({"min": 1 / 64, "mean": 1 / 64, "max": 1 / 64})
    assert result["speedup"] == pytest.approx(
        result["ours"]["tokens_per_second"] / result["stock"]["tokens_per_second"]
    )
    peaks = result["ours"]["peak_gib"], result["stock"]["peak_gib"]
    assert result["memory_ratio"] == (pytest.approx(peaks[0] / peaks[1]) if all(peaks) else None)
    assert result["paths_agree"] is True
    assert 0 < result["gradient_relative_difference"] < 0.02
    assert result["routing_agreement"] == 1
    assert result["features_relative_difference"] is None


def test_with_images_the_paths_agree(load: Load) -> None:
    one_path, report = load("one_path"), load("report")
    evidence, results = {}, {}
    for path in ("stock", "ours"):
        job = one_path.Job(path, "cpu", "small", layers=1, tokens=160, images=1, tile=490, steps=0, seed=3)
        results[path], evidence[path] = one_path.measure(job)
    agreement = report.agreement(evidence["stock"], evidence["ours"])
    assert agreement["paths_agree"], agreement
    assert agreement["routing_agreement"] > 0.98
    assert 0 < agreement["features_relative_difference"] < 0.05
    assert evidence["ours"]["features"].shape == (128, 256)
    mixed = evidence["ours"] | {"features": evidence["ours"]["features"].flip(0)}
    assert not report.agreement(evidence["stock"], mixed)["paths_agree"], "images that are mixed up are not noticed"
    # 24 of the 32 x 6 text choices alone would leave most experts idle: the image's tokens are spread too.
    assert results["ours"]["expert_load"]["max"] < 0.1


def test_a_profile_says_what_was_done_in_which_part(load: Load) -> None:
    one_path, report = load("one_path"), load("report")
    seen = {}
    for path in ("stock", "ours"):
        job = one_path.Job(path, "cpu", "small", layers=1, tokens=160, images=1, tile=490, steps=0, seed=3, phases=True)
        seen[path] = one_path.measure(job)[0]["phases"]
        assert seen[path].keys() >= {
            "routed experts",
            "shared experts",
            "attention",
            "router",
            "norms",
            "images",
            "rest",
        }
        for part in ("routed experts", "shared experts", "attention"):
            assert seen[path][part]["dequantising"] > 0, (path, part)
            assert seen[path][part]["products"] > 0, (path, part)
        assert "dequantising" not in seen[path]["images"]
    lines = report.phase_lines(seen["stock"], seen["ours"])
    assert {line.split("  ")[0] for line in lines if not line.startswith(" ")} == seen["stock"].keys() | seen[
        "ours"
    ].keys()


def test_both_paths_hold_the_same_weights(load: Load) -> None:
    random_aria, one_path = load("random_aria"), load("one_path")
    config = random_aria.aria_config("small", 1, images=False)
    models = {
        name: path.build(config, "cpu", 0, one_path.PLAN).get_base_model() for name, path in one_path.PATHS.items()
    }
    stock, ours = (dict(model.named_parameters()) for model in models.values())
    assert stock.keys() == ours.keys()
    different = [
        name for name in stock if "lora_" not in name and not torch.equal(stock[name].float(), ours[name].float())
    ]
    assert different == []
    for model in models.values():
        layer = model.model.language_model.layers[0]
        with torch.no_grad():
            dense = layer.mlp.experts.gate_up_proj
        assert dense.shape == (64, 256, 256)
        assert dense.float().std().item() == pytest.approx(1 / 16, rel=0.02)
    assert {parameter.device.type for parameter in stock.values()} == {"cpu"}


def test_our_path_is_built_as_training_builds_it(load: Load) -> None:
    random_aria, one_path = load("random_aria"), load("one_path")
    config = random_aria.aria_config("small", 2, images=False)
    measured = one_path.PATHS["ours"].build(config, "cpu", 0, one_path.PLAN)
    trained = add_lora(load_model("tiny", implementation="lean").model, one_path.PLAN, base_name="tiny", seed=0)

    def describe(model: nn.Module) -> dict[str, tuple[str, list[torch.dtype]]]:
        return {
            name: (type(module).__name__, [tensor.dtype for tensor in module.parameters(recurse=False)])
            for name, module in model.named_modules()
            if "language_model" in name
        }

    assert describe(measured) == describe(trained)
    implementations = {model.config.text_config._experts_implementation for model in (measured, trained)}
    assert len(implementations) == 1, "benchmarks/ours.py computes the experts in another way than load_model"


def test_stock_experts_are_as_bitsandbytes_leaves_them(load: Load) -> None:
    random_aria, stock = load("random_aria"), load("stock")
    config = random_aria.aria_config("small", 1, images=False).text_config
    generator = torch.Generator().manual_seed(0)
    by_bitsandbytes, by_stock = AriaExperts(config), AriaExperts(config)
    for name in EXPERT_TENSORS:
        dense = torch.randn(getattr(by_stock, name).shape, generator=generator).to(torch.bfloat16)
        setattr(by_bitsandbytes, name, nn.Parameter(dense, requires_grad=False))
        replace_parameter_4bit(by_bitsandbytes, name, compress_statistics=True, quant_type="nf4")
        stock.put_experts(by_stock, name, *quantize_experts(dense))
    expected, found = by_bitsandbytes.state_dict(), by_stock.state_dict()
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    for name in EXPERT_TENSORS:
        (packed, state), (other_packed, other_state) = expert_state(by_stock, name), expert_state(by_bitsandbytes, name)
        assert (packed.dtype, packed.requires_grad) == (other_packed.dtype, other_packed.requires_grad)
        assert (state.dtype, state.nested) == (other_state.dtype, other_state.nested)
    assert len(by_stock._forward_hooks) == len(by_bitsandbytes._forward_hooks)


def write_run(folder: Path, seconds: list[float], peak_bytes: int, evidence: dict[str, torch.Tensor]) -> Path:
    folder.mkdir()
    save_file(evidence, folder / "evidence.safetensors")
    described = {"device": "cpu", "device_name": "abacus", "scale": "full", "layers": 1, "tokens": 100, "images": 0}
    described |= {"tile": 980, "steps": len(seconds), "seed": 0, "threads": 1, "experts_implementation": "grouped_mm"}
    described |= {"attention_implementation": "sdpa", "adapter_dtypes": ["float32"], "model_bytes": 2**30}
    described |= {
        "phases": None,
        "expert_load": {"min": 0.0, "mean": 0.5, "max": 1.0},
        "seconds": seconds,
        "processor_seconds": [second / 2 for second in seconds],
        "peak_bytes": peak_bytes,
    }
    (folder / "result.json").write_text(json.dumps(described))
    return folder


def evidence_of(gradient: float, experts: float, chosen: list[int], features: float = 1.0) -> dict[str, torch.Tensor]:
    return {
        "features": torch.tensor([features]),
        "gradient.layers.0.self_attn.lora_A": torch.tensor([gradient, 0.0]),
        "gradient.layers.0.mlp.router.lora_A": torch.tensor([0.0, 10.0]),
        "experts.output": torch.tensor([1.0]),
        "experts.input_gradient": torch.tensor([experts]),
        "routing.0": torch.tensor([chosen], dtype=torch.int32),
    }


def summarise(report: ModuleType, folder: Path, ours: dict[str, torch.Tensor]) -> dict[str, Any]:
    stock = evidence_of(10.0, 1.0, [0, 1, 2, 3])
    return report.summarise(
        [write_run(folder / "s0", [3.0, 4.0], 400, stock), write_run(folder / "s1", [8.0, 9.0], 800, stock)],
        [write_run(folder / "o0", [1.0, 2.0], 300, ours), write_run(folder / "o1", [2.0, 9.0], 300, ours)],
        {"SETTING": "1"},
    )


def test_ratios_are_those_of_medians(load: Load, tmp_path: Path) -> None:
    summary = summarise(load("report"), tmp_path, evidence_of(10.0, 1.0, [0, 1, 2, 3]))
    assert summary["stock"]["seconds_per_step"] == 6.0
    assert summary["ours"]["seconds_per_step"] == 2.0
    assert summary["speedup"] == 3.0
    assert summary["speedup_by_repeat"] == pytest.approx([3.5 / 1.5, 8.5 / 5.5])
    assert summary["ours"]["processor_seconds_per_step"] == 1.0
    assert summary["speedup_in_processor_time"] == 3.0
    assert summary["memory_ratio"] == pytest.approx(0.5)
    assert summary["ours"]["tokens_per_second"] == 50.0
    assert summary["gradient_relative_difference"] == 0
    assert summary["paths_agree"] is True


@pytest.mark.parametrize(
    ("ours", "body", "routing"),
    [
        (evidence_of(11.0, 1.0, [0, 1, 2, 3]), (1 / 200) ** 0.5, 1.0),
        (evidence_of(10.0, 0.9, [0, 1, 2, 3]), 0.0, 1.0),
        (evidence_of(10.0, float("nan"), [0, 1, 2, 5]), 0.0, 0.75),
        (evidence_of(float("nan"), 1.0, [4, 1, 2, 5]), float("nan"), 0.5),
        (evidence_of(10.0, 1.0, [0, 1, 2, 3], features=1.2), 0.0, 1.0),
        (evidence_of(10.0, 1.0, [0, 1, 2, 3], features=float("nan")), 0.0, 1.0),
    ],
)
def test_a_path_that_computes_something_else_is_noticed(
    load: Load, tmp_path: Path, ours: dict[str, torch.Tensor], body: float, routing: float
) -> None:
    report = load("report")
    summary = summarise(report, tmp_path, ours)
    assert summary["paths_agree"] is False
    assert summary["gradient_relative_difference"] == pytest.approx(body, nan_ok=True)
    assert summary["routing_agreement"] == pytest.approx(routing)
    assert "DO NOT COMPUTE THE SAME" in report.table(summary)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--layers", "0"], "--layers must be at least 1"),
        (["--steps", "0"], "--steps must be at least 1"),
        (["--tokens", "255", "--images", "1"], "takes 256 tokens"),
        (["--tokens", "511", "--images", "4", "--tile", "490"], "takes 512 tokens"),
        (["--images", "-1"], "--images -1"),
        (["--tile", "491"], "invalid choice"),
        (["--device", "abacus"], "invalid choice"),
    ],
)
def test_flags_that_make_no_sense_are_refused(
    load: Load, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        load("step").parse(flags)
    assert message in capsys.readouterr().err


def test_an_image_takes_as_many_tokens_as_the_flags_say(load: Load) -> None:
    random_aria, step = load("random_aria"), load("step")
    config = random_aria.aria_config("small", 1, images=True)
    for tile, tokens in step.IMAGE_TOKENS.items():
        batch = random_aria.random_batch(config, 2 * tokens + 5, 2, tile, "cpu", 0)
        assert batch.pixels.shape == batch.normalised_pixels.shape == (2, 3, tile, tile)
        assert (batch.input_ids == 9).sum() == 2 * tokens
        assert batch.input_ids.shape == (1, 2 * tokens + 5)


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        (["--tokens", "320"], "step-cpu-1l-320t.json"),
        (["--tokens", "320", "--images", "1"], "step-cpu-1l-320t-1i980.json"),
        (
            ["--tokens", "320", "--images", "1", "--tile", "490", "--scale", "small"],
            "step-cpu-1l-320t-1i490-small.json",
        ),
    ],
)
def test_a_result_says_in_its_name_what_was_measured(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], name: str
) -> None:
    step = load("step")
    monkeypatch.setattr(step, "HERE", tmp_path)
    step.save({"speedup": 2.0}, step.name_parts(step.parse(flags)))
    assert json.loads((tmp_path / "results" / name).read_text()) == {"speedup": 2.0}
