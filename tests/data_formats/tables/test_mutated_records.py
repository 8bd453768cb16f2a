"""No document or table format breaks on any record: its own example with anything changed, or any JSON at all."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aria_finetune.data_formats import registry
from aria_finetune.data_formats.building import fields
from aria_finetune.data_formats.documents import mmc4, obelics, omnicorpus, pdf_folder, pdf_questions
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.format import PLAIN, Context, Settings
from aria_finetune.data_formats.record import Draft
from aria_finetune.data_formats.rules import checked
from aria_finetune.data_formats.tables import columns, donut, embedded, imagefolder, webdataset

FORMATS = (
    obelics.FORMAT, omnicorpus.FORMAT, mmc4.FORMAT, *pdf_questions.FORMATS, pdf_folder.FORMAT, imagefolder.FORMAT,
    donut.FORMAT, embedded.FORMAT, webdataset.FORMAT, columns.FORMAT,
)  # fmt: skip
each_format = pytest.mark.parametrize("known", FORMATS, ids=lambda known: known.name)

KEYS = st.sampled_from([
    *sorted({key for known in FORMATS for key in known.keys}), "bytes", "path", "page_2", "a.b", "mp3", "gt_parse",
    "gt_parses", "messages", "conversations", "role", "from", "value", "content", "valid_image", "image_name",
])  # fmt: skip
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-1, 3)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.binary(max_size=3)
    | st.text(max_size=4)
    | st.sampled_from(["", "a.jpg", "a.pdf", "a.wav", "[1]", "{}", "<image>", "\ud800", "user", "human", "gpt", "3"])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


def places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield place
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield from places(item, (*place, key))


@st.composite
def mutated(draw: st.DrawFn, example: object) -> object:
    record: Any = {"record": copy.deepcopy(example)}
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.sampled_from(list(places(record))[1:] or [("record",)]))
        holder = record
        for key in place[:-1]:
            holder = holder[key]
        if draw(st.booleans()) or len(place) == 1:
            holder[place[-1]] = draw(VALUES)
        elif draw(st.booleans()):
            del holder[place[-1]]
        elif isinstance(holder, dict):
            holder[draw(KEYS)] = draw(VALUES)
        if "record" not in record:
            record["record"] = None
    return record["record"]


def check(known, record, context=PLAIN) -> None:
    known.matches(record)
    try:
        candidates = list(known.convert(record, context))
    except RecordError:
        return
    assert candidates
    for candidate in candidates:
        if isinstance(candidate, Draft):
            check_draft(candidate)


def check_draft(draft: Draft) -> None:
    numbers = {part.media for message in draft.messages for part in message.content if part.media is not None}
    assert numbers == set(range(len(draft.media)))
    fields.json_text(draft.meta)
    for evaluation in (False, True):
        try:
            checked(draft, evaluation=evaluation)
        except RecordError:
            continue


@each_format
@given(data=st.data())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_changed_examples(known, data):
    check(known, data.draw(mutated(known.example)))


@each_format
@given(record=VALUES | st.dictionaries(KEYS, VALUES, max_size=6))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_any_record(known, record):
    check(known, record)


ROLES = st.sampled_from([*columns.ROLES, "other"])


@given(row=st.dictionaries(KEYS, VALUES, max_size=6), named=st.dictionaries(ROLES, KEYS, max_size=4))
@settings(max_examples=80, deadline=None, derandomize=True)
def test_any_naming_of_columns(row, named):
    check(columns.FORMAT, row, Context(Settings(columns=named)))


@each_format
def test_an_example_is_of_its_format_and_sound(known):
    assert registry.detect([known.example], FORMATS) is known
    assert [checked(draft) for draft in known.convert(known.example, PLAIN)]
    assert known.title
    assert known.schema
    assert known.traps
