"""One question and its answer as a draft, and the answers a field holds."""

import pytest

from aria_finetune.data_formats.building import questions
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.record import Draft, MediaReference, Message, Part

PICTURE = MediaReference("image", "a.jpg")
ASKED = Message("user", (Part("image", media=0), Part("text", text="What?")))


def test_a_question_and_its_answer():
    draft = questions.asked(
        [PICTURE], "What?", "A cat.", references=["A cat.", "cat"], meta={"id": 1}, repairs=["number_as_text"]
    )
    assert draft == Draft(
        messages=(ASKED, Message("assistant", (Part("text", text="A cat."),))),
        media=(PICTURE,),
        references=("A cat.", "cat"),
        meta={"id": 1},
        repairs=("number_as_text",),
    )


def test_no_answer_is_no_turn_and_an_empty_one_is_kept_for_the_rules():
    assert questions.asked([PICTURE], "What?", None).messages == (ASKED,)
    assert questions.asked([PICTURE], "What?", "").messages == (ASKED, Message("assistant", ()))


@pytest.mark.parametrize(
    ("answers", "chosen"),
    [(["a"], "a"), (["a", "b", "b"], "b"), (["a", "b"], "a"), (["b", "a", "a", "b"], "b"), (["", "", "a"], "")],
)
def test_the_answer_of_most_or_the_first_of_several(answers, chosen):
    assert questions.majority(answers) == chosen


@pytest.mark.parametrize(
    ("value", "texts", "repairs"),
    [
        (None, [], ()),
        ([], [], ()),
        ("a", ["a"], ()),
        ("", [""], ()),
        (["a", "a"], ["a", "a"], ()),
        ([{"answer": "a", "answer_confidence": "yes"}, {"text": "b"}], ["a", "b"], ()),
        (7, ["7"], ("number_as_text",)),
        (10**400, [f"1{'0' * 400}"], ("number_as_text",)),
        (["a", 0.5], ["a", "0.5"], ("number_as_text",)),
    ],
)
def test_the_answers_a_field_holds(value, texts, repairs):
    assert questions.answers(value, "answers") == (texts, repairs)


@pytest.mark.parametrize(
    ("value", "detail"),
    [
        (True, "answers is true or false"),
        (float("nan"), "answers is a number, not text"),
        (["a", None], r"answers\[1\] is null"),
        ([["a"]], r"answers\[0\] is list"),
        ({"label": "a"}, "answers has no 'answer'"),
        ([{"answer": {}}], r"answers\[0\].answer is object"),
    ],
)
def test_what_is_no_answer(value, detail):
    with pytest.raises(RecordError, match=f"bad_schema: {detail}"):
        questions.answers(value, "answers")


def test_which_lists_say_more_than_their_texts():
    assert questions.says_more(["a", {"answer": "b", "answer_id": 1}])
    assert not questions.says_more(["a", {"answer": "b"}])
    assert not questions.says_more({"answer": "b", "answer_id": 1})


def test_a_hint_stands_above_the_question():
    assert questions.with_hint("What?", "Look left.") == "Hint: Look left.\nWhat?"
    assert questions.with_hint("What?", None) == "What?"
