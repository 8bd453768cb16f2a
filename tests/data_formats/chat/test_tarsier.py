"""Tarsier's annotations against canonical records written by hand."""

import copy

import pytest
from hypothesis import given, settings
from mutated_records import convert_or_reject, mutations

from aria_finetune.data_formats import registry
from aria_finetune.data_formats.chat import aria, messages
from aria_finetune.data_formats.chat.tarsier import FORMAT
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.record import Draft, MediaReference, Message, Part
from aria_finetune.data_formats.rules import checked

FORMS = (aria.FORMAT, messages.FORMAT, FORMAT)


def said(text, reference=None):
    return {"type": "text", "text": text, "reference": reference, "video": None}


def shown(name, **more):
    return {"type": "video", "text": None, "reference": None, "video": {"video_file": name, **more}}


def record(medium, *answer, **rest):
    return {
        "messages": [
            {"role": "user", "content": [medium, said("What?")]},
            {"role": "assistant", "content": list(answer)},
        ],
        **rest,
    }


def convert(source):
    (draft,) = FORMAT.convert(source)
    return checked(draft)


def test_the_answer_is_the_reference():
    source = record(shown("v.mp4", start_time=2, end_time=5.5, fps=3), said("", "A cat."), idx=1, dataset="D", vid=7)
    assert convert(source) == Draft(
        (
            Message("user", (Part("video", media=0), Part("text", "What?"))),
            Message("assistant", (Part("text", "A cat."),)),
        ),
        (MediaReference("video", "v.mp4", start=2.0, end=5.5),),
        references=("A cat.",),
        meta={"idx": 1, "dataset": "D", "vid": 7, "parts": {"0.0": {"fps": 3}}},
    )


def test_a_text_goes_before_the_reference():
    draft = convert(record(shown("v.mp4"), said("A dog.", "A cat.")))
    assert draft.messages[1].content == (Part("text", "A dog."),)
    assert draft.references == ("A cat.",)


def test_a_reference_of_the_question_is_no_part_of_it():
    source = record(shown("v.mp4"), said("A cat."))
    source["messages"][0]["content"].append(said("", "hidden"))
    assert convert(source).messages[0].content == (Part("video", media=0), Part("text", "What?"))


@pytest.mark.parametrize(("start", "end"), [(0, -1), (None, None)])
def test_times_that_mean_the_whole_video(start, end):
    draft = convert(record(shown("v.mp4", start_time=start, end_time=end), said("", "A cat.")))
    assert (draft.media[0].start or 0, draft.media[0].end) == (0, None)


@pytest.mark.parametrize(("vid", "name"), [(7, "7"), ("ab_c", "ab_c")])
def test_an_unnamed_video_is_called_after_its_number(vid, name):
    source = record(shown("<placeholder>"), said("", "A cat."), vid=vid, dataset="DREAM/movie_animation")
    (medium,) = convert(source).media
    assert medium.reference == f"{name}.mp4"
    assert {
        f"video/{name}.mp4",
        f"video/DREAM-1K_videos/{name}.mp4",
        f"DREAM/movie_animation/{name}.mp4",
        f"{name}.webm",
    } <= set(medium.alternatives)


@pytest.mark.parametrize("dataset", [{}, {"dataset": None}, {"dataset": ""}, {"dataset": 3}])
def test_without_a_data_set_its_folder_is_not_tried(dataset):
    (medium,) = convert(record(shown("<placeholder>"), said("", "A cat."), vid=7, **dataset)).media
    assert medium.alternatives[:4] == ("video/7.mp4", "video/DREAM-1K_videos/7.mp4", "DREAM-1K_videos/7.mp4", "7.webm")


def test_what_turns_have_beside_is_kept():
    source = record(shown("v.mp4"), said("", "A cat."), thumb=b"x")
    source["messages"][1] |= {"name": "eva", "loss": 0}
    draft = convert(source)
    assert (draft.meta, draft.repairs) == ({"messages": {"1": {"name": "eva"}}}, ("bytes_dropped",))
    assert draft.messages[1].train is False


def test_an_image():
    source = record({"type": "image", "image": {"image_file": "a.jpg"}}, said("", "A cat."))
    assert convert(source).media == (MediaReference("image", "a.jpg"),)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (record(shown("<placeholder>"), said("", "A cat.")), "media_missing"),
        (record(shown("<placeholder>"), said("", "A cat."), vid=None), "media_missing"),
        (record(shown("<placeholder>"), said("", "A cat."), vid=True), "media_missing"),
        (record(shown(""), said("", "A cat."), vid=""), "media_missing"),
        (
            record({"type": "image", "image": {"image_file": "<placeholder>"}}, said("", "A cat."), vid=7),
            "media_missing",
        ),
        (record(shown(["f1.jpg", "f2.jpg"]), said("", "A cat.")), "bad_schema"),
        (record(shown("v.mp4", start_time="2"), said("", "A cat.")), "bad_schema"),
        (record({"type": "video", "video": "v.mp4"}, said("", "A cat.")), "bad_schema"),
        (record(shown("v.mp4"), said("", 3)), "bad_schema"),
        (record(shown("v.mp4"), said(3)), "bad_schema"),
        (record(shown("v.mp4"), "A cat."), "bad_schema"),
        (record(shown("v.mp4"), said("", None)), "empty_answer"),
        (record({"type": "audio"}, said("", "A cat.")), "unsupported_modality"),
        ({"messages": [{"role": "user", "content": "a"}]}, "bad_schema"),
        ({"messages": [{"role": "critic", "content": []}]}, "bad_roles"),
        ({"messages": None}, "bad_schema"),
        ("a", "bad_schema"),
    ],
)
def test_bad_records(source, reason):
    with pytest.raises(RecordError) as caught:
        convert(source)
    assert caught.value.reason == reason


def test_detection():
    plain = {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]}
    assert registry.detect([FORMAT.example], FORMS) is FORMAT
    assert registry.detect([plain, record(shown("v.mp4"), said("a"))], FORMS) is FORMAT
    assert registry.detect([plain], FORMS) is messages.FORMAT


def test_the_example_is_sound_and_left_as_it_was():
    before = copy.deepcopy(FORMAT.example)
    assert convert(FORMAT.example).references == ("A cat falls asleep.",)
    assert FORMAT.example == before


@settings(max_examples=150, deadline=None, derandomize=True)
@given(source=mutations(FORMAT.example, words=("<placeholder>", "reference")))
def test_only_record_errors_are_raised(source):
    convert_or_reject(FORMAT, source)
