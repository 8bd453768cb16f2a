"""All video formats: none is taken for another, their examples are sound, and no record breaks a converter."""

import copy
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aria_finetune.data_formats import registry
from aria_finetune.data_formats.chat import aria, llava, messages
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.format import PLAIN, Context
from aria_finetune.data_formats.rules import checked
from aria_finetune.data_formats.video import (
    activitynet_qa,
    egoschema,
    grounding,
    longvideobench,
    msrvtt,
    nextqa,
    sharegpt4video,
    tgif_qa,
    tvqa,
    video_chatgpt,
    video_choices,
    videochat2,
)

SINGLE = (
    activitynet_qa,
    egoschema,
    longvideobench,
    nextqa,
    sharegpt4video,
    tgif_qa,
    tvqa,
    video_chatgpt,
    videochat2,
)
VIDEO = (
    *(module.FORMAT for module in SINGLE),
    *msrvtt.FORMATS,
    *video_choices.FORMATS,
    *grounding.FORMATS,
)
FORMATS = (aria.FORMAT, llava.FORMAT, messages.FORMAT, *VIDEO)
each_format = pytest.mark.parametrize("form", VIDEO, ids=lambda form: form.name)


def candidates(form, record, context=PLAIN):
    """What becomes of a record as it stands in its file."""
    records = form.unfold(iter([record]), context) if form.unfold else [record]
    for item in records:
        if isinstance(item, RecordError):
            yield item
            continue
        try:
            yield from form.convert(item, context)
        except RecordError as error:
            yield error


@each_format
def test_an_example_is_of_its_format_and_sound(form):
    assert registry.detect([form.example], FORMATS) is form
    drafts = list(candidates(form, form.example))
    assert drafts
    assert all(checked(draft).media for draft in drafts)


@each_format
def test_a_format_is_described(form):
    assert form.title
    assert form.schema
    assert all(trap and trap == trap.strip() and len(trap) <= 120 for trap in form.traps)
    if isinstance(form.example, dict):
        assert form.example.keys() & form.keys


def test_the_names_are_unique():
    assert len({form.name for form in FORMATS}) == len(FORMATS)


@pytest.mark.parametrize(
    ("record", "name"),
    [
        ({"video": "a.mp4", "conversations": [{"from": "human", "value": "Hi"}]}, "llava"),
        ({"video": "a.mp4", "QA": [{"q": "", "a": "x"}], "source": "vitt"}, "videochat2"),
        ({"video": "a.mp4", "question": "q", "answer": "a", "question_type": "sub", "duration": 3}, "video-qa"),
        ({"video": "a.mp4", "caption": "c", "timestamp": [1, 2], "duration": 5}, "video-moments"),
        ({"video": "a.mp4", "caption": "c"}, "video-captions"),
        ({"video": "1", "question": "q", "answer": "a", "qid": "1", "type": "x", "frame_count": "3"}, "nextqa"),
    ],
)
def test_neighbours_are_told_apart(record, name):
    assert registry.detect([record], FORMATS).name == name


@pytest.mark.parametrize("record", [{}, [], None, "text", 7, {"video": "a.mp4"}, {"question": "q", "answer": "a"}])
def test_what_no_video_format_takes(record):
    assert [form.name for form in VIDEO if form.matches(record)] == []


KEYS = st.sampled_from(sorted({key for form in VIDEO for key in form.keys} | {"content", "idx", "i", "path", "bytes"}))
SCALARS = st.sampled_from(["", "A", "(B) x", "-1", "0", "1.5", "nan-nan", "1-2", "a.mp4", "\udcff", "a\n(A) b\n(B) c"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 9) | st.floats(allow_nan=False) | SCALARS | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=15,
)


@st.composite
def mutated(draw, value):
    """`value` with some of what is in it replaced, left out or added."""
    if draw(st.integers(0, 5)) == 0:
        return draw(VALUES)
    if isinstance(value, dict):
        kept = {key: draw(mutated(item)) for key, item in value.items() if draw(st.integers(0, 9))}
        return kept | (draw(st.dictionaries(KEYS, VALUES, max_size=1)))
    if isinstance(value, list):
        return [draw(mutated(item)) for item in value]
    return value


def beside(name):
    return b'[{"timestamp": [1, 2], "text": "x"}, {"start": "00:01", "end": null, "line": "y"}]'


@each_format
@settings(max_examples=50, deadline=None, derandomize=True)
@given(data=st.data())
def test_no_record_breaks_a_converter(form, data):
    record = data.draw(mutated(copy.deepcopy(form.example)) | VALUES)
    form.matches(record)
    form.marks(record)
    for context in (PLAIN, Context(beside=beside)):
        try:
            found = list(candidates(form, record, context))
        except RecordError:  # of `unfold`, where the whole file is wrong
            continue
        for candidate in found:
            if isinstance(candidate, RecordError):
                continue
            numbers = [part.media for message in candidate.messages for part in message.content]
            assert {number for number in numbers if number is not None} == set(range(len(candidate.media)))
            with suppress(RecordError):  # of an answer that is missing or a lone surrogate
                checked(candidate, evaluation=True)
