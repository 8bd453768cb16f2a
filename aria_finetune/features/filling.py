"""Compute the features that a run lacks, before its first step.

Media are decoded ahead by the workers of a loader, and go through the tower in the order of the rows. Knows planned
rows, the store and a function that encodes tiles. Knows nothing of where that function comes from.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from aria_finetune.data.collation import BadRow, OnBadMedia
from aria_finetune.data.pictures import CHANGED, Pictures, by_medium, shown, stack_tiles
from aria_finetune.data.rows import RowPlan, Sight
from aria_finetune.data_formats.record import Media
from aria_finetune.errors import MediaError, UserError
from aria_finetune.features.identity import FeatureKeys, Watch, stamp_of
from aria_finetune.features.reading import Failures, FeatureForms
from aria_finetune.features.store import HEADER_BYTES, FeatureStore, Form

Decoded = dict[str, torch.Tensor] | BadRow | UserError
"""Tiles, or a medium that can't be used, or what ends the run."""
Encode = Callable[[Mapping[str, torch.Tensor]], torch.Tensor]
"""Takes what `stack_tiles` gives, and returns the features of all tiles in their order: (image tokens, hidden)."""


@dataclass(frozen=True, slots=True)
class Job:
    """Sights of one medium of a row whose features are to be computed together."""

    row: int
    sights: tuple[Sight, ...]


@dataclass(frozen=True)
class Wanted:
    """The pictures of some rows, and what their features are known by and look like."""

    plans: Sequence[RowPlan]
    rows: Collection[int]
    keys: FeatureKeys
    forms: FeatureForms

    def groups(self) -> Iterator[Job]:
        """All sights, medium by medium, row by row."""
        for row in self.rows:
            for sights in by_medium(self.plans[row].sights):
                yield Job(row, tuple(dict.fromkeys(sights)))

    def key(self, row: int, sight: Sight) -> str | None:
        """What the features of a sight of a row are known by, if anything."""
        return self.keys.of(self.plans[row].record.media[sight.media], sight)

    def all(self) -> dict[str, Form]:
        """The form of all features by their keys."""
        found: dict[str, Form] = {}
        for job in self.groups():
            for sight in job.sights:
                key = self.key(job.row, sight)
                if key is not None:
                    found[key] = self.forms.of(sight)
        return found

    def nameless(self) -> int:
        """How many pictures have no key, because their file can't be read or is another one."""
        return sum(self.key(job.row, sight) is None for job in self.groups() for sight in job.sights)


def file_bytes(forms: Mapping[str, Form]) -> dict[str, int]:
    """Bytes of the files of features, at most."""
    return {key: form.bytes + HEADER_BYTES for key, form in forms.items()}


def fill(
    wanted: Wanted,
    store: FeatureStore,
    missing: Collection[str],
    pictures: Pictures,
    encode: Encode,
    *,
    on_bad_media: OnBadMedia,
    workers: int,
    watch: Watch,
) -> Failures:
    """Compute and store the features with the keys in `missing`.

    Args:
        wanted: the pictures of the run.
        store: takes the features.
        missing: keys that the store lacks.
        pictures: decodes.
        encode: computes.
        on_bad_media: with `fail`, a medium that can't be used ends it; with `skip`, it is left out and reported.
        workers: processes that decode; with 0, this one does.
        watch: is told how many pictures are done, and of how many.

    Returns:
        For each row and medium that can't be used the reason, which is what decoding it for that row says.

    Raises:
        UserError: with `on_bad_media` of `fail`, a medium can't be used; or decoding can't be started.
    """
    decoding = _Decoding(wanted, pictures, _first_jobs(wanted, missing))
    taking = _Taking(wanted, store, encode, on_bad_media)
    total, done = len(missing) + wanted.nameless(), 0
    loader = DataLoader(
        decoding, batch_size=None, collate_fn=_as_it_is, num_workers=workers, generator=torch.Generator()
    )
    for job, decoded in zip(decoding.jobs, loader, strict=True):
        taking.take(job, decoded)
        done += len(job.sights)
        watch(done, total)
    # For a row whose picture failed for an earlier one, decoding says itself what is the matter, as it will of
    # the row's own frames of a clip.
    for job in wanted.groups() if taking.stored < set(missing) else ():
        named = {sight: wanted.key(job.row, sight) for sight in job.sights}
        sights = tuple(sight for sight, key in named.items() if key in missing and key not in taking.stored)
        if sights and (job.row, sights[0].media) not in taking.failures:
            again = Job(job.row, sights)
            taking.take(again, decoding.decode(again))
    return taking.failures


def _first_jobs(wanted: Wanted, missing: Collection[str]) -> list[Job]:
    """What is to be computed: what several rows show, for the first of them, and what has no key for each."""
    left, jobs = set(missing), []
    for job in wanted.groups():
        named = {sight: wanted.key(job.row, sight) for sight in job.sights}
        sights = tuple(sight for sight, key in named.items() if key is None or key in left)
        left.difference_update(key for key in named.values() if key is not None)
        if sights:
            jobs.append(Job(job.row, sights))
    return jobs


@dataclass(frozen=True)
class _Decoding(Dataset[Decoded]):
    """The tiles of jobs by their numbers, for a loader."""

    wanted: Wanted
    pictures: Pictures
    jobs: Sequence[Job]

    def __len__(self) -> int:
        return len(self.jobs)

    def __getitem__(self, number: int) -> Decoded:
        return self.decode(self.jobs[number])

    def decode(self, job: Job) -> Decoded:
        """The tiles of a job, in its order, or why there are none."""
        plan = self.wanted.plans[job.row]
        media = plan.record.media[job.sights[0].media]
        try:
            tiles = self.pictures.of(media, job.sights)
            self._require_hashed(job, media)
        except MediaError as error:
            return BadRow.of(job.row, plan, media.name, error)
        except UserError as error:
            return error
        return stack_tiles([tile for sight in job.sights for tile in tiles[shown(sight)]])

    def _require_hashed(self, job: Job, media: Media) -> None:
        """Make sure that what was decoded is what the key is made of."""
        hashed, now = self.wanted.keys.files.get(media.name), stamp_of(Path(media.path or ""))
        if self.wanted.key(job.row, job.sights[0]) is None or not hashed or now != hashed.stamp:
            raise MediaError(CHANGED, "no longer the file that it was when the run started")


class _Taking:
    """Encodes and stores what was decoded."""

    def __init__(self, wanted: Wanted, store: FeatureStore, encode: Encode, on_bad_media: OnBadMedia) -> None:
        self._wanted = wanted
        self._store = store
        self._encode = encode
        self._on_bad_media = on_bad_media
        self.stored: set[str] = set()
        self.failures: dict[tuple[int, int], tuple[str, str]] = {}

    def take(self, job: Job, decoded: Decoded) -> None:
        """Store the features of a job, or note why there are none."""
        if isinstance(decoded, UserError):
            raise decoded
        if isinstance(decoded, BadRow):
            if self._on_bad_media == "fail":
                raise decoded.refusal()
            self.failures[job.row, job.sights[0].media] = (decoded.reason, decoded.detail)
            return
        forms = [self._wanted.forms.of(sight) for sight in job.sights]
        features = torch.split(self._encode(decoded), [form.shape[0] * form.shape[1] for form in forms])
        for sight, form, part in zip(job.sights, forms, features, strict=True):
            key = self._wanted.key(job.row, sight)
            assert key is not None  # noqa: S101 (what has none is not decoded)
            self._store.write(key, part.reshape(form.shape))
            self.stored.add(key)


def _as_it_is(decoded: Any) -> Any:
    return decoded
