"""Images, questions and answers in their many spellings, and answers in a second file."""

import pytest
from format_checks import broken, check_robust, drafts, reasons
from hypothesis import given, settings

from aria_finetune.data_formats import registry
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.format import Context, Settings
from aria_finetune.data_formats.questions.image_qa import FORMAT
from aria_finetune.data_formats.record import Draft, MediaReference, Message, Part

QUESTION = {"image": "a.jpg", "question": "Which?"}
RECORD = QUESTION | {"answer": "the cat"}
OPTIONS = ["the dog", "the cat", "the hen"]
(COMPANION,) = FORMAT.companions


def text(content):
    return Part("text", text=content)


def image(number):
    return Part("image", media=number)


def convert(record, context=Context()):  # noqa: B008
    (draft,) = drafts(FORMAT, record, context=context)
    return draft


def answer(record, context=Context()):  # noqa: B008
    draft = convert(record, context)
    return draft.messages[1].content[0].text, draft.references, draft.repairs


def beside(*rows):
    return Context(tables={"answers": COMPANION.build(iter(rows))})


def test_a_record():
    assert convert(RECORD | {"prompt_id": "m1", "image_path": None}) == Draft(
        messages=(
            Message("user", (image(0), text("Which?"))),
            Message("assistant", (text("the cat"),)),
        ),
        media=(MediaReference("image", "a.jpg"),),
        references=("the cat",),
        meta={"prompt_id": "m1"},
    )


@pytest.mark.parametrize(
    ("named", "media"),
    [
        ({"image_path": "a.jpg"}, [MediaReference("image", "a.jpg")]),
        ({"image": ["a.jpg", "b.jpg"]}, [MediaReference("image", "a.jpg"), MediaReference("image", "b.jpg")]),
        ({"images": ["a.jpg"], "image": None}, [MediaReference("image", "a.jpg")]),
        ({"image": {"bytes": b"x", "path": "a.jpg"}}, [MediaReference("image", "a.jpg", content=b"x")]),
        ({"image": {"bytes": None, "path": "a.jpg"}}, [MediaReference("image", "a.jpg")]),
        ({"image": b"x", "image_path": "a.jpg"}, [MediaReference("image", "image", content=b"x")]),
        ({"image": None}, []),
        ({"image": "", "image_path": ""}, []),
    ],
)
def test_where_the_images_are(named, media):
    draft = convert(named | {"question": "Which?", "answer": "x"})
    assert list(draft.media) == media
    assert draft.messages[0].content == (*map(image, range(len(media))), text("Which?"))
    assert draft.meta == {}


@pytest.mark.parametrize(
    ("question", "content"),
    [
        ("<image>\nWhich?", (image(0), text("\nWhich?"), image(1))),
        ("In <image>, which?", (text("In "), image(0), text(", which?"), image(1))),
    ],
)
def test_placeholders_are_the_places_of_the_images(question, content):
    record = {"image": ["a.jpg", "b.jpg"], "question": f"{question}<image>", "answer": "x"}
    assert convert(record).messages[0].content == content
    assert reasons(FORMAT, record | {"question": question}) == ["placeholder_mismatch"]


def test_a_placeholder_in_an_option_is_a_place_too():
    record = {"image": ["a.jpg", "b.jpg"], "question": "Which?", "options": ["<image>", "<image>"], "answer": "B"}
    assert convert(record).messages[0].content == (text("Which?\nA. "), image(0), text("\nB. "), image(1))


@pytest.mark.parametrize(
    ("given", "chosen", "references", "repairs"),
    [
        ({"gold": "7"}, "7", ("7",), ()),
        ({"answer": "7", "gold": "7"}, "7", ("7",), ()),
        ({"answer": 7}, "7", ("7",), ("number_as_text",)),
        ({"answer": ["b", "a", "a"]}, "a", ("b", "a", "a"), ()),
        ({"answers": ["b", "a", "a"]}, "a", ("b", "a", "a"), ()),
        ({"answers": [{"answer": "a"}]}, "a", ("a",), ()),
        ({"answer": "a", "answers": ["b", "a"]}, "a", ("b", "a"), ()),
        ({"answer": "c", "answers": ["b", "a"]}, "c", ("c", "b", "a"), ()),
    ],
)
def test_where_the_answer_is(given, chosen, references, repairs):
    assert answer(QUESTION | given) == (chosen, references, repairs)
    assert convert(QUESTION | given).meta == {}


