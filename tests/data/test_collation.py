"""Batches: the planned tokens, the pixels in the order of the text, and files that changed in the meantime."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from aria_finetune.data.chat import IGNORED
from aria_finetune.data.collation import BadRow, Collator
from aria_finetune.data.pictures import Showing
from aria_finetune.data.rows import Viewing, plan_row
from aria_finetune.data.tiles import fit_tile, make_tiles
from aria_finetune.errors import UserError
from aria_finetune.media.images import ImageLimits
from aria_finetune.model.hub_layout import open_checkpoint
from aria_finetune.model.settings import pad_id

PAD = 2
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def pictures(batch: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
    """The image part of every tile, (3, height, width), in the order of the text."""
    tiles = []
    for size in (490, 980):
        if f"pixels_{size}" in batch:
            tiles += [
                pixels[:, :height, :width]
                for pixels, (height, width) in zip(
                    batch[f"pixels_{size}"], batch[f"extents_{size}"].tolist(), strict=True
                )
            ]
    return [tiles[index] for index in batch["tile_order"].tolist()]


def colours(batch: Mapping[str, torch.Tensor]) -> list[tuple[int, ...]]:
    """The colour in the middle of every tile, in the order of the text."""
    return [tuple(tile[:, tile.shape[1] // 2, tile.shape[2] // 2].tolist()) for tile in pictures(batch)]


@pytest.fixture
def collator(letter_chat, make_record):
    """Plan rows of (question parts, media) and make their collator; row `n` is line `n` of train.jsonl."""

    def made(rows, viewing: Viewing | None = None, **options) -> Collator:
        shown = viewing or Viewing()
        records = [
            make_record([("user", parts), ("assistant", ["Yes."])], media, ordinal=number)
            for number, (parts, media) in enumerate(rows)
        ]
        prompts = options.get("generation", False)
        plans = [plan_row(record, shown, letter_chat, generation=prompts) for record in records]
        return Collator(plans, letter_chat, PAD, showing=Showing(shown.split_images), **options)

    return made


def batch_of(collator: Collator, *rows: int) -> dict[str, torch.Tensor]:
    return collator([{"row": row} for row in rows])


class TestTexts:
    def test_short_rows_are_padded_on_the_right(self, collator, letter_chat):
        batch = batch_of(collator([(["long question"], []), (["?"], [])]), 0, 1)
        long, short = (len(f"user\n{question}\nassistant\nYes.\n") + 4 for question in ("long question", "?"))
        assert batch["input_ids"].shape == batch["labels"].shape == batch["attention_mask"].shape == (2, long)
        assert batch["attention_mask"].tolist() == [[1] * long, [1] * short + [0] * (long - short)]
        assert batch["input_ids"][1, short:].tolist() == [PAD] * (long - short)
        text = "<|im_start|>user\n?<|im_end|>\n<|im_start|>assistant\nYes.<|im_end|>\n"
        assert letter_chat.tokenizer.decode(batch["input_ids"][1, :short]) == text
        in_loss = len("Yes.") + 2
        assert batch["labels"][1].tolist() == [
            *[IGNORED] * (short - in_loss),
            *batch["input_ids"][1, short - in_loss : short].tolist(),
            *[IGNORED] * (long - short),
        ]

    def test_dtypes_and_row_numbers(self, collator):
        made = collator([(["a"], []), (["b"], []), (["c"], [])])
        batch = batch_of(made, 2, 0, 2)
        assert batch["rows"].tolist() == [2, 0, 2]
        assert {tensor.dtype for tensor in batch.values()} == {torch.int64}
        assert torch.equal(batch["input_ids"][0], batch["input_ids"][2])

    def test_a_batch_of_text_has_no_pixels(self, collator):
        batch = batch_of(collator([(["a"], [])]), 0)
        assert set(batch) == {"input_ids", "attention_mask", "labels", "rows"}

    def test_generation_pads_on_the_left_and_ends_with_the_header(self, collator, letter_chat):
        batch = batch_of(collator([(["long question"], []), (["?"], [])], generation=True), 0, 1)
        tokenizer = letter_chat.tokenizer
        long, short = (len(f"user\n{question}\nassistant\n") + 3 for question in ("long question", "?"))
        assert batch["input_ids"].shape == (2, long)
        assert batch["attention_mask"].tolist() == [[1] * long, [0] * (long - short) + [1] * short]
        assert batch["input_ids"][1, : long - short].tolist() == [PAD] * (long - short)
        assert set(batch["labels"].flatten().tolist()) == {IGNORED}
        for row, question in enumerate(("long question", "?")):
            shown = batch["input_ids"][row][batch["attention_mask"][row].bool()]
            expected = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
            assert tokenizer.decode(shown) == expected

    def test_loss_on_last_turn(self, letter_chat, make_record):
        turns = [("user", ["a"]), ("assistant", ["b"]), ("user", ["c"]), ("assistant", ["d"])]
        plans = [plan_row(make_record(turns), Viewing(loss_on="last_turn"), letter_chat)]
        batch = batch_of(Collator(plans, letter_chat, PAD, loss_on="last_turn"), 0)
        assert int((batch["labels"] != IGNORED).sum()) == plans[0].labels == 3

    def test_the_shipped_pad_id_lies_inside_the_embedding(self, tiny_aria_processor, tiny_chat, make_record):
        checkpoint = open_checkpoint("tiny")
        rows = checkpoint.config["text_config"]["vocab_size"]
        assert tiny_aria_processor.tokenizer.pad_token_id >= rows  # the trap of the hub tokenizer
        assert 0 <= pad_id(checkpoint) < rows
        records = [make_record([("user", [question]), ("assistant", ["Yes."])]) for question in ("?", "Count to five.")]
        plans = [plan_row(record, Viewing(), tiny_chat) for record in records]
        batch = batch_of(Collator(plans, tiny_chat, pad_id(checkpoint)), 0, 1)
        assert int(batch["input_ids"].max()) < rows
        assert batch["input_ids"][0, -1] == pad_id(checkpoint)


class TestPixels:
    def test_shapes_dtypes_and_extents(self, collator, make_image):
        rows = [([0, "?"], [make_image("wide.png", (300, 200), RED)]), ([0, "?"], [make_image("big.png", (500, 600))])]
        batch = batch_of(collator(rows), 0, 1)
        assert (batch["pixels_490"].shape, batch["pixels_490"].dtype) == ((1, 3, 490, 490), torch.uint8)
        assert (batch["pixels_980"].shape, batch["pixels_980"].dtype) == ((1, 3, 980, 980), torch.uint8)
        assert batch["extents_490"].tolist() == [[336, 490]]
        assert batch["extents_980"].tolist() == [[980, 816]]
        assert batch["tile_order"].tolist() == [0, 1]
        assert {batch[name].dtype for name in ("extents_490", "extents_980", "tile_order")} == {torch.int64}

    def test_the_tile_is_the_file_fitted(self, collator, tmp_path, make_image):
        media = make_image("noise.png", (130, 90))
        noise = np.random.default_rng(0).integers(0, 256, (90, 130, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "noise.png")
        batch = batch_of(collator([([0, "?"], [media])]), 0)
        np.testing.assert_array_equal(batch["pixels_490"][0].numpy(), fit_tile(Image.fromarray(noise), 490).pixels)

    def test_tile_order_with_both_sizes_in_one_batch(self, collator, make_image):
        rows = [
            ([0, "or", 1], [make_image("a.png", (600, 600), RED), make_image("b.png", (60, 60), GREEN)]),
            (["no picture"], []),
            ([0, 1], [make_image("c.png", (50, 60), BLUE), make_image("d.png", (700, 500), WHITE)]),
        ]
        made = collator(rows)
        batch = batch_of(made, 0, 1, 2)
        assert batch["tile_order"].tolist() == [2, 0, 1, 3]
        assert colours(batch) == [RED, GREEN, BLUE, WHITE]
        assert colours(batch_of(made, 2, 0)) == [BLUE, WHITE, RED, GREEN]

    def test_one_image_shown_twice(self, collator, make_image):
        media = [make_image("a.png", (60, 60), RED), make_image("b.png", (60, 60), GREEN)]
        assert colours(batch_of(collator([([1, 0, 1, "?"], media)]), 0)) == [GREEN, RED, GREEN]

    def test_tiles_of_split_images(self, collator, tmp_path, make_image):
        halves = Image.new("RGB", (200, 100), RED)
        halves.paste(BLUE, (100, 0, 200, 100))
        media = [make_image("halves.png", (200, 100)), make_image("square.png", (90, 90), GREEN)]
        halves.save(tmp_path / "halves.png")
        made = collator([([0, 1, "?"], media)], Viewing(split_images=True))
        batch = batch_of(made, 0)
        tiles = [*make_tiles(halves, 490, split=True), *make_tiles(Image.new("RGB", (90, 90), GREEN), 490, split=True)]
        assert len(tiles) == 3 + 5
        assert torch.equal(batch["pixels_490"], torch.from_numpy(np.stack([tile.pixels for tile in tiles])))
        assert colours(batch)[1:3] == [RED, BLUE]

    def test_planned_tokens_are_the_tokens_of_the_batch(self, collator, letter_chat, make_image, make_video):
        rows = [
            (["a", 0, "b", 1], [make_image("a.png", (600, 400)), make_video("a.mp4", 6)]),
            ([0, "?"], [make_image("b.png", (30, 300))]),
            (["<|img|> in text"], []),
        ]
        for viewing in (Viewing(), Viewing(image_size=490, split_images=True, timestamps=False)):
            made = collator(rows, viewing)
            batch = batch_of(made, 0, 1, 2)
            assert batch["attention_mask"].sum(1).tolist() == [plan.tokens for plan in made.plans]
            assert (batch["labels"] != IGNORED).sum(1).tolist() == [plan.labels for plan in made.plans]
            is_image = batch["input_ids"] == letter_chat.image
            assert set(batch["labels"][is_image].tolist()) == {IGNORED}
            features = sum(len(batch.get(f"pixels_{size}", ())) * count for size, count in ((490, 128), (980, 256)))
            assert int(is_image.sum()) == features

    def test_blank_images_keep_the_shape_and_hide_the_content(self, collator, make_image, make_video):
        rows = [([0, 1, "?"], [make_image("a.png", (300, 200), RED), make_video("a.mp4", 4)])]
        seen, blank = batch_of(collator(rows), 0), batch_of(collator(rows, blank_images=True), 0)
        for name in ("input_ids", "labels", "attention_mask", "tile_order", "extents_490"):
            assert torch.equal(seen[name], blank[name])
        assert seen["pixels_490"].shape == blank["pixels_490"].shape == (5, 3, 490, 490)
        assert all(set(tile.flatten().tolist()) == {127} for tile in pictures(blank))


class TestFrames:
    def brightness(self, batch) -> list[float]:
        """The number of each frame, from its brightness."""
        return [round(float(tile.float().mean()) / 4) for tile in pictures(batch)]

    def test_the_frames_are_those_of_the_plan(self, collator, make_video):
        made = collator([([0, "?"], [make_video("clip.mp4", 40)])], Viewing(num_frames=4))
        assert self.brightness(batch_of(made, 0)) == [5, 15, 25, 35]

    def test_frames_and_images_stand_in_the_order_of_the_text(self, collator, make_image, make_video):
        media = [make_video("one.mp4", 20), make_image("white.png", (64, 48), WHITE), make_video("two.mp4", 40)]
        made = collator([([2, 1, 0, 2], media)], Viewing(num_frames=2))
        assert self.brightness(batch_of(made, 0)) == [10, 30, 64, 5, 15, 10, 30]

    def test_a_part_of_a_clip_with_fewer_frames(self, collator, make_video):
        clip = make_video("clip.mp4", 40, start=1.0, end=3.0)
        fixed = len("user\n?\nassistant\nYes.\n") + 4
        viewing = Viewing(num_frames=8, max_tokens=fixed + 2 * 138, too_long="fewer_frames")
        assert self.brightness(batch_of(collator([([0, "?"], [clip])], viewing), 0)) == [15, 25]


class TestChangedFiles:
    @pytest.fixture
    def made(self, collator, make_image, make_video) -> Collator:
        rows = [
            (["text"], []),
            ([0, "?"], [make_image("a.png", (30, 20))]),
            ([0, "?"], [make_video("a.mp4", 20)]),
        ]
        return collator(rows)

    def refusal(self, made: Collator, row: int) -> UserError:
        with pytest.raises(UserError) as refused:
            batch_of(made, 0, row)
        assert refused.value.where == f"train.jsonl:{row}"
        assert refused.value.fix
        return refused.value

    @pytest.mark.parametrize(("row", "name"), [(1, "a.png"), (2, "a.mp4")])
    def test_removed(self, made, tmp_path: Path, row, name):
        (tmp_path / name).unlink()
        error = self.refusal(made, row)
        assert name in error.message
        assert "media_missing" in error.message

    @pytest.mark.parametrize(("row", "name"), [(1, "a.png"), (2, "a.mp4")])
    def test_damaged(self, made, tmp_path: Path, row, name):
        (tmp_path / name).write_bytes(b"damaged")
        assert "media_unreadable" in self.refusal(made, row).message

    def test_an_image_of_another_size(self, made, make_image):
        make_image("a.png", (20, 30))
        assert "no longer the picture" in self.refusal(made, 1).message

    def test_another_image_of_the_same_size_in_a_converted_set(self, collator, make_image, tmp_path: Path):
        medium = make_image("b.png", (30, 20), RED)
        known = hashlib.sha256((tmp_path / "b.png").read_bytes()).hexdigest()
        made = collator([(["text"], []), ([0, "?"], [replace(medium, sha256=known)])])
        assert colours(batch_of(made, 0, 1)) == [RED]
        make_image("b.png", (30, 20), GREEN)
        error = self.refusal(made, 1)
        assert f"{tmp_path / 'b.png'} is no longer the file that was converted" in error.message
        assert "convert the data again" in error.fix

    def test_a_clip_that_is_shorter_now(self, made, make_video):
        make_video("a.mp4", 3)
        assert "media_unreadable" in self.refusal(made, 2).message

    def test_an_image_above_the_limit_of_the_run(self, made):
        made.showing = replace(made.showing, image_limits=ImageLimits(max_pixels=599))
        assert "media_too_large" in self.refusal(made, 1).message

    def test_a_collator_that_splits_otherwise_than_the_plan(self, made):
        made.showing = replace(made.showing, split_images=True)
        assert self.refusal(made, 1).where == "train.jsonl:1"

    def test_other_rows_are_not_touched(self, made, tmp_path: Path):
        (tmp_path / "a.png").unlink()
        assert batch_of(made, 0, 2)["rows"].tolist() == [0, 2]


def removed(path: Path) -> None:
    path.unlink()


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def garbage(path: Path) -> None:
    path.write_bytes(np.random.default_rng(0).bytes(path.stat().st_size))


def of_another_size(path: Path) -> None:
    Image.new("RGB", (31, 20)).save(path, format="PNG")


def linked(path: Path) -> None:
    """The very same bytes, but elsewhere."""
    elsewhere = path.with_name(f"{path.name}.elsewhere")
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


Harm = Callable[[Path], None]
HARMS: dict[Harm, str] = {
    removed: "media_missing",
    emptied: "media_unreadable",
    truncated: "media_unreadable",
    garbage: "media_unreadable",
    of_another_size: "media_changed",
    linked: "media_unsafe_path",
}


def assert_same(one: Mapping[str, object], other: Mapping[str, object]) -> None:
    """Equal bit for bit, aside from what is said about rows left out."""
    assert set(one) - {"bad_media"} == set(other) - {"bad_media"}
    for name in set(one) - {"bad_media"}:
        assert one[name].dtype == other[name].dtype, name
        assert torch.equal(one[name], other[name]), name


class TestBadMedia:
    """Five rows: a picture, two pictures, a clip with a picture, text, and another picture."""

    @pytest.fixture
    def rows(self, make_image, make_video):
        return [
            ([0, "?"], [make_image("first.png", (60, 40), GREEN)]),
            ([0, 1, "?"], [make_image("good.png", (30, 20), RED), make_image("second.png", (30, 20), BLUE)]),
            ([0, "and", 1], [make_video("clip.mp4", 20), make_image("beside.png", (30, 20), RED)]),
            (["text"], []),
            ([0, "?"], [make_image("last.png", (500, 500), WHITE)]),
        ]

    @pytest.fixture
    def skipping(self, collator, rows) -> Collator:
        return collator(rows, on_bad_media="skip")

    @pytest.mark.parametrize(("row", "name"), [(1, "second.png"), (2, "clip.mp4")])
    @pytest.mark.parametrize("harm", HARMS)
    def test_either_policy_names_row_file_and_reason(self, skipping, tmp_path, harm, row, name):
        reason = "media_unreadable" if harm is of_another_size and name == "clip.mp4" else HARMS[harm]
        others = [other for other in range(5) if other != row]
        expected = batch_of(skipping, *others)
        assert "bad_media" not in expected
        harm(tmp_path / name)

        batch = batch_of(skipping, *range(5))
        (bad,) = batch["bad_media"]
        assert bad == BadRow(row, f"r{row}", f"train.jsonl:{row}", str(tmp_path / name), reason, bad.detail)
        assert bad.detail
        assert_same(batch, expected)
        assert batch["rows"].tolist() == others

        skipping.on_bad_media = "fail"
        with pytest.raises(UserError) as refused:
            batch_of(skipping, *range(5))
        said = str(refused.value)
        assert refused.value.where == f"train.jsonl:{row}"
        assert str(tmp_path / name) in said
        assert "data.on_bad_media: skip" in refused.value.fix
        assert (bad.detail if reason == "media_changed" else f"{reason}: {bad.detail}") in said

    def test_nothing_of_a_bad_row_gets_into_the_batch(self, skipping, tmp_path):
        """Its first picture was sound and decoded before the second failed."""
        (tmp_path / "second.png").unlink()
        batch = batch_of(skipping, 0, 1, 4)
        assert colours(batch) == [GREEN, WHITE]
        assert len(batch["pixels_490"]) == len(batch["pixels_980"]) == 1

    def test_when_no_row_is_left(self, skipping, tmp_path):
        for path in tmp_path.glob("*.png"):
            path.unlink()
        batch = batch_of(skipping, 4, 0, 1, 0)
        assert set(batch) == {"bad_media"}
        assert [bad.row for bad in batch["bad_media"]] == [4, 0, 1, 0]
        assert batch["bad_media"][2].media.endswith("good.png")

    def test_a_row_is_back_when_its_file_is(self, skipping, tmp_path):
        before = batch_of(skipping, 0, 1)
        shutil.move(tmp_path / "first.png", tmp_path / "away")
        assert "bad_media" in batch_of(skipping, 0, 1)
        shutil.move(tmp_path / "away", tmp_path / "first.png")
        again = batch_of(skipping, 0, 1)
        assert "bad_media" not in again
        assert_same(again, before)

    def test_prompts_and_blank_pictures(self, collator, rows, tmp_path):
        made = collator(rows, on_bad_media="skip", generation=True, blank_images=True)
        expected = batch_of(made, 0, 4)
        truncated(tmp_path / "clip.mp4")
        batch = batch_of(made, 0, 2, 4)
        assert_same(batch, expected)
        assert [bad.row for bad in batch["bad_media"]] == [2]
        assert all(set(tile.flatten().tolist()) == {127} for tile in pictures(batch))

    def test_no_policy_leaves_rows_out_by_default(self, collator, rows, tmp_path):
        made = collator(rows)
        (tmp_path / "first.png").unlink()
        with pytest.raises(UserError, match="media_missing"):
            batch_of(made, 0)

    def test_a_hang_is_named_and_left_out(self, collator, rows, tmp_path, monkeypatch):
        (tmp_path / "site").mkdir()
        (tmp_path / "site" / "sitecustomize.py").write_text(SLEEPY)
        monkeypatch.syspath_prepend(str(tmp_path / "site"))
        made = collator(rows, on_bad_media="skip", media_timeout=1.0)
        began = time.monotonic()
        batch = batch_of(made, 0, 1, 4)
        assert time.monotonic() - began < 8
        assert batch["rows"].tolist() == [0, 4]
        (bad,) = batch["bad_media"]
        assert bad.media == str(tmp_path / "second.png")
        assert bad.detail == "decoding took longer than 1 s and was stopped"


SLEEPY = """
import time
from PIL import PngImagePlugin
opened = PngImagePlugin.PngImageFile._open
def sleepy(self):
    if "second" in self.fp.name:
        time.sleep(1e6)
    opened(self)
