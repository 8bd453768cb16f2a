"""Batches: the planned tokens, the pixels in the order of the text, and files that changed in the meantime."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from aria_finetune.data.chat import IGNORED
from aria_finetune.data.collation import Collator
from aria_finetune.data.rows import Viewing, plan_row
from aria_finetune.data.tiles import fit_tile, make_tiles
from aria_finetune.errors import UserError
from aria_finetune.media.images import ImageLimits
from aria_finetune.model.hub_layout import open_checkpoint
from aria_finetune.model.loading import pad_id

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
        return Collator(plans, letter_chat, PAD, split_images=shown.split_images, **options)

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

    def test_a_clip_that_is_shorter_now(self, made, make_video):
        make_video("a.mp4", 3)
        assert "media_unreadable" in self.refusal(made, 2).message

    def test_an_image_above_the_limit_of_the_run(self, made):
        made.image_limits = ImageLimits(max_pixels=599)
        assert "media_too_large" in self.refusal(made, 1).message

    def test_a_collator_that_splits_otherwise_than_the_plan(self, made):
        made.split_images = True
        assert self.refusal(made, 1).where == "train.jsonl:1"

    def test_other_rows_are_not_touched(self, made, tmp_path: Path):
        (tmp_path / "a.png").unlink()
        assert batch_of(made, 0, 2)["rows"].tolist() == [0, 2]


def test_a_record_that_was_measured_wrongly_is_refused(letter_chat, make_record, make_image):
    media = replace(make_image("a.png", (30, 20)), width=31)
    record = make_record([("user", [0, "?"]), ("assistant", ["Yes."])], [media], ordinal=7)
    made = Collator([plan_row(record, Viewing(), letter_chat)], letter_chat, PAD)
    with pytest.raises(UserError) as refused:
        batch_of(made, 0)
    assert refused.value.where == "train.jsonl:7"
