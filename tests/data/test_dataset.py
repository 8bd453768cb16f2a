"""Rows of several sources: what is rejected and counted, what is held out, and how they are mixed by weight."""

from __future__ import annotations

import json
from collections import Counter
from itertools import chain, islice
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from aria_finetune.conversion import ConversionOptions, convert
from aria_finetune.data.dataset import (
    DataSource,
    EpochOrder,
    RowSet,
    as_prompts,
    hold_out,
    load_rows,
    rows_of_updates,
    write_rejects,
)
from aria_finetune.data.rows import Viewing, plan_row
from aria_finetune.errors import TooManyRejects, UserError


def chat_record(question: str, answer: str = "Yes.", **rest: object) -> dict[str, object]:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": turns, **rest}


def write_source(path: Path, records: list[object]) -> Path:
    """One record a line; text is written as it stands."""
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    path.write_text("".join(f"{line}\n" for line in lines), "utf-8")
    return path


@pytest.fixture
def load(letter_chat, tmp_path: Path):
    def loaded(*sources: DataSource | Path, viewing: Viewing | None = None, **options) -> RowSet:
        named = [source if isinstance(source, DataSource) else DataSource(source) for source in sources]
        return load_rows(named, viewing or Viewing(), letter_chat, media_store=tmp_path / "store", **options)

    return loaded


def questions(rows: RowSet) -> list[str | None]:
    return [plan.record.messages[0].content[-1].text for plan in rows.plans]


