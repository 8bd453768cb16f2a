"""Row plans: sizes, frames and budgets, with token counts that can be added up by hand.

A token of the `letters` tokenizer is one byte, so a turn costs its role, its text and four control tokens and
newlines, and a picture costs its image tokens and two.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aria_finetune.data.chat import IGNORED, Picture
from aria_finetune.data.rows import RowPlan, Sight, Viewing, plan_row
from aria_finetune.data.tiles import choose_grid
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.record import Media, Part, Record

ANY_LENGTH = 10**9
FRAME_TOKENS = len("[00:00]") + 128 + 2 + len("\n")
ANSWER_TOKENS = len("assistant\nYes.\n") + 2


def image(width: int, height: int) -> Media:
    """An image that is nowhere on disk: plans never open one."""
    return Media("image", "/nowhere.png", "", "image/png", width, height)


def turn_tokens(role: str, text: str, pictures: tuple[int, ...] = ()) -> int:
    return len(f"{role}\n{text}\n".encode()) + 2 + sum(count + 2 for count in pictures)


def image_tokens(plan: RowPlan) -> int:
    return sum(part.tokens for turn in plan.turns for part in turn.content if isinstance(part, Picture))


def times(plan: RowPlan, media: int = 0) -> list[float | None]:
    return [sight.time for sight in plan.sights if sight.media == media]


def tiles(plan: RowPlan) -> list[tuple[int, int]]:
    return [(sight.tile, sight.tiles) for sight in plan.sights]


@pytest.fixture
def plan(letter_chat, make_record):
    """Plan a question with all `media` in front and the answer `Yes.`."""

    def planned(media: list[Media], viewing: Viewing, *, question: str = "?", generation: bool = False) -> RowPlan:
        record = make_record([("user", [*range(len(media)), question]), ("assistant", ["Yes."])], media)
        return plan_row(record, viewing, letter_chat, generation=generation)

    return planned


def reason(plan, *arguments, **options) -> RecordError:
    with pytest.raises(RecordError) as refused:
        plan(*arguments, **options)
    return refused.value


class TestImageSize:
    @pytest.mark.parametrize(("size", "tokens"), [(490, 128), (980, 256)])
    @pytest.mark.parametrize("pixels", [(30, 30), (490, 490), (3000, 2000)])
    def test_a_fixed_size_holds_for_every_image(self, plan, size, tokens, pixels):
        planned = plan([image(*pixels)], Viewing(image_size=size))
        assert planned.sights == (Sight(0, size, 1),)
        assert planned.tokens == turn_tokens("user", "?", (tokens,)) + ANSWER_TOKENS

    @pytest.mark.parametrize(
        ("pixels", "tile"), [((490, 490), 490), ((491, 20), 980), ((20, 491), 980), ((489, 300), 490)]
    )
    def test_auto_enlarges_no_image_that_490_holds(self, plan, pixels, tile):
        assert tiles(plan([image(*pixels)], Viewing())) == [(tile, 1)]

    def test_auto_judges_each_image_of_a_row(self, plan):
        planned = plan([image(100, 100), image(1000, 700), image(490, 300)], Viewing())
        assert tiles(planned) == [(490, 1), (980, 1), (490, 1)]
        assert planned.tokens == turn_tokens("user", "?", (128, 256, 128)) + ANSWER_TOKENS

    def test_auto_by_budget(self, plan):
        large = turn_tokens("user", "?", (256, 256)) + ANSWER_TOKENS
        small = turn_tokens("user", "?", (128, 128)) + ANSWER_TOKENS
        pictures = [image(1000, 1000), image(800, 600)]
        for max_tokens, tile, tokens in (
            (large + 1, 980, large),
            (large, 980, large),
            (large - 1, 490, small),
            (small, 490, small),
        ):
            planned = plan(pictures, Viewing(max_tokens=max_tokens))
            assert (planned.tokens, tiles(planned)) == (tokens, [(tile, 1), (tile, 1)])
        error = reason(plan, pictures, Viewing(max_tokens=small - 1))
        assert error.reason == "too_long"
        assert str(small) in error.detail
        assert str(small - 1) in error.detail

    @pytest.mark.parametrize("size", [490, 980])
    def test_a_fixed_size_is_rejected_one_token_over_the_budget(self, plan, size):
        tokens = turn_tokens("user", "?", ({490: 128, 980: 256}[size],)) + ANSWER_TOKENS
        assert plan([image(1000, 700)], Viewing(image_size=size, max_tokens=tokens)).tokens == tokens
        viewing = Viewing(image_size=size, max_tokens=tokens - 1)
        assert reason(plan, [image(1000, 700)], viewing).reason == "too_long"

    @pytest.mark.parametrize("policy", ["reject", "fail", "fewer_frames"])
    def test_text_over_the_budget_is_too_long_under_every_policy(self, plan, policy):
        viewing = Viewing(max_tokens=20, too_long=policy)
        assert reason(plan, [], viewing, question="?" * 30).reason == "too_long"

    def test_image_tokens_of_another_projector(self, plan):
        planned = plan([image(1000, 1000)], Viewing(image_size=980, vision_tokens={490: 5, 980: 7}))
        assert image_tokens(planned) == 7


class TestSplitting:
    def test_crops_are_counted_per_image(self, plan):
        # 3x2 and the overview, 2x1 and the overview.
        planned = plan([image(600, 400), image(400, 200)], Viewing(image_size=490, split_images=True))
        assert tiles(planned) == [(490, 7), (490, 3)]
        assert planned.tokens == turn_tokens("user", "?", (7 * 128, 3 * 128)) + ANSWER_TOKENS

    def test_auto_goes_down_to_490_with_all_crops(self, plan):
        large = turn_tokens("user", "?", (7 * 256,)) + ANSWER_TOKENS
        assert tiles(plan([image(600, 400)], Viewing(split_images=True, max_tokens=large))) == [(980, 7)]
        assert tiles(plan([image(600, 400)], Viewing(split_images=True, max_tokens=large - 1))) == [(490, 7)]

    def test_frames_are_never_split(self, plan, make_video):
        clip = make_video("clip.mp4", 4, size=(128, 48))
        planned = plan([clip], Viewing(image_size=490, split_images=True, num_frames=2))
        assert tiles(planned) == [(490, 1), (490, 1)]


class TestVideos:
    def test_frames_are_chosen_by_time_and_cost_a_timestamp_each(self, plan, make_video):
        planned = plan([make_video("clip.mp4", 40)], Viewing(num_frames=4))
        # Stretches of 1 s; at 0.5, 1.5, 2.5 and 3.5 s frames 5, 15, 25 and 35 are on show.
        assert times(planned) == pytest.approx([0.5, 1.5, 2.5, 3.5])
        assert planned.tokens == turn_tokens("user", "?") + 4 * FRAME_TOKENS + ANSWER_TOKENS
        assert (planned.image_count, planned.video_count) == (0, 1)

    def test_variable_frame_rate_goes_by_time_and_not_by_number(self, plan, make_video):
        clip = make_video("vfr.mp4", 6, milliseconds=[0, 100, 200, 300, 2000, 4000])
        # The mean gap is 0.8 s, so the clip ends at 4.8 s; 1.2 and 3.6 s are in the middle of its halves.
        assert times(plan([clip], Viewing(num_frames=2))) == pytest.approx([0.3, 2.0])

    def test_the_records_own_number_of_frames_goes_first(self, plan, make_video):
        planned = plan([make_video("clip.mp4", 40, num_frames=2)], Viewing(num_frames=4))
        assert times(planned) == pytest.approx([1.0, 3.0])

    def test_a_clip_with_fewer_frames_shows_all(self, plan, make_video):
        assert times(plan([make_video("clip.mp4", 3)], Viewing(num_frames=8))) == pytest.approx([0.0, 0.1, 0.2])

    def test_the_part_of_a_clip(self, plan, make_video):
        clip = make_video("clip.mp4", 40, start=1.0, end=3.0)
        assert times(plan([clip], Viewing(num_frames=2))) == pytest.approx([1.5, 2.5])

    def test_auto_shows_frames_at_490_and_the_image_beside_them_at_980(self, plan, make_video):
        planned = plan([image(1000, 800), make_video("big.mp4", 4, size=(640, 480))], Viewing(num_frames=2))
        assert tiles(planned) == [(980, 1), (490, 1), (490, 1)]
        assert times(planned, 0) == [None]
        assert times(planned, 1) == pytest.approx([0.1, 0.3])
        assert (planned.image_count, planned.video_count) == (1, 1)
        expected = turn_tokens("user", "?", (256,)) + 2 * FRAME_TOKENS + ANSWER_TOKENS
        assert planned.tokens == expected

    def test_the_order_of_sights_is_that_of_the_text(self, letter_chat, make_record, make_video):
        media = [make_video("clip.mp4", 4), image(100, 100)]
        record = make_record([("user", [1, "a", 0, "b", 1]), ("assistant", ["Yes."])], media)
        planned = plan_row(record, Viewing(num_frames=2), letter_chat)
        assert [(sight.media, sight.time) for sight in planned.sights] == [
            (1, None), (0, pytest.approx(0.1)), (0, pytest.approx(0.3)), (1, None),
        ]  # fmt: skip

    @pytest.mark.parametrize(
        ("change", "expected"),
        [
            ({"path": "/nowhere.mp4"}, "media_missing"),
            ({"start": 100.0}, "zero_frames"),
            ({"start": 2.0, "end": 1.0}, "zero_frames"),
        ],
    )
    def test_a_clip_that_can_not_be_used(self, plan, make_video, change, expected):
        clip = replace(make_video("clip.mp4", 40), **change)
        assert reason(plan, [clip], Viewing()).reason == expected

    def test_a_file_that_is_no_video(self, plan, tmp_path: Path, make_video):
        clip = make_video("clip.mp4", 2)
        (tmp_path / "clip.mp4").write_bytes(b"no video")
        assert reason(plan, [clip], Viewing()).reason == "media_unreadable"


class TestFewerFrames:
    FIXED = turn_tokens("user", "?") + ANSWER_TOKENS

    def viewing(self, frames: int, slack: int = 0, **changes) -> Viewing:
        """A budget in which just `frames` frames have room, and `slack` tokens are left."""
        options = {"num_frames": 16, "too_long": "fewer_frames"} | changes
        return Viewing(max_tokens=self.FIXED + frames * FRAME_TOKENS + slack, **options)

    @pytest.mark.parametrize("slack", [0, 1, FRAME_TOKENS - 1])
    @pytest.mark.parametrize("frames", [1, 2, 5, 15])
    def test_the_most_that_fit_spread_over_the_whole_clip(self, plan, make_video, frames, slack):
        clip = make_video("clip.mp4", 40)
        thinned = plan([clip], self.viewing(frames, slack))
        assert times(thinned) == times(plan([clip], Viewing(num_frames=frames)))
        assert thinned.tokens == self.FIXED + frames * FRAME_TOKENS

    def test_five_of_forty_by_hand(self, plan, make_video):
        thinned = plan([make_video("clip.mp4", 40)], self.viewing(5))
        assert times(thinned) == pytest.approx([0.4, 1.2, 2.0, 2.8, 3.6])

    @pytest.mark.parametrize(("frames", "expected"), [(1, [2.0]), (2, [1.5, 2.5]), (5, [1.2, 1.6, 2.0, 2.4, 2.8])])
    def test_the_part_of_a_clip_stays_evenly_covered(self, plan, make_video, frames, expected):
        clip = make_video("clip.mp4", 40, start=1.0, end=3.0)
        assert times(plan([clip], self.viewing(frames))) == pytest.approx(expected)

    def test_frames_with_long_gaps_are_spread_by_time(self, plan, make_video):
        milliseconds = [*range(0, 1000, 100), 5000, 9000]
        clip = make_video("vfr.mp4", 12, milliseconds=milliseconds)
        thinned = plan([clip], self.viewing(2))
        # The clip ends at 9 + 9/11 s; the middles of its halves are at 2.45 and 7.36 s.
        assert times(thinned) == pytest.approx([0.9, 5.0])

    def test_a_row_that_fits_keeps_its_frames(self, plan, make_video):
        assert len(plan([make_video("clip.mp4", 40)], self.viewing(16)).sights) == 16

    def test_two_clips_lose_frames_alike_and_none_gets_more_than_it_asked_for(self, plan, make_video):
        clips = [make_video("one.mp4", 40), make_video("two.mp4", 40, num_frames=2)]
        thinned = plan(clips, self.viewing(7))
        assert (len(times(thinned, 0)), len(times(thinned, 1))) == (5, 2)
        thinned = plan(clips, self.viewing(3))
        assert (len(times(thinned, 0)), len(times(thinned, 1))) == (1, 1)

    def test_images_go_down_to_490_before_frames_are_taken(self, plan, make_video):
        media = [image(1000, 1000), make_video("clip.mp4", 40)]
        assert tiles(plan(media, self.viewing(16, 258))) == [(980, 1), *[(490, 1)] * 16]
        assert tiles(plan(media, self.viewing(16, 130))) == [(490, 1)] * 17
        assert tiles(plan(media, self.viewing(16, 129))) == [(490, 1)] * 16

    def test_one_frame_too_many_is_too_long(self, plan, make_video):
        error = reason(plan, [make_video("clip.mp4", 40)], self.viewing(1, -1))
        assert error.reason == "too_long"
        assert str(self.FIXED + 16 * FRAME_TOKENS) in error.detail

    @pytest.mark.parametrize("policy", ["reject", "fail"])
    def test_other_policies_take_no_frame_away(self, plan, make_video, policy):
        viewing = self.viewing(15, too_long=policy)
        assert reason(plan, [make_video("clip.mp4", 40)], viewing).reason == "too_long"


class TestLoss:
    def test_labels_are_the_reply_its_end_and_the_newline(self, plan):
        assert plan([image(30, 30)], Viewing()).labels == len("Yes.") + 2

    @pytest.mark.parametrize("loss_on", ["assistant", "last_turn"])
    def test_no_label(self, letter_chat, make_record, loss_on):
        record = make_record([("user", ["?"]), ("assistant", ["Yes."])], train=[None, False])
        with pytest.raises(RecordError) as refused:
            plan_row(record, Viewing(loss_on=loss_on), letter_chat)
        assert refused.value.reason == "no_label"
        assert plan_row(record, Viewing(), letter_chat, generation=True).labels == 0

    def test_loss_on_last_turn(self, letter_chat, make_record):
        record = make_record([("user", ["a"]), ("assistant", ["long reply"]), ("user", ["b"]), ("assistant", ["c"])])
        assert plan_row(record, Viewing(loss_on="last_turn"), letter_chat).labels == len("c") + 2

    def test_a_part_that_can_not_be_shown(self, letter_chat, make_record):
        record = make_record([("user", ["?"]), ("assistant", ["Yes."])])
        page = replace(record.messages[0], content=(Part("document"),))
        with pytest.raises(RecordError) as refused:
            plan_row(replace(record, messages=(page, record.messages[1])), Viewing(), letter_chat)
        assert refused.value.reason == "unsupported_modality"


class TestDocuments:
    @pytest.mark.parametrize(("pages", "page", "shown"), [(3, None, [1, 2, 3]), (3, 2, [2])])
    def test_pages_are_pictures(self, letter_chat, make_record, pages, page, shown):
        document = Media("document", "/a.pdf", "", "application/pdf", 612, 792, frames=pages, page=page)
        plan = plan_row(make_record([("user", [0, "?"]), ("assistant", ["Yes."])], [document]), Viewing(), letter_chat)
        assert [(sight.page, sight.time, sight.tile, sight.tiles) for sight in plan.sights] == [
            (number, None, 980, 1) for number in shown
        ]
        text = len("user\n?\nassistant\nYes.\n") + 4
        assert plan.tokens == text + len(shown) * (256 + 2)
        assert plan.image_count == len(shown)

    def test_pages_are_smaller_where_all_of_them_would_not_fit(self, letter_chat, make_record):
        document = Media("document", "/a.pdf", "", "application/pdf", 612, 792, frames=10)
        record = make_record([("user", [0, "?"]), ("assistant", ["Yes."])], [document])
        assert {sight.tile for sight in plan_row(record, Viewing(max_tokens=1400), letter_chat).sights} == {490}


class TestPrompts:
    def test_the_closing_reply_gives_way_to_a_header(self, letter_chat, make_record):
        record = make_record([("user", ["a"]), ("assistant", ["b"]), ("user", ["c"]), ("assistant", ["d"])])
        prompt = plan_row(record, Viewing(), letter_chat, generation=True)
        assert [turn.role for turn in prompt.turns] == ["user", "assistant", "user"]
        ids = letter_chat.encode(prompt.turns, generation_prompt=True).ids
        assert prompt.tokens == len(ids)
        assert letter_chat.tokenizer.decode(ids).endswith("<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n")

    def test_all_closing_replies_go(self, letter_chat, make_record):
        record = make_record([("user", ["a"]), ("assistant", ["b"]), ("assistant", ["c"])])
        assert [turn.role for turn in plan_row(record, Viewing(), letter_chat, generation=True).turns] == ["user"]

    def test_a_prompt_has_its_own_budget(self, plan):
        tokens = turn_tokens("user", "?") + len("assistant\n") + 1
        viewing = Viewing(max_tokens=tokens)
        assert plan([], viewing, generation=True).tokens == tokens
        assert reason(plan, [], viewing).reason == "too_long"
        assert reason(plan, [], replace(viewing, max_tokens=tokens - 1), generation=True).reason == "too_long"


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    ["<|img|>", "<|im_end|>\n<|im_start|>assistant\n", "<fim_prefix>", " ", "\n"]
)
sides = st.integers(14, 1200)
parts = st.lists(texts | st.tuples(sides, sides), max_size=4)
conversations = st.lists(st.tuples(parts, texts), min_size=1, max_size=3)


def count_by_hand(record: Record, tile: int | str, *, split: bool) -> int:
    """Tokens of a record with its images at `tile`, or large ones at 980 for `auto`."""
    total = 0
    for message in record.messages:
        pictures = []
        for part in message.content:
            if part.type == "image":
                media = record.media[part.media]
                side = tile if isinstance(tile, int) else 980 if max(media.width, media.height) > 490 else 490
                columns, rows = choose_grid(media.width, media.height, side)
                pictures.append({490: 128, 980: 256}[side] * (columns * rows + 1 if split else 1))
        text = "".join(part.text or "" for part in message.content)
        total += turn_tokens(message.role, text, tuple(pictures))
    return total


@given(
    conversation=conversations,
    split=st.booleans(),
    size=st.sampled_from([490, 980, "auto"]),
    over=st.integers(-2, 2),
    small_budget=st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_any_conversation_at_the_edge_of_its_budget(
    letter_chat, make_record, *, conversation, split, size, over, small_budget
):
    media: list[Media] = []
    messages: list[tuple[str, list[str | int]]] = []
    for question, reply in conversation:
        content: list[str | int] = []
        for part in question:
            if isinstance(part, tuple):
                media.append(image(*part))
            content.append(part if isinstance(part, str) else len(media) - 1)
        messages += [("user", content), ("assistant", [reply])]
    record = make_record(messages, media)

    large = count_by_hand(record, size, split=split)
    small = count_by_hand(record, 490 if size == "auto" else size, split=split)
    max_tokens = (small if small_budget else large) + over
    viewing = Viewing(image_size=size, split_images=split, max_tokens=max_tokens)
    if small > max_tokens:
        with pytest.raises(RecordError) as refused:
            plan_row(record, viewing, letter_chat)
        assert refused.value.reason == "too_long"
        return

    planned = plan_row(record, viewing, letter_chat)
    assert planned.tokens == (large if large <= max_tokens else small)
    encoding = letter_chat.encode(planned.turns)
    assert (len(encoding.ids), encoding.label_count) == (planned.tokens, planned.labels)
    shown = [label for token, label in zip(encoding.ids, encoding.labels, strict=True) if token == letter_chat.image]
    assert set(shown) <= {IGNORED}
    assert len(shown) == sum({490: 128, 980: 256}[sight.tile] * sight.tiles for sight in planned.sights)
    assert len(planned.sights) == planned.image_count == len(media)
    assert planned.labels == sum(len(reply.encode()) + 2 for _, reply in conversation)
