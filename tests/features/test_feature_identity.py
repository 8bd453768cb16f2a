"""Features are known by all that decides them, and by nothing else."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from safetensors.torch import load_file, save_file

from aria_finetune.data.pictures import Showing
from aria_finetune.data.rows import Sight
from aria_finetune.data_formats.record import Media
from aria_finetune.features.identity import (
    RULES,
    FeatureKeys,
    HashedFile,
    Stamp,
    encoder_identity,
    hash_media,
    stamp_of,
)
from aria_finetune.media.images import ImageLimits
from aria_finetune.media.videos import VideoLimits
from aria_finetune.model.hub_layout import open_checkpoint
from aria_finetune.quantization import quantize

MIB = 2**20
IMAGE, FRAME, PAGE = Sight(0, 490, 1), Sight(0, 490, 1, time=0.5), Sight(0, 490, 1, page=2)


def hashed(content: str, size: int = 10) -> HashedFile:
    return HashedFile(hashlib.sha256(content.encode()).hexdigest(), Stamp(1, size, 1))


def keys(**changes: object) -> FeatureKeys:
    made = FeatureKeys("tower", Showing(), {"a.png": hashed("a"), "copy.png": hashed("a"), "b.png": hashed("b")})
    return replace(made, **changes)


def media(path: str = "a.png", **changes: object) -> Media:
    return replace(Media("image", path, "", "image/png", 60, 40, frames=1), **changes)


class TestKeys:
    def test_a_key_is_64_hexadecimal_digits(self) -> None:
        key = keys().of(media(), IMAGE)
        assert key is not None
        assert len(bytes.fromhex(key)) == 32

    def test_equal_pictures_have_one_key_wherever_they_are(self) -> None:
        assert keys().of(media(), IMAGE) == keys().of(media("copy.png", start=1.0), replace(IMAGE, media=3))
        stamped = {"a.png": replace(hashed("a"), stamp=Stamp(9, 9, 9))}
        assert keys().of(media(), IMAGE) == keys(files=stamped).of(media(), IMAGE)

    def test_whatever_differs_makes_another_key(self) -> None:
        wide = Showing(image_limits=ImageLimits(max_pixels=99))
        found = [
            *(keys().of(media(), sight) for sight in (IMAGE, FRAME, PAGE)),
            keys().of(media("b.png"), IMAGE),
            keys().of(media(), replace(IMAGE, tile=980)),
            keys().of(media(), replace(IMAGE, tiles=2)),
            keys().of(media(), replace(FRAME, time=0.5 + 2**-40)),
            keys().of(media(), replace(PAGE, page=1)),
            keys().of(media(), replace(FRAME, tile=980)),
            keys().of(media(width=61), IMAGE),
            keys(encoder="another").of(media(), IMAGE),
            keys(encoder="another").of(media(), FRAME),
            keys(showing=Showing(split_images=True)).of(media(), IMAGE),
            keys(showing=wide).of(media(), IMAGE),
            keys(showing=Showing(video_limits=VideoLimits(max_frames=9))).of(media(), FRAME),
        ]
        assert None not in found
        assert len(set(found)) == len(found)

    def test_a_file_that_could_not_be_read_has_none(self) -> None:
        assert keys().of(media("gone.png"), IMAGE) is None

    def test_a_file_that_is_not_the_converted_one_has_none(self) -> None:
        """Up to the size at which the decoder compares hashes too; above, the file as it is counts."""
        right, wrong = hashed("a").sha256, hashed("b").sha256
        assert keys().of(media(sha256=right), IMAGE) == keys().of(media(), IMAGE)
        assert keys().of(media(sha256=wrong), IMAGE) is None
        for size, known in ((64 * MIB, False), (64 * MIB + 1, True)):
            film = keys(files={"a.mp4": hashed("a", size)})
            assert (film.of(media("a.mp4", sha256=wrong), FRAME) is not None) is known


class TestFiles:
    def test_what_can_be_read_is_hashed_and_nothing_else_is_opened(self, tmp_path: Path) -> None:
        (tmp_path / "a.png").write_bytes(b"a")
        (tmp_path / "folder").mkdir()
        (tmp_path / "linked").symlink_to(tmp_path / "folder")
        (tmp_path / "folder" / "b.png").write_bytes(b"b")
        (tmp_path / "link.png").symlink_to(tmp_path / "a.png")
        os.mkfifo(tmp_path / "pipe.png")  # to open it would wait for ever
        names = ("a.png", "folder", "linked/b.png", "link.png", "pipe.png", "gone.png", "folder/b.png")
        seen: list[tuple[int, int]] = []
        files = {str(tmp_path / name): media(str(tmp_path / name)) for name in names}
        found = hash_media(files, lambda done, of: seen.append((done, of)))
        expected = {str(tmp_path / name): hashlib.sha256(name[-5:-4].encode()).hexdigest()
                    for name in ("a.png", "folder/b.png")}  # fmt: skip
        assert {path: file.sha256 for path, file in found.items()} == expected
        assert seen == [(done, 7) for done in range(1, 8)]
        assert found[str(tmp_path / "a.png")].stamp == stamp_of(tmp_path / "a.png")

    def test_what_is_packed_is_hashed_in_its_place(self, tmp_path: Path) -> None:
        shard = tmp_path / "data.parquet"
        rows = [[{"bytes": b"a"}], [{"bytes": b"b"}, {"bytes": b"c"}], [{"bytes": None}]]
        parquet.write_table(pa.table({"media": rows}), shard, row_group_size=1)
        (tmp_path / "a.png").write_bytes(b"a")
        places = [(0, 0, 0), (1, 0, 1), (2, 0, 0), (3, 0, 0), None]
        inside = [media(str(shard if place else tmp_path / "a.png"), packed=place) for place in places]
        seen: list[tuple[int, int]] = []
        found = hash_media({one.name: one for one in inside}, lambda done, of: seen.append((done, of)))
        hashes = {content: hashlib.sha256(content.encode()).hexdigest() for content in "abc"}
        assert [found[one.name].sha256 if one.name in found else None for one in inside] == [
            hashes["a"], hashes["c"], None, None, hashes["a"]
        ]  # fmt: skip
        assert seen == [(done, 5) for done in range(1, 6)]
        assert found[inside[0].name].stamp == stamp_of(shard)
        made = keys(files=found)
        assert made.of(inside[0], IMAGE) == made.of(inside[4], IMAGE) != made.of(inside[1], IMAGE)
        assert made.of(replace(inside[0], sha256=hashes["a"]), IMAGE) == made.of(inside[0], IMAGE)
        # However large the file is that they lie in.
        large = {name: replace(file, stamp=Stamp(1, 2**40, 1)) for name, file in found.items()}
        assert keys(files=large).of(replace(inside[0], sha256=hashes["b"]), IMAGE) is None

    @pytest.mark.parametrize("harm", ["written to", "replaced", "removed"])
    def test_a_stamp_tells_a_file_that_changed(self, tmp_path: Path, harm: str) -> None:
        path = tmp_path / "a.png"
        path.write_bytes(b"a")
        os.utime(path, (1, 1))
        before = stamp_of(path)
        if harm == "written to":
            path.write_bytes(b"b")
        else:
            path.rename(tmp_path / "old")
        if harm == "replaced":
            path.write_bytes(b"b")
            os.utime(path, (1, 1))
        assert stamp_of(path) != before


Change = Callable[[dict[str, torch.Tensor]], object]


def nudge(name: str) -> Change:
    """The smallest change of one weight."""

    def change(weights: dict[str, torch.Tensor]) -> None:
        first = next(key for key in sorted(weights) if key.startswith(name))
        weights[first].view(torch.int16).reshape(-1)[-1] ^= 1

    return change


class TestEncoder:
    @pytest.fixture
    def edited(self, tiny_folder: Path, tmp_path: Path) -> Callable[[Change], Path]:
        def edit(change: Change) -> Path:
            folder = tmp_path / "aria"
            shutil.copytree(tiny_folder, folder, dirs_exist_ok=True)
            weights = load_file(tiny_folder / "model.safetensors")
            change(weights)
            save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
            return folder

        return edit

    def identity(self, folder: Path | str, dtype: torch.dtype = torch.bfloat16, device: str = "cpu") -> str:
        return encoder_identity(open_checkpoint(str(folder)), dtype, device)

    def test_dtype_and_device_count(self) -> None:
        made = {self.identity("tiny"), self.identity("tiny", torch.float32), self.identity("tiny", device="cuda")}
        assert len(made) == 3

    @pytest.mark.parametrize("name", ["vision_tower.", "multi_modal_projector."])
    def test_any_bit_of_tower_and_projector_counts(self, edited: Callable[[Change], Path], name: str) -> None:
        assert self.identity(edited(nudge(name))) != self.identity("tiny")

    def test_the_decoder_does_not_count(self, edited: Callable[[Change], Path]) -> None:
        assert self.identity(edited(nudge("language_model."))) == self.identity("tiny")

    def test_the_settings_of_the_tower_count(self, edited: Callable[[Change], Path]) -> None:
        folder = edited(lambda _: None)
        assert self.identity(folder) == self.identity("tiny")
        config = json.loads((folder / "config.json").read_text())
        config["vision_config"]["layer_norm_eps"] = 1e-3
        (folder / "config.json").write_text(json.dumps(config))
        assert self.identity(folder) != self.identity("tiny")

    def test_an_nf4_checkpoint_has_the_same_tower(self, tmp_path: Path) -> None:
        """Other files, other shards, a packed decoder: the features are the same."""
        assert self.identity(quantize("tiny", tmp_path / "nf4").folder) == self.identity("tiny")

    def test_what_the_processor_computes_in_counts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        found = set()
        for matrix_instructions in (True, False):
            monkeypatch.setattr(torch.cpu, "get_capabilities", lambda amx=matrix_instructions: {"amx_bf16": amx})
            found.add(self.identity("tiny"))
        assert len(found) == 2

    def test_features_of_an_older_forward_are_others(self, monkeypatch: pytest.MonkeyPatch) -> None:
        before = self.identity("tiny")
        monkeypatch.setattr("aria_finetune.features.identity.RULES", RULES - 1)
        assert self.identity("tiny") != before

    def test_another_version_of_a_decoder_counts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        before = self.identity("tiny")
        monkeypatch.setattr("aria_finetune.features.identity.version", lambda name: f"{name} 0")
        assert self.identity("tiny") != before