def test_how_sure_the_people_were_is_kept():
    answers = [{"answer": "a", "answer_confidence": "yes"}]
    assert convert(QUESTION | {"answers": answers}).meta == {"answers": answers}


@pytest.mark.parametrize("key", ["options", "choices"])
@pytest.mark.parametrize("given", ["B", "the cat", "(B) the cat", 1, ["the cat"]])
def test_options(key, given):
    draft = convert(QUESTION | {key: OPTIONS, "answer": given})
    assert draft.messages[0].content == (image(0), text("Which?\nA. the dog\nB. the cat\nC. the hen"))
    assert draft.messages[1].content == (text("B. the cat"),)
    assert draft.references == ("B", "the cat", "B. the cat")


@pytest.mark.parametrize(
    "record",
    [
        QUESTION | {"A": "the dog", "B": "the cat", "C": "the hen", "D": "", "answer": "B"},
        QUESTION | {"options": '["the dog", "the cat", "the hen"]', "answer": "B"},
        QUESTION | {"options": ["A. the dog", "B. the cat", "C. the hen"], "answer": "B"},
    ],
)
@pytest.mark.parametrize(("wording", "written"), [("both", "B. the cat"), ("letter", "B"), ("text", "the cat")])
def test_other_spellings_of_options(record, wording, written):
    assert answer(record, Context(settings=Settings(answers=wording)))[0] == written


@pytest.mark.parametrize(
    ("options", "given"),
    [
        (OPTIONS, "the fish"),
        (OPTIONS, "D"),
        (OPTIONS, 3),
        (OPTIONS, -1),
        (["2", "3", "4"], 2),
        (["B", "A"], "A"),
        ("['the dog', 'the cat']", "A"),
        ("{}", "A"),
        (["the dog", 3], "A"),
        (["x"] * 27, "A"),
    ],
)
def test_an_option_is_never_guessed(options, given):
    assert reasons(FORMAT, QUESTION | {"options": options, "answer": given}) == ["bad_schema"]


def test_a_number_that_is_its_own_option_is_clear():
    assert answer(QUESTION | {"options": ["0", "1", "2"], "answer": 2})[0] == "C. 2"


def test_answers_in_a_second_file():
    asked = {"question_id": 7, "image": "a.jpg", "text": "Which?", "category": "conv"}
    context = beside({"question_id": "7", "text": "the cat", "category": "gpt", "model_id": "m"}, {"question_id": 8})
    draft = convert(asked, context)
    assert draft.messages[0].content == (image(0), text("Which?"))
    assert draft.references == ("the cat",)
    assert draft.meta == {
        "question_id": 7,
        "category": "conv",
        "model_id": "m",
        "answer_row": {"question_id": "7", "category": "gpt"},
    }


@pytest.mark.parametrize("row", [{"answer": "the cat"}, {"gold": "the cat"}, {"answers": ["the cat", "cat"]}])
def test_other_spellings_of_a_row_of_answers(row):
    assert answer(QUESTION | {"question_id": 7}, beside({"question_id": 7, **row}))[0] == "the cat"


def test_a_record_with_an_answer_keeps_it():
    assert answer(RECORD | {"question_id": 7}, beside({"question_id": 7, "answer": "x"}))[0] == "the cat"


def test_rows_of_answers_that_differ_are_not_chosen_between():
    context = beside({"question_id": 7, "answer": "x"}, {"question_id": 7, "answer": "y"})
    assert reasons(FORMAT, QUESTION | {"question_id": 7}, context=context) == ["bad_schema"]