class TestLoading:
    @pytest.fixture
    def mixed(self, tmp_path: Path) -> Path:
        """Six records, of which the second, fourth and fifth are bad."""
        Image.new("RGB", (30, 20), "red").save(tmp_path / "red.png")
        records = [
            chat_record("0"),
            '{"messages": [',
            chat_record("<image>2", images=["red.png"]),
            chat_record("<image>3", images=["missing.png"]),
            chat_record("4", answer=" "),
            chat_record("5"),
        ]
        return write_source(tmp_path / "mixed.jsonl", records)

    def test_bad_records_are_counted_with_file_row_and_reason(self, load, mixed):
        rows = load(mixed, max_rejects=3)
        assert questions(rows) == ["0", "2", "5"]
        assert [(reject.file, reject.ordinal, reject.reason) for reject in rows.rejects] == [
            ("mixed.jsonl", 1, "bad_json"),
            ("mixed.jsonl", 3, "media_missing"),
            ("mixed.jsonl", 4, "empty_answer"),
        ]
        assert rows.reasons() == {"bad_json": 1, "empty_answer": 1, "media_missing": 1}
        text, picture = len("user\n0\n") + 2 + len("assistant\nYes.\n") + 2, 130
        assert rows.counts() == {
            "rows": 3, "tokens": 3 * text + picture, "labels": 3 * 6, "images": 1, "videos": 0, "rejected": 3,
        }  # fmt: skip

    def test_more_bad_records_than_allowed(self, load, mixed):
        with pytest.raises(TooManyRejects) as refused:
            load(mixed, max_rejects=2)
        assert refused.value.exit_code == 3
        assert "3 record(s) were rejected" in refused.value.message
        assert "mixed.jsonl:1: bad_json" in refused.value.message
        assert "mixed.jsonl:3: media_missing" in refused.value.message
        assert refused.value.fix

    def test_only_the_first_five_are_shown(self, load, tmp_path):
        source = write_source(tmp_path / "bad.jsonl", [chat_record("ok"), *[chat_record("?", answer="")] * 7])
        with pytest.raises(TooManyRejects) as refused:
            load(source)
        assert refused.value.message.count("empty_answer") == 5
        assert refused.value.message.endswith("and 2 more")

    def test_rows_that_the_recipe_leaves_out_do_not_count_as_bad(self, load, tmp_path):
        records = [chat_record("short"), chat_record("long " * 20)]
        silent = chat_record("silent")
        silent["messages"][1]["weight"] = 0
        rows = load(write_source(tmp_path / "rows.jsonl", [*records, silent]), viewing=Viewing(max_tokens=60))
        assert questions(rows) == ["short"]
        assert [(reject.ordinal, reject.reason) for reject in rows.rejects] == [(1, "too_long"), (2, "no_label")]

    def test_too_long_fail_names_the_row(self, load, tmp_path):
        source = write_source(tmp_path / "rows.jsonl", [chat_record("short"), chat_record("long " * 20)])
        with pytest.raises(UserError) as refused:
            load(source, viewing=Viewing(max_tokens=60, too_long="fail"))
        assert not isinstance(refused.value, TooManyRejects)
        assert refused.value.where == "rows.jsonl:1"
        assert "data.max_tokens is 60" in refused.value.message
        assert "too_long: reject" in refused.value.fix

    def test_too_long_fail_lets_other_reasons_pass(self, load, tmp_path):
        silent = chat_record("silent")
        silent["messages"][1]["weight"] = 0
        source = write_source(tmp_path / "rows.jsonl", [chat_record("0"), "{", silent])
        rows = load(source, viewing=Viewing(too_long="fail"), max_rejects=1)
        assert rows.reasons() == {"bad_json": 1, "no_label": 1}

    def test_a_source_of_which_nothing_is_left(self, load, tmp_path):
        good = write_source(tmp_path / "good.jsonl", [chat_record("0"), chat_record("1", answer="")])
        bad = write_source(tmp_path / "bad.jsonl", [chat_record("2", answer="")])
        with pytest.raises(UserError) as refused:
            load(good, bad, max_rejects=9)
        assert refused.value.where == str(bad)
        assert "bad.jsonl:0: empty_answer" in refused.value.message
        assert "good.jsonl" not in refused.value.message

    def test_an_empty_source(self, load, tmp_path):
        with pytest.raises(UserError) as refused:
            load(write_source(tmp_path / "empty.jsonl", []))
        assert "empty.jsonl" in refused.value.where

    def test_a_missing_source(self, load, tmp_path):
        with pytest.raises(UserError) as refused:
            load(tmp_path / "missing.jsonl")
        assert "missing.jsonl" in str(refused.value)

    def test_spans_and_weights_of_several_sources(self, load, tmp_path):
        one = write_source(tmp_path / "one.jsonl", [chat_record("a"), chat_record("b")])
        two = write_source(tmp_path / "two.jsonl", [chat_record("c"), chat_record("d"), chat_record("e")])
        rows = load(DataSource(one, weight=2.5), DataSource(two))
        assert questions(rows) == ["a", "b", "c", "d", "e"]
        assert (rows.spans, rows.weights) == ([range(2), range(2, 5)], [2.5, 1.0])

    def test_media_roots_and_the_limit_of_pixels(self, load, tmp_path):
        folder = tmp_path / "pictures"
        folder.mkdir()
        Image.new("RGB", (30, 20)).save(folder / "red.png")
        source = write_source(tmp_path / "rows.jsonl", [chat_record("<image>a", images=["red.png"]), chat_record("b")])
        found = load(DataSource(source, media_roots=(folder,)))
        assert found.counts()["images"] == 1
        assert load(source, max_rejects=1).reasons() == {"media_missing": 1}
        small = DataSource(source, media_roots=(folder,))
        assert load(small, max_rejects=1, max_pixels=599).reasons() == {"media_too_large": 1}

    def test_a_cut_picture_is_found_when_media_are_decoded(self, load, tmp_path):
        picture = tmp_path / "cut.png"
        Image.effect_noise((60, 60), 90).save(picture)
        picture.write_bytes(picture.read_bytes()[:1000])
        source = write_source(tmp_path / "rows.jsonl", [chat_record("<image>a", images=["cut.png"]), chat_record("b")])
        assert questions(load(source)) == ["a", "b"]
        rows = load(source, max_rejects=1, decode_media=True)
        assert (questions(rows), rows.reasons()) == (["b"], {"media_unreadable": 1})

    def test_a_converted_folder_gives_the_rows_of_its_source(self, load, mixed, tmp_path):
        converted = tmp_path / "converted"
        convert(mixed, converted, ConversionOptions(max_rejects=3))
        rows, raw = load(converted), load(mixed, max_rejects=3)
        assert questions(rows) == questions(raw)
        assert rows.counts() == raw.counts() | {"rejected": 0}
        assert [plan.record.source.ordinal for plan in rows.plans] == [0, 2, 5]

    def test_generation_takes_conversations_without_an_answer(self, load, tmp_path):
        records = [{"messages": [{"role": "user", "content": "a"}]}, chat_record("b")]
        rows = load(write_source(tmp_path / "rows.jsonl", records), generation=True)
        assert [len(plan.turns) for plan in rows.plans] == [1, 1]


