"""An adapter folder is read as PEFT means it, or refused where it would be misread."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from aria_finetune.adapter.files import UNSUPPORTED, AdapterFiles, hub_name, open_adapter
from aria_finetune.errors import UserError

STEM = "base_model.model.model.language_model.layers.0.self_attn.q_proj"
HUB = "language_model.model.layers.0.self_attn.q_proj.weight"
CONFIG = {"peft_type": "LORA", "r": 4, "lora_alpha": 6, "base_model_name_or_path": "some/base"}


def write(folder: Path, tensors: dict[str, torch.Tensor] | None = None, **config: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | config))
    save_file(pair() if tensors is None else tensors, folder / "adapter_model.safetensors")
    return folder


def pair(stem: str = STEM) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        f"{stem}.lora_A.weight": torch.randn(4, 10, generator=generator),
        f"{stem}.lora_B.weight": torch.randn(7, 4, generator=generator),
    }


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        open_adapter(folder)
    assert str(folder) in str(caught.value.where)
    return caught.value.message


def test_an_adapter_is_read(tmp_path: Path) -> None:
    files = open_adapter(write(tmp_path / "adapter"))
    assert files == AdapterFiles(tmp_path / "adapter", CONFIG, {HUB: STEM})
    assert files.base_name == "some/base"


def test_what_training_saves_is_read(adapter: Path) -> None:
    files = open_adapter(adapter)
    assert len(files.pairs) == 2 * 5
    assert "language_model.model.layers.1.mlp.router.weight" in files.pairs
    assert files.scaling == 2.0


def test_a_run_folder_is_read_too(tmp_path: Path) -> None:
    write(tmp_path / "run" / "adapter")
    assert open_adapter(tmp_path / "run").folder == tmp_path / "run" / "adapter"


@pytest.mark.parametrize(
    ("config", "scaling"),
    [
        ({}, 6 / 4),
        ({"use_rslora": False, "r": 8}, 6 / 8),
        ({"use_rslora": True, "r": 16}, 6 / 4),
        ({"lora_alpha": 0.5}, 0.125),
    ],
)
def test_scaling(tmp_path: Path, config: dict[str, Any], scaling: float) -> None:
    assert open_adapter(write(tmp_path, **config)).scaling == scaling


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_delta_is_scaled_b_times_a(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {name: tensor.to(dtype) for name, tensor in pair().items()}
    delta = open_adapter(write(tmp_path, tensors)).delta(HUB)
    a, b = (tensors[f"{STEM}.lora_{matrix}.weight"].double().numpy() for matrix in "AB")
    assert delta.dtype == torch.float32
    assert delta.shape == (7, 10)
    np.testing.assert_allclose(delta.numpy(), 1.5 * (b @ a), rtol=0, atol=1e-6 * np.abs(b @ a).max())


def test_the_rows_of_dora_get_the_lengths_it_has_learned(tmp_path: Path) -> None:
    random = torch.Generator().manual_seed(5)
    lengths, changed = torch.rand(7, generator=random), torch.randn(7, 10, generator=random)
    files = open_adapter(write(tmp_path, pair() | {f"{STEM}.lora_magnitude_vector": lengths}, use_dora=True))
    found = files.rescaled(HUB, changed).double().numpy()
    exact = changed.double().numpy()
    due = exact * (lengths.double().numpy() / np.linalg.norm(exact, axis=1))[:, None]
    np.testing.assert_allclose(found, due, rtol=1e-6, atol=0)
    zero = torch.zeros(7, 10)
    assert torch.equal(files.rescaled(HUB, zero), zero)
    assert torch.equal(open_adapter(write(tmp_path, pair())).rescaled(HUB, changed), changed)


def test_dora_without_its_magnitudes(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, pair(), use_dora=True))
    assert "not pairs of A and B with a magnitude" in message
    assert f"{STEM}.lora_magnitude_vector" in message
    files = open_adapter(write(tmp_path, pair() | {f"{STEM}.lora_magnitude_vector": torch.ones(1)}, use_dora=True))
    with pytest.raises(UserError, match="not one for each of its rows"):
        files.rescaled(HUB, torch.ones(7, 10))


@pytest.mark.parametrize(
    ("stem", "name"),
    [
        (STEM, HUB),
        (
            "base_model.model.model.language_model.layers.27.mlp.router",
            "language_model.model.layers.27.mlp.router.weight",
        ),
    ],
)
def test_names_on_disk(stem: str, name: str) -> None:
    assert hub_name(stem) == name


@pytest.mark.parametrize("base", [None, ""])
def test_an_adapter_may_name_no_base(tmp_path: Path, base: str | None) -> None:
    assert open_adapter(write(tmp_path, base_model_name_or_path=base)).base_name == ""


def test_a_missing_folder(tmp_path: Path) -> None:
    assert "there is no adapter_config.json" in refusal(tmp_path / "none")


@pytest.mark.parametrize(
    ("file", "said"), [("adapter_config.json", "there is no"), ("adapter_model.safetensors", "can't be read")]
)
def test_a_missing_file(tmp_path: Path, file: str, said: str) -> None:
    (write(tmp_path) / file).unlink()
    message = refusal(tmp_path)
    assert file in message
    assert said in message


@pytest.mark.parametrize("text", ["", "{", "\x00"])
def test_a_damaged_configuration(tmp_path: Path, text: str) -> None:
    (write(tmp_path) / "adapter_config.json").write_text(text)
    assert "not valid JSON" in refusal(tmp_path)


@pytest.mark.parametrize("text", ["[]", "{}", '{"peft_type": "IA3"}'])
def test_what_is_not_lora(tmp_path: Path, text: str) -> None:
    (write(tmp_path) / "adapter_config.json").write_text(text)
    assert "not LoRA" in refusal(tmp_path)


@pytest.mark.parametrize("config", [{"r": None}, {"r": 0}, {"lora_alpha": "8"}, {"lora_alpha": None}])
def test_a_configuration_without_rank_or_alpha(tmp_path: Path, config: dict[str, Any]) -> None:
    assert "no positive r and lora_alpha" in refusal(write(tmp_path, **config))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"modules_to_save": ["lm_head"]}, "whole modules"),
        ({"bias": "all"}, "trained biases"),
        ({"bias": "lora_only"}, "trained biases"),
        ({"rank_pattern": {"q_proj": 2}}, "rank that differs"),
        ({"alpha_pattern": {"q_proj": 2}}, "alpha that differs"),
        ({"init_lora_weights": "pissa_niter_16"}, "pissa_niter_16"),
        ({"init_lora_weights": "OLoRA"}, "changes the base"),
        ({"lora_bias": True, "bias": "all"}, "biases, trained biases"),
        *(({key: [1]}, meaning) for key, meaning in UNSUPPORTED.items()),
    ],
)
def test_what_would_be_merged_wrongly_is_refused(tmp_path: Path, config: dict[str, Any], said: str) -> None:
    message = refusal(write(tmp_path, **config))
    assert said in message
    assert "can't be merged" in message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("matrix", ["A", "B"])
def test_a_value_that_is_not_finite(tmp_path: Path, matrix: str, value: float) -> None:
    tensors = pair()
    tensors[f"{STEM}.lora_{matrix}.weight"][1, 2] = value
    assert f"{STEM}.lora_{matrix}.weight is not finite" in refusal(write(tmp_path, tensors))


@pytest.mark.parametrize("lost", ["A", "B"])
def test_half_a_pair(tmp_path: Path, lost: str) -> None:
    tensors = pair() | pair(STEM.replace("q_proj", "k_proj"))
    del tensors[f"{STEM}.lora_{lost}.weight"]
    message = refusal(write(tmp_path, tensors))
    assert "not pairs of A and B" in message
    assert STEM in message


@pytest.mark.parametrize("name", [f"{STEM}.weight", f"{STEM}.lora_magnitude_vector", f"{STEM}.lora_embedding_A"])
def test_a_tensor_that_is_of_no_pair(tmp_path: Path, name: str) -> None:
    message = refusal(write(tmp_path, pair() | {name: torch.zeros(2)}))
    assert name in message


def test_an_empty_adapter(tmp_path: Path) -> None:
    assert "no tensor at all" in refusal(write(tmp_path, {}))


@pytest.mark.parametrize("kept", [0.9, 0.0])
def test_a_truncated_file(tmp_path: Path, kept: float) -> None:
    file = write(tmp_path) / "adapter_model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * kept)])
    assert "can't be read" in refusal(tmp_path)


EXPERTS = "base_model.model.model.language_model.layers.3.mlp.experts"


def expert_pairs(experts: int = 6, rank: int = 4, into: int = 10, out: int = 7) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        f"{stem}.lora_{matrix}.weight": torch.randn(shape, generator=generator)
        for stem in (EXPERTS, f"{EXPERTS}.base_layer")
        for matrix, shape in (("A", (experts * rank, into)), ("B", (out, rank * experts)))
    }


def test_the_changes_of_routed_experts(tmp_path: Path) -> None:
    """PEFT's layout: the rows of A by expert, the columns of B expert after expert within each rank."""
    tensors = expert_pairs()
    files = open_adapter(write(tmp_path, tensors))
    hub = "language_model.model.layers.3.mlp.experts"
    assert files.pairs == {f"{hub}.fc1.weight": f"{EXPERTS}.base_layer", f"{hub}.fc2.weight": EXPERTS}
    for name, stem in files.pairs.items():
        assert files.shape(name) == (6, 10, 7)
        a, b = (tensors[f"{stem}.lora_{matrix}.weight"].double().numpy() for matrix in "AB")
        for expert, delta in enumerate(files.deltas(name)):
            due = sum(1.5 * np.outer(a[expert * 4 + rank], b[:, rank * 6 + expert]) for rank in range(4))
            assert delta.dtype == torch.float32
            np.testing.assert_allclose(delta.numpy(), due, rtol=0, atol=1e-6 * np.abs(due).max())
        assert expert == 5


@pytest.mark.parametrize("kept", [EXPERTS, f"{EXPERTS}.base_layer"])
def test_one_pair_of_routed_experts_alone_could_be_of_either_weight(tmp_path: Path, kept: str) -> None:
    tensors = {name: tensor for name, tensor in expert_pairs().items() if name.rpartition(".lora_")[0] == kept}
    assert "does not say of which" in refusal(write(tmp_path, tensors))


def test_pairs_of_routed_experts_that_the_rank_does_not_divide(tmp_path: Path) -> None:
    files = open_adapter(write(tmp_path, expert_pairs(experts=3, rank=2)))
    with pytest.raises(UserError, match="6 rows in A and 6 columns in B, at a rank of 4"):
        files.shape("language_model.model.layers.3.mlp.experts.fc1.weight")