@pytest.mark.parametrize(
    "record",
    [
        QUESTION,
        QUESTION | {"answer": None},
        QUESTION | {"answers": []},
        QUESTION | {"answer": ""},
        QUESTION | {"answer": "", "options": OPTIONS},
        {"question_id": 7, "image": "a.jpg", "text": "Which?"},
    ],
)
def test_without_an_answer_records_are_for_evaluation(record):
    assert reasons(FORMAT, record, context=beside({"question_id": 8, "answer": "x"})) == ["empty_answer"]
    (draft,) = FORMAT.convert(record, Context())
    assert draft.messages[0].role == "user"


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (RECORD | {"question": None}, "bad_schema"),
        (RECORD | {"image": 3}, "bad_schema"),
        (RECORD | {"image": ["a.jpg", None]}, "bad_schema"),
        (RECORD | {"image_path": "b.jpg"}, "bad_schema"),
        (RECORD | {"gold": "the dog"}, "bad_schema"),
        (RECORD | {"answer": True}, "bad_schema"),
        (RECORD | {"options": OPTIONS, "choices": OPTIONS}, "bad_schema"),
        (QUESTION | {"A": "x", "B": "", "C": "z", "answer": "A"}, "bad_schema"),
        ({"question_id": 7, "text": "Which?"}, "bad_schema"),
        ({"question": "Which?", "answer": "x"}, "bad_schema"),
        (RECORD | {"audio": "a.wav"}, "unsupported_modality"),
        (RECORD | {"question": "\udcff"}, "bad_text"),
        ("text", "bad_schema"),
    ],
)
def test_bad_records(record, reason):
    assert reasons(FORMAT, record) == [reason]


def test_bytes_that_are_no_image_are_dropped_and_counted():
    draft = convert(RECORD | {"mask": b"x", "parts": [{"mask": b"x", "id": 1}]})
    assert draft.meta == {"parts": [{"id": 1}]}
    assert draft.repairs == ("bytes_dropped",)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("questions.jsonl", "answers.json"),
        ("test_question.jsonl", "test_answer.jsonl"),
        ("a_questions.json", "a_answers.json"),
        ("train.jsonl", None),
        ("other_questions.jsonl", None),
    ],
)
def test_the_file_of_answers_is_found_by_its_name(source, name):
    there = ["answers.json", "test_answer.jsonl", "a_answers.jsonl", "a_answers.json", "train.json", source]
    assert COMPANION.find(there, source) == name


def test_what_a_file_of_answers_is():
    assert COMPANION.fits({"question_id": 7, "text": "x"})
    assert not COMPANION.fits({"question_id": 7, "score": 1})
    assert not COMPANION.fits(["x"])


@pytest.mark.parametrize(
    ("record", "found"),
    [
        (RECORD, True),
        (QUESTION, True),
        ({"image_path": "a.jpg", "question": "q", "gold": "7"}, True),
        ({"question_id": 1, "image": "a.jpg", "text": "q"}, True),
        (RECORD | {"video": None}, True),
        ({"image": "a.jpg", "text": "a caption"}, False),
        ({"question_id": 1, "image": "a.jpg", "text": "q", "label": "yes"}, False),
        (RECORD | {"video": "a.mp4"}, False),
        (RECORD | {"conversations": []}, False),
        (QUESTION | {"chosen": "a", "rejected": "b"}, False),
        (RECORD | {"label": False}, False),
        ({"question": "q", "answer": "a"}, False),
        ([RECORD], False),
    ],
)
def test_detection(record, found):
    assert FORMAT.matches(record) is found


def test_the_example():
    assert registry.detect([FORMAT.example], (FORMAT,)) is FORMAT
    assert answer(FORMAT.example)[0] == "2019"


EVERYTHING = QUESTION | {"question_id": 7, "answer": "B", "answers": ["A", 1], "options": OPTIONS, "A": "x", "B": "y"}


@settings(max_examples=50, deadline=None, derandomize=True)
@given(record=broken(EVERYTHING), row=broken({"question_id": 7, "text": "B"}))
def test_nothing_but_record_errors(record, row):
    check_robust(FORMAT, record)
    try:
        context = beside(row)
    except RecordError:
        return
    check_robust(FORMAT, record, context)
