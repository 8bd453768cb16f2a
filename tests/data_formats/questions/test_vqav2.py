"""VQAv2: questions joined with annotations, and the answer that most people gave."""

from pathlib import PurePath

import pytest
from format_checks import broken, candidates, check_robust, drafts, reasons
from hypothesis import given, settings

from aria_finetune.data_formats import registry
from aria_finetune.data_formats.building import image_names
from aria_finetune.data_formats.format import Context
from aria_finetune.data_formats.questions.vqav2 import FORMAT
from aria_finetune.data_formats.record import Draft, Message, Part

QUESTION = {"question_id": 4210, "image_id": 42, "question": "What is it?"}
(COMPANION,) = FORMAT.companions


def text(content):
    return Part("text", text=content)


def annotation(*answers, **rest):
    return {"question_id": 4210, "image_id": 42, "answers": [{"answer": answer} for answer in answers], **rest}


def document(*questions, **rest):
    return {"questions": list(questions), **rest}


def beside(*annotations, file=""):
    table = COMPANION.build(iter([{"annotations": list(annotations)}]))
    return Context(tables={"annotations": table}, file=PurePath(file))


def answer(*annotations, question=QUESTION):
    (draft,) = drafts(FORMAT, document(question), context=beside(*annotations))
    return draft.messages[1].content[0].text, draft.references, draft.repairs


def test_a_question_and_its_annotation_in_two_files():
    source = document(QUESTION, info={"year": 2014}, license={"url": "x"}, data_subtype="train2014", task_type="Open")
    context = beside(annotation("a cat", "cat", "cat", multiple_choice_answer="cat", question_type="what is"))
    assert drafts(FORMAT, source, context=context) == [
        Draft(
            messages=(
                Message("user", (Part("image", media=0), text("What is it?"))),
                Message("assistant", (text("cat"),)),
            ),
            media=(image_names.coco(42, "train2014"),),
            references=("a cat", "cat", "cat"),
            meta={
                "data_subtype": "train2014",
                "task_type": "Open",
                "question_id": 4210,
                "image_id": 42,
                "multiple_choice_answer": "cat",
                "question_type": "what is",
            },
        )
    ]


def test_what_the_file_and_its_questions_say_differently_is_kept():
    source = document(QUESTION | {"data_type": "mine"}, data_type="mscoco")
    (draft,) = drafts(FORMAT, source, context=beside(annotation("cat")))
    assert draft.meta == {
        "data_type": "mine",
        "question_id": 4210,
        "image_id": 42,
        "document": {"data_type": "mscoco"},
    }


def test_both_in_one_file():
    source = document(QUESTION, annotations=[annotation("cat")])
    (draft,) = drafts(FORMAT, source, context=beside(annotation("dog")))
    assert draft.references == ("cat",)


@pytest.mark.parametrize(
    ("answers", "chosen", "repairs"),
    [
        (["no", "night", "night"], "night", ("multiple_choice_answer_differs",)),
        (["no", "night"], "no", ()),
        (["night", "no", "no"], "no", ()),
    ],
)
def test_the_majority_is_trained_on_and_not_the_multiple_choice_answer(answers, chosen, repairs):
    assert answer(annotation(*answers, multiple_choice_answer="no")) == (chosen, tuple(answers), repairs)


def test_how_sure_the_people_were_is_kept():
    answers = [{"answer": "cat", "answer_confidence": "maybe", "answer_id": 1}]
    (draft,) = drafts(FORMAT, document(QUESTION), context=beside(annotation() | {"answers": answers}))
    assert draft.meta["answers"] == answers


@pytest.mark.parametrize(
    "annotations",
    [
        annotation(multiple_choice_answer="cat"),
        {"question_id": "4210", "multiple_choice_answer": "cat"},
        {"question_id": 4210, "answer": "cat"},
        {"question_id": 4210, "answers": ["cat"]},
    ],
)
def test_other_places_of_the_answer(annotations):
    assert answer(annotations)[:2] == ("cat", ("cat",))


def test_answers_may_stand_in_the_question_itself():
    assert answer(question=QUESTION | {"answers": ["cat"]})[0] == "cat"


def test_a_question_without_an_annotation_is_for_evaluation():
    source = document(QUESTION, QUESTION | {"question_id": 5})
    assert reasons(FORMAT, source, context=beside(annotation("cat"))) == [None, "empty_answer"]
    assert reasons(FORMAT, document(QUESTION)) == ["empty_answer"]
    (item,) = FORMAT.unfold(iter([document(QUESTION)]), Context())
    (draft,) = FORMAT.convert(item, Context())
    assert [message.role for message in draft.messages] == ["user"]