PngImagePlugin.PngImageFile._open = sleepy
"""


class TestLoader:
    """Files that break between two epochs, with workers that prefetch and live on."""

    @pytest.fixture
    def broken(self, soak: bool) -> tuple[int, int]:
        """How many pictures and clips will break."""
        return (20, 10) if soak else (6, 2)

    def epoch(self, loader: DataLoader) -> dict[int, dict[str, object]]:
        """Batches of one row by row number."""
        batches = list(loader)
        return {batch["rows"].item() if "rows" in batch else batch["bad_media"][0].row: batch for batch in batches}

    @pytest.mark.parametrize("workers", [0, 2])
    def test_exactly_the_broken_rows_are_left_out(self, collator, make_image, make_video, broken, workers):
        images = [make_image(f"{number}.png", (30 + number, 20), (number, 0, 0)) for number in range(broken[0] + 2)]
        clips = [make_video(f"{number}.mp4", 10) for number in range(broken[1] + 1)]
        media = [*images, *clips]
        made = collator([([0, "?"], [medium]) for medium in media], Viewing(num_frames=2), on_bad_media="skip")
        loader = DataLoader(
            [{"row": row} for row in range(len(media))],
            collate_fn=made,
            num_workers=workers,
            persistent_workers=workers > 0,
        )
        before = self.epoch(loader)
        assert sorted(before) == list(range(len(media)))
        assert not any("bad_media" in batch for batch in before.values())

        harms = list(HARMS)
        bad = [*range(broken[0]), *range(len(images), len(images) + broken[1])]
        for place, row in enumerate(bad):
            path = Path(media[row].path)
            shutil.copy(path, path.with_name(f"{path.name}.copy"))
            harms[place % len(harms)](path)
        after = self.epoch(loader)
        assert sorted(row for row, batch in after.items() if "bad_media" in batch) == bad
        for row, batch in after.items():
            if row in bad:
                assert set(batch) == {"bad_media"}
                assert [entry.media for entry in batch["bad_media"]] == [media[row].path]
            else:
                assert_same(batch, before[row])

        for row in bad:
            path = Path(media[row].path)
            path.unlink(missing_ok=True)
            path.with_name(f"{path.name}.copy").rename(path)
        for row, batch in self.epoch(loader).items():
            assert_same(batch, before[row])

    def test_each_worker_has_a_decoder_of_its_own_which_ends_with_it(self, collator, make_image):
        made = collator([([0, "?"], [make_image(f"{number}.png", (30, 20))]) for number in range(8)])
        batch_of(made, 0)
        ours = made.decoder._server._process.pid
        loader = DataLoader(
            [{"row": row} for row in range(8)], collate_fn=Telling(made), num_workers=2, persistent_workers=True
        )
        theirs = {int(batch["decoder"]) for batch in loader}
        assert len(theirs) == 2
        assert ours not in theirs
        assert {int(batch["decoder"]) for batch in loader} == theirs, "an epoch is no reason to start again"
        del loader
        until = time.monotonic() + 5
        while any(map(alive, theirs)) and time.monotonic() < until:
            time.sleep(0.02)
        assert not any(map(alive, theirs))
        batch_of(made, 0)
        assert made.decoder._server._process.pid == ours


class Telling:
    """A collator whose batches say which process decoded for them."""

    def __init__(self, collator: Collator) -> None:
        self.collator = collator

    def __call__(self, features: list[dict[str, int]]) -> dict[str, object]:
        batch = self.collator(features)
        return batch | {"decoder": torch.tensor(self.collator.decoder._server._process.pid)}


def alive(process: int) -> bool:
    """Whether a process runs; one that has ended and that nobody has asked about does not."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{process}/stat")
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"


def test_a_record_that_was_measured_wrongly_is_refused(letter_chat, make_record, make_image):
    media = replace(make_image("a.png", (30, 20)), width=31)
    record = make_record([("user", [0, "?"]), ("assistant", ["Yes."])], [media], ordinal=7)
    made = Collator([plan_row(record, Viewing(), letter_chat)], letter_chat, PAD)
    with pytest.raises(UserError) as refused:
        batch_of(made, 0)
    assert refused.value.where == "train.jsonl:7"