class TestRejectFile:
    def test_one_object_a_line(self, load, tmp_path):
        source = write_source(tmp_path / "rows.jsonl", [chat_record("ä"), chat_record("?", answer=""), "né"])
        rows = load(source, max_rejects=2)
        path = tmp_path / "rejects.jsonl"
        write_rejects(rows.rejects, path)
        written = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        assert [set(reject) for reject in written] == [{"file", "ordinal", "sub", "id", "reason", "detail"}] * 2
        assert [(reject["file"], reject["ordinal"], reject["reason"]) for reject in written] == [
            ("rows.jsonl", 1, "empty_answer"),
            ("rows.jsonl", 2, "bad_json"),
        ]

    def test_rows_rejected_when_planned_look_alike(self, load, tmp_path):
        source = write_source(tmp_path / "rows.jsonl", [chat_record("a"), chat_record("long " * 20)])
        (reject,) = load(source, viewing=Viewing(max_tokens=60)).rejects
        assert (reject.file, reject.ordinal, reject.sub) == ("rows.jsonl", 1, None)
        assert reject.id == "messages:rows.jsonl:1"

    def test_none_is_an_empty_file(self, tmp_path):
        write_rejects([], tmp_path / "rejects.jsonl")
        assert (tmp_path / "rejects.jsonl").read_bytes() == b""


class TestHoldOut:
    @pytest.fixture
    def rows(self, letter_chat, make_record) -> RowSet:
        """Ten rows and two, asking their own number."""
        records = [make_record([("user", [str(n)]), ("assistant", ["Yes."])], ordinal=n) for n in range(12)]
        plans = [plan_row(record, Viewing(), letter_chat) for record in records]
        return RowSet(plans, [range(10), range(10, 12)], [0.5, 3.0])

    @pytest.mark.parametrize(("fraction", "counts"), [(0.3, (3, 1)), (0.01, (1, 1)), (0.99, (9, 1)), (0.5, (5, 1))])
    def test_every_source_gives_its_fraction(self, rows, fraction, counts):
        kept, held = hold_out(rows, fraction, seed=0)
        assert tuple(map(len, held.spans)) == counts
        assert tuple(map(len, kept.spans)) == (10 - counts[0], 2 - counts[1])
        assert sorted(map(int, questions(kept) + questions(held))) == list(range(12))

    def test_rows_stay_in_their_source_and_in_order(self, rows):
        kept, held = hold_out(rows, 0.3, seed=0)
        for part in (kept, held):
            numbers = [int(question) for question in questions(part)]
            assert numbers == sorted(numbers)
            assert [[numbers[row] < 10 for row in span] for span in part.spans] == [
                [True] * len(part.spans[0]),
                [False] * len(part.spans[1]),
            ]
            assert list(chain(*part.spans)) == list(range(len(part.plans)))

    def test_only_training_rows_are_weighted(self, rows):
        kept, held = hold_out(rows, 0.3, seed=0)
        assert (kept.weights, held.weights) == ([0.5, 3.0], [1.0, 1.0])

    def test_the_choice_hangs_on_the_seed_alone(self, rows):
        chosen = [questions(hold_out(rows, 0.3, seed=seed)[1]) for seed in range(20)]
        assert chosen == [questions(hold_out(rows, 0.3, seed=seed)[1]) for seed in range(20)]
        assert len({tuple(choice) for choice in chosen}) > 10

    def test_a_source_of_one_row_has_none_to_spare(self, rows):
        with pytest.raises(UserError, match="at least two rows"):
            hold_out(RowSet(rows.plans[:1], [range(1)], [1.0]), 0.5, seed=0)

    def test_as_prompts_keeps_the_rows_and_drops_the_answers(self, rows, letter_chat):
        prompts = as_prompts(rows, Viewing(), letter_chat)
        assert questions(prompts) == questions(rows)
        assert [[turn.role for turn in plan.turns] for plan in prompts.plans] == [["user"]] * 12
        assert (prompts.spans, prompts.weights) == (rows.spans, rows.weights)


def epochs(order: EpochOrder, count: int, start: int = 0) -> list[list[int]]:
    drawn = []
    for epoch in range(start, start + count):
        order.set_epoch(epoch)
        drawn.append(list(order))
    return drawn


