"""Options of multiple-choice questions: how they are written, and which one an answer means."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aria_finetune.data_formats.building import choices
from aria_finetune.data_formats.errors import RecordError

ANIMALS = ["a cat", "a dog", "a hen"]


def test_options_stand_below_the_question():
    assert choices.question("Who?", ANIMALS) == "Who?\nA. a cat\nB. a dog\nC. a hen"


@pytest.mark.parametrize(("wording", "written"), [("both", "B. a dog"), ("letter", "B"), ("text", "a dog")])
def test_the_answer_is_written_as_was_chosen(wording, written):
    assert choices.answer(1, ANIMALS, wording) == written


def test_every_wording_of_the_right_option_is_accepted():
    assert choices.accepted(2, ANIMALS) == ("C", "a hen", "C. a hen")
    assert choices.accepted(0, ["A", "B"]) == ("A", "A. A")


@pytest.mark.parametrize("index", [-1, 3])
def test_there_is_no_such_option(index):
    with pytest.raises(RecordError, match=f"bad_schema.*{index} of 3"):
        choices.answer(index, ANIMALS, "both")


@pytest.mark.parametrize("count", [0, 27])
def test_there_must_be_as_many_options_as_letters(count):
    with pytest.raises(RecordError, match=f"bad_schema: {count} options"):
        choices.question("Who?", ["x"] * count)


@pytest.mark.parametrize(
    ("text", "options", "index"),
    [
        ("a dog", ANIMALS, 1),
        (" a dog\n", ANIMALS, 1),
        ("C", ANIMALS, 2),
        ("c", ANIMALS, 2),
        ("(B)", ANIMALS, 1),
        ("B.", ANIMALS, 1),
        ("B:", ANIMALS, 1),
        ("(B) a dog", ANIMALS, 1),
        ("(B). a dog", ANIMALS, 1),
        ("B. a dog", ANIMALS, 1),
        ("b) a dog", ANIMALS, 1),
        ("a dog", ["A. a cat", "B. a dog"], 1),
        ("(B) a dog", ["A. a cat", "B. a dog"], 1),
        ("B. a dog", ["A. a cat", "B. a dog"], 1),
        ("Z", [*"klmnopqrstuvwxy", "Z"], 15),
        ("B", ["A", "B"], 1),
        ("A. M.", ["P. M.", "A. M."], 1),
        ("I. think", ["I. think", "I. know"], 0),
    ],
)
def test_which_option_an_answer_means(text, options, index):
    assert choices.index_of(text, options) == index


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("a fish", ANIMALS),
        ("D", ANIMALS),
        ("", ANIMALS),
        ("Answer: B", ANIMALS),
        ("same", ["same", "same"]),
        # The text of one option and the letter of another.
        ("A", ["B", "A"]),
        ("(A) a dog", ANIMALS),
        ("ﬆ", [*"klmnopqrstuvwxyzab"]),
    ],
)
def test_an_answer_that_means_none_or_two_is_never_guessed(text, options):
    with pytest.raises(RecordError, match="bad_schema"):
        choices.index_of(text, options)


@pytest.mark.parametrize(
    ("options", "bare"),
    [
        (["A. cat", "B. dog"], ["cat", "dog"]),
        (["(A) cat", "(B) dog"], ["cat", "dog"]),
        (["cat", "B. dog"], ["cat", "B. dog"]),
        (["B. cat", "A. dog"], ["B. cat", "A. dog"]),
        ([*(f"{letter}. x" for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"), "y"], None),
    ],
)
def test_letters_in_front_of_all_options_are_removed(options, bare):
    assert choices.without_letters(options) == (options if bare is None else bare)


@pytest.mark.parametrize(
    ("record", "options"),
    [
        ({"A": "x", "B": "y", "C": "", "D": None}, ["x", "y"]),
        ({"question": "q", "answer": "A"}, []),
        ({"A": "", "B": ""}, []),
    ],
)
def test_options_in_columns(record, options):
    assert choices.columns(record) == options


@pytest.mark.parametrize(
    ("record", "detail"), [({"A": "x", "C": "z"}, "option B is empty"), ({"A": 1}, "A is a number")]
)
def test_columns_whose_letters_would_shift(record, detail):
    with pytest.raises(RecordError, match=f"bad_schema: {detail}"):
        choices.columns(record)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.text(min_size=1, max_size=3), min_size=1, max_size=6, unique=True), st.data())
def test_every_written_answer_is_read_back_or_refused(options, data):
    index = data.draw(st.integers(0, len(options) - 1))
    for written in choices.accepted(index, options):
        assert _index_or_none(written, options) in {index, None}


def _index_or_none(written, options):
    try:
        return choices.index_of(written, options)
    except RecordError:
        return None
