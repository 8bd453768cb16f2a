"""Formats are found by keys, and two that fit are never chosen between; no converter breaks on any JSON."""

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aria_finetune.data_formats import registry
from aria_finetune.data_formats.errors import FormatError, RecordError
from aria_finetune.data_formats.format import PLAIN, Candidate, Context, Format
from aria_finetune.data_formats.record import Draft, Message, Part
from aria_finetune.data_formats.rules import checked

TEXT_ARIA = {
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "Hello"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "Hi"}]},
    ]
}
IMAGE_ARIA = {
    "messages": [
        {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A cat"}]},
    ],
    "images": ["a.jpg"],
    "video": None,
}
VIDEO_ARIA = {
    "messages": [{"role": "user", "content": [{"type": "video", "text": None}]}],
    "images": None,
    "video": {"path": "a.mp4", "num_frames": 8},
}
CHAT = {"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]}
LLAVA = {"conversations": [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hi"}]}
MANTIS = {"conversation": [{"role": "user", "content": "Hello"}], "images": []}


@pytest.mark.parametrize(
    ("records", "name"),
    [
        ([IMAGE_ARIA], "aria"),
        ([TEXT_ARIA, VIDEO_ARIA], "aria"),
        ([TEXT_ARIA], "messages"),
        ([IMAGE_ARIA, CHAT], "messages"),
        ([CHAT], "messages"),
        ([MANTIS], "mantis"),
        ([CHAT["messages"]], "messages"),
        ([LLAVA], "llava"),
        ([{"conversations": None}, LLAVA], "llava"),
        ([LLAVA] * registry.DETECTION_RECORDS + [CHAT], "llava"),
    ],
)
def test_the_format_that_all_records_agree_on(records, name):
    assert registry.detect(records).name == name


def test_text_only_aria_records_mean_the_same_in_both_formats():
    drafts = [list(registry.get(name).convert(TEXT_ARIA, PLAIN)) for name in ("aria", "messages")]
    assert drafts[0] == drafts[1]


def test_no_format_fits():
    with pytest.raises(FormatError) as caught:
        registry.detect([{"conversation_list": [], "image": "a.jpg", "system": ""}])
    assert "keys: conversation_list, image, system" in caught.value.message
    assert "the nearest is " in caught.value.fix
    assert "aria" in caught.value.fix


@pytest.mark.parametrize("record", [7, "text", None, [], ["a"], {}])
def test_no_format_fits_what_is_no_conversation(record):
    with pytest.raises(FormatError):
        registry.detect([record])


@pytest.mark.parametrize("records", [[LLAVA, CHAT], [CHAT, {"text": "x"}], [VIDEO_ARIA, CHAT]])
def test_mixed_records_need_a_format(records):
    with pytest.raises(FormatError, match=r"mixed.*record 1") as caught:
        registry.detect(records)
    assert "--format" in caught.value.fix


def test_no_record_at_all():
    with pytest.raises(FormatError, match="no record"):
        registry.detect([])


def test_two_formats_that_fit_are_both_named():
    twin = Format("twin", "", "", LLAVA, (), frozenset(), registry.get("llava").matches, registry.get("llava").convert)
    with pytest.raises(FormatError, match="llava, twin") as caught:
        registry.detect([LLAVA], (*registry.FORMATS, twin))
    assert "--format" in caught.value.fix


def test_get_names_the_nearest():
    assert registry.get("llava").name == "llava"
    with pytest.raises(FormatError, match="lava") as caught:
        registry.get("lava")
    assert "did you mean 'llava'" in caught.value.fix


def test_names_are_unique_and_wider_formats_exist():
    names = [known.name for known in registry.FORMATS]
    assert len(set(names)) == len(names)
    assert all(wider in names for known in registry.FORMATS for wider in known.narrower_than)


@pytest.mark.parametrize("known", registry.FORMATS, ids=lambda known: known.name)
def test_the_example_of_a_format_is_of_that_format_and_sound(known):
    assert registry.detect([known.example]) is known
    drafts = [draft for draft in candidates_of(known, known.example) if isinstance(draft, Draft)]
    assert drafts or known.refused
    # Where the answers stand in another file, the example alone has none.
    assert [checked(draft, evaluation=bool(known.companions or known.refused)) for draft in drafts] == drafts
    assert known.title
    assert known.schema
    assert known.traps


KEYS = st.sampled_from([
    "messages", "conversations", "conversation", "role", "from", "value", "content", "type", "text", "image", "images",
    "video", "videos", "audio", "path", "url", "image_url", "base64", "num_frames", "system", "tools", "tool_calls",
    "weight", "train",
])  # fmt: skip
SCALARS = st.sampled_from(["user", "assistant", "human", "gpt", "<image>", "<video>", "text", "image", "", "a.jpg"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 9) | st.floats(allow_nan=False) | SCALARS | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=25,
)
PARTS = st.lists(st.dictionaries(KEYS, VALUES, max_size=3), max_size=3)
TURNS = st.lists(
    st.fixed_dictionaries(
        {}, optional={"role": SCALARS, "from": SCALARS, "value": SCALARS, "content": SCALARS | PARTS, "weight": VALUES}
    ),
    max_size=4,
)
RECORDS = VALUES | st.fixed_dictionaries(
    {}, optional={"messages": TURNS, "conversations": TURNS, "images": VALUES, "video": VALUES, "tools": VALUES}
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(record=RECORDS)
@pytest.mark.parametrize("known", registry.FORMATS, ids=lambda known: known.name)
def test_a_converter_raises_nothing_but_record_errors(known, record):
    known.matches(record)
    assert known.marks is None or known.marks(record) in {True, False}
    candidates = candidates_of(known, record)
    assert candidates or known.unfold
    for candidate in candidates:
        if isinstance(candidate, Draft):
            _check_media_numbers(candidate)


def candidates_of(known: Format, record: object) -> list[Candidate]:
    """All candidates of what stands in a file, if it were this."""
    records, found = [record], []
    if known.unfold is not None:
        try:
            records = list(known.unfold(iter(records), PLAIN))
        except RecordError as error:
            return [error]
    for inner in records:
        try:
            found += [inner] if isinstance(inner, RecordError) else known.convert(inner, PLAIN)
        except RecordError as error:
            found.append(error)
    return found


def _check_media_numbers(draft: Draft) -> None:
    numbers = [part.media for part in _parts(draft.messages) if part.media is not None]
    assert set(numbers) == set(range(len(draft.media)))


def _parts(messages: tuple[Message, ...]) -> Iterator[Part]:
    return (part for message in messages for part in message.content)


def test_a_converter_may_yield_a_bad_candidate_among_good_ones():
    good = Draft((Message("user", (Part("text", "a"),)),))

    def convert(record: object, context: Context) -> Iterator[Candidate]:
        yield good
        yield RecordError("empty_answer", "the second question has none")
        yield good

    form = Format("several", "", "", {}, (), frozenset(), lambda _: True, convert)
    assert [type(candidate) for candidate in form.convert({}, PLAIN)] == [Draft, RecordError, Draft]