def test_annotations_that_differ_are_not_chosen_between():
    assert reasons(FORMAT, document(QUESTION), context=beside(annotation("a"), annotation("b"))) == ["bad_schema"]
    assert reasons(FORMAT, document(QUESTION), context=beside(annotation("a"), annotation("a"))) == [None]


def test_an_annotation_of_another_image_is_refused():
    assert reasons(FORMAT, document(QUESTION), context=beside(annotation("a", image_id=43))) == ["bad_schema"]
    assert reasons(FORMAT, document(QUESTION), context=beside(annotation("a", image_id="42"))) == [None]


@pytest.mark.parametrize(
    ("image_id", "file", "reference", "alternative"),
    [
        (42, "questions.json", "COCO_val2014_000000000042.jpg", "val2014/COCO_val2014_000000000042.jpg"),
        (42, "v2_OpenEnded_mscoco_train2014_questions.json", "COCO_train2014_000000000042.jpg", "000000000042.jpg"),
        ("VizWiz_val_1.jpg", "questions.json", "VizWiz_val_1.jpg", "images/VizWiz_val_1.jpg"),
        ("00a1", "questions.json", "00a1", "00a1.jpeg"),
    ],
)
def test_what_an_image_id_names(image_id, file, reference, alternative):
    source = document(QUESTION | {"image_id": image_id})
    (draft,) = drafts(FORMAT, source, context=beside(annotation("a", image_id=image_id), file=file))
    assert draft.media[0].reference == reference
    assert alternative in draft.media[0].alternatives


@pytest.mark.parametrize(
    ("question", "annotations"),
    [
        ({"question_id": 4210, "question": "q"}, annotation("a")),
        (QUESTION | {"image_id": None}, annotation("a")),
        (QUESTION | {"image_id": -1}, {"question_id": 4210, "answers": ["a"]}),
        (QUESTION | {"question": 3}, annotation("a")),
        ({"question_id": 4210, "image_id": 42}, annotation("a")),
        (QUESTION, annotation("a", None)),
        (QUESTION, annotation() | {"answers": "a", "multiple_choice_answer": ["x", {}]}),
        ("What?", annotation("a")),
    ],
)
def test_bad_questions_leave_their_neighbours_alone(question, annotations):
    source = document(question, QUESTION | {"question_id": 7, "answers": ["x"]})
    assert reasons(FORMAT, source, context=beside(annotations)) == ["bad_schema", None]


@pytest.mark.parametrize("record", [{}, {"questions": None}, None, "text", {"question": {}}])
def test_what_is_no_such_document(record):
    assert reasons(FORMAT, record) == ["bad_schema"]


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("val_questions_vqa_format.json", "val_annotations_vqa_format.json"),
        ("v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json"),
        ("MultipleChoice_mscoco_val2014_questions.json", "mscoco_val2014_annotations.json"),
        ("questions.json", "annotations.json"),
        ("train.json", None),
        ("test_questions.json", None),
    ],
)
def test_the_file_of_annotations_is_found_by_its_name(source, name):
    there = [
        "val_annotations_vqa_format.json",
        "v2_mscoco_val2014_annotations.json",
        "mscoco_val2014_annotations.json",
        "annotations.json",
        source,
    ]
    assert COMPANION.find(there, source) == name


def test_what_a_file_of_annotations_is():
    assert COMPANION.fits({"annotations": [annotation("a")]})
    assert not COMPANION.fits({"annotations": [{"caption": "x"}]})
    assert not COMPANION.fits(annotation("a"))


@pytest.mark.parametrize(
    ("record", "found"),
    [
        (document(QUESTION), True),
        (document(QUESTION, None), True),
        (document({"question": "q"}), False),
        (document(), False),
        ({"annotations": [annotation("a")]}, False),
        (QUESTION, False),
        ([QUESTION], False),
    ],
)
def test_detection(record, found):
    assert FORMAT.matches(record) is found


def test_the_example():
    assert registry.detect([FORMAT.example], (FORMAT,)) is FORMAT
    (draft,) = drafts(FORMAT, FORMAT.example)
    assert draft.references == ("ball", "a ball", "ball")
    assert draft.messages[1].content == (text("ball"),)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(record=broken(FORMAT.example))
def test_nothing_but_record_errors(record):
    check_robust(FORMAT, record)
    assert candidates(FORMAT, record, context=beside(annotation("a"))) is not None
