"""The image features of a run: those on the disk are looked up, those that are missing are computed, before it begins.

The recipe stops here.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console

from aria_finetune.advice import explain_out_of_memory
from aria_finetune.checkpoint.space import explain_full_disk, shown_bytes
from aria_finetune.data.dataset import rows_of_updates
from aria_finetune.data.decoding import Decoder
from aria_finetune.data.pictures import Pictures
from aria_finetune.errors import UserError
from aria_finetune.features.filling import Wanted, file_bytes, fill
from aria_finetune.features.identity import FeatureKeys, encoder_identity, hash_media
from aria_finetune.features.reading import Failures, FeatureForms, StoredFeatures
from aria_finetune.features.store import DISK_REMEDY, GIB, FeatureStore, Form, UsedStore, use_store
from aria_finetune.layer_progress import LayerProgress
from aria_finetune.material import DTYPES, Material, build_showing, choose_device, load_base
from aria_finetune.model.loading import hidden_size
from aria_finetune.model.settings import vision_tokens
from aria_finetune.model.vision import image_features
from aria_finetune.recipe import Recipe
from aria_finetune.run_size import planned_steps, updates_per_epoch
from aria_finetune.trainer.aria import deterministic


@dataclass(frozen=True)
class RunFeatures:
    """The stored features of a run: how to read them, how many pictures they are of, how many were computed for it."""

    stored: StoredFeatures
    pictures: int
    computed: int
    bytes: int

    def describe(self) -> dict[str, Any]:
        """What `run.json` says of them."""
        folder = str(self.stored.store.folder)
        return {"folder": folder, "pictures": self.pictures, "computed": self.computed, "bytes": self.bytes}


@contextmanager
def run_features(recipe: Recipe, material: Material, console: Console) -> Iterator[RunFeatures | None]:
    """The features of every picture that a run will come to, all of them on the disk; None where it keeps none.

    Within the block no other process removes them.

    Raises:
        UserError: they don't fit the limit or the disk, the folder can't be written to, or with `data.on_bad_media` of
            `fail` a picture can't be used.
    """
    if recipe.feature_folder is None or not material.has_pictures:
        yield None
        return
    with use_store(recipe.feature_folder) as store:
        yield _complete(recipe, material, store, console)


def check_feature_folder(recipe: Recipe) -> None:
    """Refuse a folder inside that of the run, which is removed when the run does not begin or is replaced.

    Raises:
        UserError: it is there.
    """
    folder = recipe.feature_folder
    if folder is not None and folder.resolve().is_relative_to(recipe.output_dir.resolve()):
        raise UserError(
            f"image features can't be kept in the run's own folder ({folder})",
            where=str(recipe.file),
            fix="name a folder outside of output.dir in data.cache_image_features",
        )


def _complete(recipe: Recipe, material: Material, store: UsedStore, console: Console) -> RunFeatures:
    wanted = _wanted(recipe, material, console)
    forms = wanted.all()
    sizes = file_bytes(forms)
    missing, damaged = _unsound(store, forms, console)
    for key in damaged:
        console.print(f"damaged, and computed again: {store.path_of(key)}", highlight=False, soft_wrap=True)
    total = sum(sizes.values())
    console.print(
        f"image features of {len(forms):,} pictures ({shown_bytes(total)}) in {store.folder}/: "
        f"{len(forms) - len(missing) - len(damaged):,} are there, {len(missing) + len(damaged):,} are computed now",
        highlight=False,
    )
    failures: Failures = {}
    computed = 0
    if missing or damaged or wanted.nameless():
        with store.filling(lambda line: console.print(line, highlight=False)):
            # Another run may have computed them while this one waited, and read them now.
            for key in damaged:
                if not store.is_sound(key, forms[key]):
                    store.remove(key)
            missing = _missing(store, forms)
            for key in missing:
                store.remove(key)  # what there is of it is broken
            needed = store.make_room(sizes, round(recipe.data.cache_limit_gib * GIB))
            with explain_full_disk(store.folder, needed, "the folder of image features", DISK_REMEDY):
                failures = _fill(recipe, wanted, store, missing, console)
            computed = len(missing) - (len(_missing(store, forms)) if failures else 0)
    store.mark_used(forms)
    return RunFeatures(
        StoredFeatures(FeatureStore(store.folder), wanted.keys, wanted.forms, failures), len(forms), computed, total
    )


def _wanted(recipe: Recipe, material: Material, console: Console) -> Wanted:
    rows = _rows_to_come(recipe, material)
    plans = material.plans
    media = [plans[row].record.media[sight.media] for row in rows for sight in plans[row].sights]
    device, dtype = choose_device(recipe), DTYPES[recipe.model.compute_dtype]
    with LayerProgress("reading media for their hashes", console, unit="files") as progress:
        files = hash_media({medium.name: medium for medium in media}, progress)
    keys = FeatureKeys(encoder_identity(material.checkpoint, dtype, device), build_showing(recipe), files)
    forms = FeatureForms(vision_tokens(material.checkpoint), hidden_size(material.checkpoint), dtype)
    return Wanted(plans, rows, keys, forms)


def _rows_to_come(recipe: Recipe, material: Material) -> list[int]:
    """Rows that the run will train or be evaluated on, unless something stops it before."""
    train, trained = recipe.train, material.train_rows
    order = trained.order(train.seed)
    rows_per_update = train.per_device_train_batch_size * train.gradient_accumulation_steps
    updates = planned_steps(recipe, updates_per_epoch(recipe, len(order)))
    evaluated = len(material.eval_rows.plans) if recipe.eval_strategy != "no" else 0
    start = len(trained.plans)
    return [*rows_of_updates(order, updates, rows_per_update), *range(start, start + evaluated)]


def _unsound(store: UsedStore, forms: Mapping[str, Form], console: Console) -> tuple[list[str], list[str]]:
    """Keys of features that are not there, and of those that are damaged: better found now than when a step needs them."""
    missing = _missing(store, forms)
    there = sorted(forms.keys() - set(missing))
    damaged = []
    with LayerProgress("checking image features", console, unit="pictures") as progress:
        for done, key in enumerate(there, 1):
            if not store.is_sound(key, forms[key]):
                damaged.append(key)
            progress(done, len(there))
    return missing, damaged


def _missing(store: UsedStore, forms: Mapping[str, Form]) -> list[str]:
    return [key for key, form in forms.items() if not store.holds(key, form)]


def _fill(recipe: Recipe, wanted: Wanted, store: UsedStore, missing: list[str], console: Console) -> Failures:
    device = choose_device(recipe)
    encoder = _Encoder(recipe)
    with (
        closing(Decoder(recipe.data.media_timeout)) as decoder,
        LayerProgress("computing image features", console, unit="pictures") as progress,
        explain_out_of_memory(recipe, device, "loading"),
        # As training does: the same bits come out as where the tower runs in every step.
        deterministic(enabled=device == "cpu"),
    ):
        try:
            return fill(
                wanted,
                store,
                set(missing),
                Pictures(wanted.keys.showing, decoder),
                encoder,
                on_bad_media=recipe.data.on_bad_media,
                workers=recipe.train.dataloader_num_workers,
                watch=progress,
            )
        finally:
            encoder.free()


class _Encoder:
    """The vision tower and the projector, loaded when the first tile comes."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._model: Any = None

    def __call__(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        if self._model is None:
            self._model = load_base(self._recipe, without="decoder").model
        device = self._model.model.vision_tower.device
        features = image_features(self._model, {name: tensor.to(device) for name, tensor in batch.items()})
        assert features is not None  # noqa: S101 (there are tiles)
        return features[0].cpu()

    def free(self) -> None:
        """Give their memory back."""
        self._model = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
