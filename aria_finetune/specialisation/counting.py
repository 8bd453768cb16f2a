"""Counts, over rows of data, how often tokens of each domain go to each expert: with an adapter and without, side by side.

Knows the model, the collator's batches and the plans of rows. Holds counts alone, whatever the number of rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from transformers import AriaForConditionalGeneration

from aria_finetune.data.collation import Batch
from aria_finetune.data.rows import RowPlan, Sight
from aria_finetune.model.documents import document_places
from aria_finetune.model.routing_counts import RoutingCounts
from aria_finetune.model.vision import as_encoder_outputs, image_features
from aria_finetune.specialisation.shares import DOMAINS, IMAGE, PAGE, TEXT, VIDEO, Ints

BASE, ADAPTER = "base", "adapter"


@dataclass
class Found:
    """What was counted.

    Attributes:
        loads: by way of computing (`base`, and with an adapter `adapter`), choices (layers, domains, experts).
        tokens: of each domain.
        rows: that were counted.
        changed: by layer and domain, tokens that the model with its adapter sends to another set of experts than without;
            None without one.
    """

    loads: dict[str, Ints]
    tokens: Counter[str] = field(default_factory=Counter)
    rows: int = 0
    changed: Ints | None = None


def count_routing(
    model: AriaForConditionalGeneration | PeftModel,
    batches: Iterable[Batch],
    plans: list[RowPlan],
    vision_tokens: Mapping[int, int],
) -> Found:
    """Send batches through the decoder and count.

    Args:
        model: Aria in evaluation mode; with an adapter around it, it is computed with and without.
        batches: packed rows, as the collator makes them, on any device.
        plans: of all rows, by the numbers that batches have in `rows`.
        vision_tokens: image tokens of a tile by its side in pixels.
    """
    adapted = isinstance(model, PeftModel)
    aria = model.get_base_model() if adapted else model
    counts = {name: RoutingCounts(aria, len(DOMAINS)) for name in ((BASE, ADAPTER) if adapted else (BASE,))}
    changed_LD = torch.zeros(len(aria.model.language_model.layers), len(DOMAINS), dtype=torch.int64)
    found = Found({})
    for batch in batches:
        rows = batch["rows"].tolist()
        kinds_T = token_kinds(batch["input_ids"][0], [plans[row] for row in rows], vision_tokens, image_token(aria))
        chosen = _choices(model, aria, counts, batch, kinds_T.to(aria.device))
        if adapted:
            changed_LD += changed(chosen[BASE], chosen[ADAPTER], kinds_T.to(aria.device)).cpu()
        found.rows += len(rows)
        found.tokens.update({DOMAINS[kind]: int((kinds_T == kind).sum()) for kind in range(len(DOMAINS))})
    found.loads = {name: count.load_LKE.cpu().numpy() for name, count in counts.items()}
    found.changed = changed_LD.numpy() if adapted else None
    return found


def _choices(
    model: Any,
    aria: AriaForConditionalGeneration,
    counts: Mapping[str, RoutingCounts],
    batch: Batch,
    kinds_T: torch.Tensor,
) -> dict[str, list[torch.Tensor]]:
    """Compute the decoder in every way; by way, the sets of experts of each layer."""
    on_device = {name: value.to(aria.device) for name, value in batch.items() if isinstance(value, torch.Tensor)}
    inputs: dict[str, Any] = {name: on_device[name] for name in ("input_ids", "position_ids")}
    inputs |= document_places(batch["lengths"], aria.device)
    chosen: dict[str, list[torch.Tensor]] = {}
    with torch.no_grad():
        for name, count in counts.items():
            plain = name == BASE and ADAPTER in counts
            way: AbstractContextManager[Any] = model.disable_adapter() if plain else nullcontext()
            with way, count.counting(kinds_T) as sets:
                if not chosen or _sees(aria):
                    features = image_features(aria, on_device)
                if features is not None:
                    inputs["mm_encoder_outputs"] = as_encoder_outputs(features)
                aria.model(**inputs, use_cache=False)
            chosen[name] = sets
    return chosen


def _sees(aria: AriaForConditionalGeneration) -> bool:
    """Whether an adapter changes image features, so that they are others without it."""
    parts = (aria.model.vision_tower, aria.model.multi_modal_projector)
    return any(isinstance(module, LoraLayer) for part in parts for module in part.modules())


def changed(before: list[torch.Tensor], after: list[torch.Tensor], kinds_T: torch.Tensor) -> torch.Tensor:
    """By layer and domain, how many tokens have another set of experts; int64 (layers, domains)."""
    counted = []
    for before_TK, after_TK in zip(before, after, strict=True):
        other_T = (before_TK != after_TK).any(-1)
        counted.append(torch.bincount(kinds_T[other_T], minlength=len(DOMAINS)))
    return torch.stack(counted)


def token_kinds(
    ids_T: torch.Tensor, plans: Iterable[RowPlan], vision_tokens: Mapping[int, int], image_id: int
) -> torch.Tensor:
    """The domain of every token of packed rows, by its number in `DOMAINS`: int64 (tokens,), on the CPU.

    Raises:
        RuntimeError: the rows have another number of image tokens than their plans.
    """
    kinds_T = torch.full((len(ids_T),), DOMAINS.index(TEXT))
    visual = list(_visual_kinds(plans, vision_tokens))
    places_T = ids_T.cpu() == image_id
    if int(places_T.sum()) != len(visual):
        raise RuntimeError(f"{int(places_T.sum())} image tokens in rows that were planned with {len(visual)}")
    kinds_T[places_T] = torch.tensor(visual, dtype=torch.int64)
    return kinds_T


def _visual_kinds(plans: Iterable[RowPlan], vision_tokens: Mapping[int, int]) -> Iterator[int]:
    for plan in plans:
        for sight in plan.sights:
            yield from [DOMAINS.index(domain(sight))] * (sight.tiles * vision_tokens[sight.tile])


def domain(sight: Sight) -> str:
    """What a picture of a row is: a still image, a frame of a video, a page of a document."""
    if sight.time is not None:
        return VIDEO
    return IMAGE if sight.page is None else PAGE


def image_token(aria: AriaForConditionalGeneration) -> int:
    """The id that stands for a token of an image."""
    return int(aria.config.image_token_index)