class TestEpochOrder:
    SPANS = (range(8), range(8, 12), range(12, 16), range(16, 18))
    WEIGHTS = (0.25, 1, 2.25, 3)

    def test_every_epoch_has_the_exact_fractions(self):
        for rows in epochs(EpochOrder(self.SPANS, self.WEIGHTS, seed=3), 8):
            seen = Counter(rows)
            of_source = [[seen[row] for row in span] for span in self.SPANS]
            assert sorted(of_source[0]) == [0] * 6 + [1] * 2
            assert of_source[1] == [1] * 4
            assert sorted(of_source[2]) == [2, 2, 2, 3]
            assert of_source[3] == [3] * 2

    def test_every_row_has_its_turn(self):
        order = EpochOrder(self.SPANS, self.WEIGHTS, seed=3)
        for start in (0, 4, 8):
            seen = Counter(chain(*epochs(order, 4, start)))
            assert [seen[row] for row in range(8)] == [1] * 8
            assert [seen[row] for row in range(12, 16)] == [9] * 4

    @pytest.mark.parametrize(("batch", "accumulation"), [(1, 1), (2, 3), (5, 4), (3, 1), (64, 2)])
    def test_the_rows_of_some_updates(self, batch, accumulation):
        """Against the micro-batches of each epoch, grouped as the Trainer groups them."""
        reached, expected = set(), [set()]
        for rows in epochs(EpochOrder(self.SPANS, self.WEIGHTS, seed=3), 5):
            batches = [rows[start : start + batch] for start in range(0, len(rows), batch)]
            for start in range(0, len(batches), accumulation):
                reached.update(chain(*batches[start : start + accumulation]))
                expected.append(set(reached))
        for updates, rows in enumerate(expected):
            order = EpochOrder(self.SPANS, self.WEIGHTS, seed=3)
            assert rows_of_updates(order, updates, batch * accumulation) == sorted(rows), updates

    def test_length(self):
        order = EpochOrder(self.SPANS, self.WEIGHTS, seed=3)
        assert len(order) == 2 + 4 + 9 + 6
        assert [len(rows) for rows in epochs(order, 5)] == [21] * 5

    def test_the_same_seed_and_epoch_give_the_same_order(self):
        first, second = (EpochOrder(self.SPANS, self.WEIGHTS, seed=3) for _ in range(2))
        in_turn = epochs(first, 5)
        assert epochs(second, 1, start=4) == in_turn[4:]
        assert epochs(second, 5) == in_turn

    def test_epochs_and_seeds_differ(self):
        orders = [tuple(rows) for seed in range(3) for rows in epochs(EpochOrder([range(50)], [1], seed), 3)]
        assert len(set(orders)) == 9
        assert {tuple(sorted(order)) for order in orders} == {tuple(range(50))}

    def test_which_rows_come_first_hangs_on_seed_and_source(self):
        chosen = {
            tuple(sorted(row % 50 for row in rows if row in span))
            for seed in range(3)
            for rows in epochs(EpochOrder([range(50), range(50, 100)], [0.2, 0.2], seed), 1)
            for span in (range(50), range(50, 100))
        }
        assert len(chosen) == 6

    def test_sources_are_mixed(self):
        (rows,) = epochs(EpochOrder([range(100), range(100, 200)], [1, 1], seed=0), 1)
        first_half = sum(row < 100 for row in islice(rows, 100))
        assert 30 < first_half < 70

    @pytest.mark.parametrize(
        ("rows", "weight", "expected"),
        [(10, 0.25, 3), (6, 0.25, 2), (10, 0.24, 2), (10, 0.01, 1), (1, 0.25, 1), (3, 1.5, 5)],
    )
    def test_shares_are_rounded_to_no_less_than_one(self, rows, weight, expected):
        order = EpochOrder([range(rows)], [weight], seed=0)
        assert len(order) == len(list(order)) == expected

    def test_a_slice_that_begins_in_the_middle_of_the_deck(self):
        # Five of six rows an epoch: from the second epoch on each slice runs over the deck's end.
        drawn = epochs(EpochOrder([range(6)], [0.75], seed=1), 6)
        assert [len(set(rows)) for rows in drawn] == [5] * 6
        assert Counter(chain(*drawn)) == dict.fromkeys(range(6), 5)
        left_out = [next(iter(set(range(6)) - set(rows))) for rows in drawn]
        assert sorted(left_out) == list(range(6))

    @given(
        st.lists(st.tuples(st.integers(1, 12), st.floats(0.01, 4)), min_size=1, max_size=4),
        st.integers(0, 99),
        st.integers(1, 9),
    )
    @settings(max_examples=100, deadline=None)
    def test_no_row_is_ever_more_than_one_turn_ahead(self, sources, seed, count):
        spans, start = [], 0
        for size, _ in sources:
            spans.append(range(start, start + size))
            start += size
        order = EpochOrder(spans, [weight for _, weight in sources], seed)
        drawn = epochs(order, count)
        assert [len(rows) for rows in drawn] == [len(order)] * count
        for span in spans:
            of_epoch = [[rows.count(row) for row in span] for rows in drawn]
            assert all(max(counts) - min(counts) <= 1 for counts in of_epoch)
            total = [sum(turns) for turns in zip(*of_epoch, strict=True)]
            assert max(total) - min(total) <= 1
