"""A model without a part computes the same with the rest, holds nothing of the part, and says so when it is called."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from aria_finetune.errors import UserError
from aria_finetune.model.absent import Absent, Part
from aria_finetune.model.hub_layout import open_checkpoint
from aria_finetune.model.loading import Experts, load_model
from aria_finetune.model.nf4 import unquantised_experts
from aria_finetune.model.vision import image_features
from aria_finetune.model.weight_stream import read_ahead

VISION = {"vision tower", "projector"}
BOTH: list[Experts] = ["nf4", "bf16"]


def some_tiles() -> dict[str, torch.Tensor]:
    pixels = torch.randint(0, 256, (2, 3, 490, 490), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return {
        "pixels_490": pixels,
        "extents_490": torch.tensor([[490, 336], [490, 490]]),
        "tile_order": torch.tensor([1, 0]),
    }


@pytest.mark.parametrize("experts", BOTH)
def test_without_vision(experts: Experts, ids: torch.Tensor) -> None:
    whole, blind = load_model("tiny", experts=experts), load_model("tiny", experts=experts, without="vision")
    assert {part.name for part in whole.components} - {part.name for part in blind.components} == VISION
    assert sum(part.bytes for part in whole.components if part.name not in VISION | {"norms and buffers"}) == sum(
        part.bytes for part in blind.components if part.name != "norms and buffers"
    )
    assert not any("vision" in name or "projector" in name for name in blind.model.state_dict())
    assert unquantised_experts(blind.model) == unquantised_experts(whole.model)
    with torch.no_grad():
        assert torch.equal(whole.model(input_ids=ids).logits, blind.model(input_ids=ids).logits)


@pytest.mark.parametrize("experts", BOTH)
def test_vision_alone(experts: Experts) -> None:
    whole, sight = load_model("tiny", experts=experts), load_model("tiny", experts=experts, without="decoder")
    assert {part.name for part in sight.components} == VISION
    features = image_features(whole.model, some_tiles())
    assert features is not None
    assert features.std() > 1e-3
    again = image_features(sight.model, some_tiles())
    assert again is not None
    assert torch.equal(features, again)


def test_calling_what_was_left_out_is_told() -> None:
    model = load_model("tiny", without="vision").model
    with pytest.raises((AttributeError, RuntimeError), match=r"model\.vision_tower has no .* loaded without it"):
        image_features(model, some_tiles())
    for module in (model.model.vision_tower, model.model.multi_modal_projector):
        assert isinstance(module, Absent)
        with pytest.raises(RuntimeError, match=r"was called, but this model was loaded without it"):
            module(torch.zeros(1))
    with pytest.raises(RuntimeError, match="lm_head was called"):
        load_model("tiny", without="decoder").model.lm_head(torch.zeros(1))


@pytest.mark.parametrize(("without", "kept"), [("vision", "language_model."), ("decoder", ("vision_", "multi_modal_"))])
def test_the_weights_of_a_part_are_not_read(
    monkeypatch: pytest.MonkeyPatch, without: Part, kept: str | tuple[str, ...]
) -> None:
    read: list[str] = []

    def watched(checkpoint, heights):  # type: ignore[no-untyped-def]
        for piece in read_ahead(checkpoint, heights):
            read.append(piece.name)
            yield piece

    monkeypatch.setattr("aria_finetune.model.loading.read_ahead", watched)
    load_model("tiny", without=without)
    assert read
    assert set(read) == {name for name in open_checkpoint("tiny").stored if name.startswith(kept)}


def test_a_checkpoint_must_have_them_all_the_same(edited) -> None:  # type: ignore[no-untyped-def]
    folder: Path = edited(lambda weights: weights.pop("multi_modal_projector.query"))
    with pytest.raises(UserError, match=r"1 missing keys: model\.multi_modal_projector\.query"):
        load_model(str(folder), without="vision")
