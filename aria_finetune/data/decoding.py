"""Tiles of media files, decoded in a process that can be killed. Knows nothing of rows and batches, nor how anything is decoded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from aria_finetune.data.tiles import Tile
from aria_finetune.media.images import ImageLimits
from aria_finetune.media.isolation import Isolated, Reply, Wording
from aria_finetune.media.row_groups import Place, RowGroups
from aria_finetune.media.videos import VideoLimits


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """Width and height in pixels of the upright image, and the tiles made of it."""

    size: tuple[int, int]
    tiles: list[Tile]


class Decoder(Isolated):
    """Decodes media, one at a time, each within `seconds` and in a process of its own."""

    SERVER = "aria_finetune.data.decoding_process"
    WORDING = Wording(work="decoding", worker="the decoder", does="decodes media")

    def __init__(self, seconds: float = 30.0) -> None:
        super().__init__(seconds)
        self._row_groups = RowGroups()

    def image(
        self,
        path: Path,
        tile: int,
        limits: ImageLimits,
        *,
        split: bool,
        sha256: str = "",
        packed: Place | None = None,
    ) -> DecodedImage:
        """Open an image and make its tiles, as `open_image` and `make_tiles` do.

        Args:
            path: a real path, free of links.
            tile: side of a tile in pixels.
            limits: what is accepted.
            split: overview and crops.
            sha256: of the bytes that the file is to have, as hexadecimal digits; empty where it is not known. Files
                above `decoding_process.HASHED_BYTES` are not compared with it.
            packed: where its bytes are, if the file is a Parquet file.

        Raises:
            MediaError: as `open_image`, and as `RowGroups.read` where it is packed; `media_unsafe_path` when there is a link in the path; `media_changed` when
                the file has other bytes; `media_unreadable` when decoding took too long or crashed.
            UserError: the decoding process can't be started.
        """
        content = None if packed is None else self._row_groups.read(path, packed)
        reply = self._ask({**_wanted(path, sha256, limits), "tile": tile, "split": split}, content)
        width, height = reply.header["size"]
        return DecodedImage((width, height), _tiles(reply))

    def frames(
        self, path: Path, times: Sequence[float], tile: int, limits: VideoLimits, *, sha256: str = ""
    ) -> list[Tile]:
        """Fit the frames of a video at `times` (seconds) into a tile each, as `read_frames` and `fit_tile` do.

        Raises:
            MediaError: as `read_frames`, and as `image`.
            UserError: the decoding process can't be started.
        """
        return _tiles(self._ask({**_wanted(path, sha256, limits), "tile": tile, "times": list(times)}))

    def pages(self, path: Path, pages: Sequence[int], tile: int, *, sha256: str = "") -> list[Tile]:
        """Draw pages of a PDF (counted from 1) and fit each into a tile, as `render_page` and `fit_tile` do.

        Raises:
            MediaError: as `render_page`, and as `image`.
            UserError: the decoding process can't be started.
        """
        return _tiles(self._ask({"path": str(path), "sha256": sha256, "tile": tile, "pages": list(pages)}))


def _wanted(path: Path, sha256: str, limits: ImageLimits | VideoLimits) -> Mapping[str, Any]:
    return {"path": str(path), "sha256": sha256, "limits": asdict(limits)}


def _tiles(reply: Reply) -> list[Tile]:
    pairs = zip(reply.arrays, reply.header["extents"], strict=True)
    return [Tile(pixels, height, width) for pixels, (height, width) in pairs]
