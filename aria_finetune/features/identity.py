"""What stored features are known by: the bytes of the media file, what is shown of it and how, and what computed them.

All of it is known before anything is decoded. Knows nothing of where features are kept.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from itertools import chain
from pathlib import Path

import torch

from aria_finetune.data.decoding_process import HASHED_BYTES
from aria_finetune.data.pictures import Showing
from aria_finetune.data.rows import Sight
from aria_finetune.data_formats.record import Media
from aria_finetune.errors import MediaError
from aria_finetune.media.paths import require_regular_file
from aria_finetune.media.row_groups import RowGroups
from aria_finetune.model.expert_weights import arithmetic
from aria_finetune.model.hub_layout import HubCheckpoint
from aria_finetune.provenance import fingerprint_objects, hash_file

RULES = 2
"""Of how a file becomes tiles, and tiles features. To be raised with every change of either: 2 is model/tower.py."""
PACKAGES = ("torch", "transformers", "pillow", "av", "pypdfium2")
"""Those that decode, and those that compute."""
WEIGHTS = ("vision_tower.", "multi_modal_projector.")
"""How the names of the tower's and the projector's weights start on disk."""
CONFIGURED = ("vision_config", "vision_feature_layer", "projector_patch_to_query_dict")
HASHERS = 4

Watch = Callable[[int, int], None]
"""Takes how many are done, and of how many."""


@dataclass(frozen=True, slots=True)
class Stamp:
    """What changes when a file is written to or replaced."""

    inode: int
    size: int
    modified: int


@dataclass(frozen=True, slots=True)
class HashedFile:
    """A file's SHA-256, and its stamp from before it was read."""

    sha256: str
    stamp: Stamp


@dataclass(frozen=True)
class FeatureKeys:
    """Names the features of pictures.

    `encoder` is what `encoder_identity` gives, `showing` how pictures become tiles, `files` the hashed media by name.
    """

    encoder: str
    showing: Showing
    files: Mapping[str, HashedFile]

    def of(self, media: Media, sight: Sight) -> str | None:
        """64 hexadecimal digits; None for a file that could not be read, or is not the one that was converted."""
        file = self.files.get(media.name)
        if file is None:
            return None
        compared = media.packed is not None or file.stamp.size <= HASHED_BYTES
        if media.sha256 and file.sha256 != media.sha256 and compared:
            return None
        how: tuple[object, ...]
        if sight.page is not None:
            how = ("page", sight.page)
        elif sight.time is not None:
            how = ("frame", sight.time, self.showing.video_limits)
        else:
            # The size that the row was planned with: what is stored was checked against it.
            size = (media.width, media.height)
            how = ("image", size, self.showing.split_images, self.showing.image_limits)
        return fingerprint_objects([(self.encoder, file.sha256, sight.tile, sight.tiles, how)])


def encoder_identity(checkpoint: HubCheckpoint, dtype: torch.dtype, device: str) -> str:
    """64 hexadecimal digits over the weights of tower and projector, and all else that decides what comes out of them.

    Every byte of these weights is read; it does not matter which file they are in, or what the decoder's are. `device`
    is `cuda` or `cpu`, whose results differ by rounding, as those of processors do that compute in another dtype.
    """
    computed = arithmetic(dtype, torch.device(device))
    versions = {name: version(name) for name in PACKAGES}
    settings = {name: checkpoint.config.get(name) for name in CONFIGURED}
    digest = hashlib.sha256(
        json.dumps([RULES, versions, str(dtype), str(computed), device, settings], sort_keys=True).encode()
    )
    for name in sorted(name for name in checkpoint.stored if name.startswith(WEIGHTS)):
        tensor = checkpoint.read(name).contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def hash_media(media: Mapping[str, Media], watch: Watch) -> dict[str, HashedFile]:
    """Read media through, given by their names; those that can't be read, or have a link in their path by now, are left out."""
    hashed: dict[str, HashedFile] = {}
    files = {name: medium for name, medium in media.items() if medium.packed is None}
    packed = {name: medium for name, medium in media.items() if medium.packed is not None}
    with ThreadPoolExecutor(HASHERS) as pool:
        try:
            # What is packed is read in its order, row group by row group, by one.
            found = chain(pool.map(_hashed, files), map(partial(_hashed_inside, RowGroups(groups=1)), packed.values()))
            for done, (name, file) in enumerate(zip([*files, *packed], found, strict=True), start=1):
                if file is not None:
                    hashed[name] = file
                watch(done, len(media))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return hashed


def _hashed_inside(row_groups: RowGroups, medium: Media) -> HashedFile | None:
    path = Path(medium.path or "")
    stamp = stamp_of(path)
    if stamp is None or medium.packed is None:
        return None
    try:
        return HashedFile(hashlib.sha256(row_groups.read(path, medium.packed)).hexdigest(), stamp)
    except MediaError:
        return None


def stamp_of(path: Path) -> Stamp | None:
    """The stamp of a file as it is now, if it is there."""
    try:
        status = path.stat()
    except OSError:
        return None
    return Stamp(status.st_ino, status.st_size, status.st_mtime_ns)


def _hashed(path: str) -> HashedFile | None:
    stamp = stamp_of(Path(path))
    if stamp is None or os.path.realpath(path) != path:
        return None
    try:
        require_regular_file(Path(path))
        return HashedFile(hash_file(Path(path)), stamp)
    except (OSError, MediaError):
        return None
