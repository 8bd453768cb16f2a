"""Stored features in the place of pictures, for the collator. Knows which rows lost theirs, and nothing of how they are made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from aria_finetune.data.pictures import Shown, shown
from aria_finetune.data.rows import Sight
from aria_finetune.data_formats.record import Media
from aria_finetune.errors import MediaError, UserError
from aria_finetune.features.identity import FeatureKeys
from aria_finetune.features.store import BrokenFeatures, FeatureStore, Form

Failures = Mapping[tuple[int, int], tuple[str, str]]
"""By row and medium, the reason and the detail with which the medium could not be used."""


@dataclass(frozen=True)
class FeatureForms:
    """What features look like: image tokens of a tile by its side in pixels, width of the decoder, dtype."""

    tokens: Mapping[int, int]
    hidden: int
    dtype: torch.dtype

    def of(self, sight: Sight) -> Form:
        """The form of the features of a sight."""
        return Form((sight.tiles, self.tokens[sight.tile], self.hidden), self.dtype)


@dataclass(frozen=True)
class StoredFeatures:
    """Gives the features of what a row shows of a medium; a `Look` of the collator's."""

    store: FeatureStore
    keys: FeatureKeys
    forms: FeatureForms
    failures: Failures

    def __call__(self, row: int, media: Media, sights: Sequence[Sight]) -> dict[Shown, list[torch.Tensor]]:
        """The features of every tile, (tokens, hidden), of sights of one medium.

        Raises:
            MediaError: the medium could not be used when features were computed.
            UserError: features are damaged, or were removed, since then.
        """
        failure = self.failures.get((row, sights[0].media))
        if failure is not None:
            raise MediaError(*failure)
        return {shown(sight): list(self._read(media, sight).unbind()) for sight in dict.fromkeys(sights)}

    def _read(self, media: Media, sight: Sight) -> torch.Tensor:
        key = self.keys.of(media, sight)
        if key is None:
            raise self._unsound(media, self.store.folder, "they were never computed")
        try:
            return self.store.read(key, self.forms.of(sight))
        except BrokenFeatures as error:
            self.store.remove(key)
            raise self._unsound(media, self.store.path_of(key), f"the file {error}") from error

    def _unsound(self, media: Media, where: Path, what: str) -> UserError:
        return UserError(
            f"the image features of {media.name} can't be used: {what}",
            where=str(where),
            fix="go on with --resume, which computes them again; see whether the disk is sound",
        )
