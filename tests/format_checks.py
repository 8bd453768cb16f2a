"""What the tests of all formats do alike: run one over a small document, and feed it broken ones."""

import json
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.format import PLAIN, Candidate, Context, Format
from aria_finetune.data_formats.record import Draft
from aria_finetune.data_formats.rules import checked

TEXTS = st.sampled_from(["", "a.jpg", "A", "B. x", "<image>", "\udcff", "x" * 70, "a.jpg#0\tc"]) | st.text(max_size=4)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 10**13) | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)


def candidates(form: Format, *records: object, context: Context = PLAIN) -> list[Candidate]:
    """What the format makes of the records of a file, in order, each draft as the rules let it pass."""
    return list(_candidates(form, records, context))


def drafts(form: Format, *records: object, context: Context = PLAIN) -> list[Draft]:
    """The same where nothing may be wrong."""
    found = candidates(form, *records, context=context)
    for candidate in found:
        if isinstance(candidate, RecordError):
            raise candidate
    return found


def reasons(form: Format, *records: object, context: Context = PLAIN) -> list[str | None]:
    """The reason code of each candidate, None for a good one."""
    found = candidates(form, *records, context=context)
    return [candidate.reason if isinstance(candidate, RecordError) else None for candidate in found]


@st.composite
def broken(draw: st.DrawFn, example: object) -> object:
    """The example with one to three values in it replaced or left out, or any JSON at all."""
    if not draw(st.integers(0, 6)):
        return draw(JSON)
    for _ in range(draw(st.integers(1, 3))):
        example = _changed(draw, example)
    return example


def check_robust(form: Format, record: object, context: Context = PLAIN) -> None:
    """Nothing but a `RecordError` comes of a record, and every draft is whole."""
    assert isinstance(form.matches(record), bool)
    if form.marks:
        form.marks(record)
    for unfolded in ([record], [record, record]):
        for candidate in _candidates(form, unfolded, context, rules=False):
            if isinstance(candidate, Draft):
                _check_whole(candidate)
    for candidate in _converted(form, record, context):
        assert isinstance(candidate, Draft | RecordError)


def _check_whole(draft: Draft) -> None:
    numbers = {part.media for message in draft.messages for part in message.content if part.media is not None}
    assert numbers == set(range(len(draft.media)))
    assert all(isinstance(text, str) for text in (*draft.references, *draft.repairs))
    assert all(isinstance(name, str) for medium in draft.media for name in (medium.reference, *medium.alternatives))
    json.dumps(draft.meta)


def _candidates(form: Format, records: Any, context: Context, *, rules: bool = True) -> Iterator[Candidate]:
    for record in form.unfold(iter(records), context) if form.unfold else records:
        for candidate in [record] if isinstance(record, RecordError) else _converted(form, record, context):
            try:
                yield checked(candidate) if rules and isinstance(candidate, Draft) else candidate
            except RecordError as error:
                yield error


def _converted(form: Format, record: object, context: Context) -> Iterator[Candidate]:
    try:
        yield from form.convert(record, context)
    except RecordError as error:
        yield error


def _changed(draw: st.DrawFn, value: Any) -> Any:
    if isinstance(value, dict) and value and draw(st.integers(0, 4)):
        key = draw(st.sampled_from(list(value)))
        if not draw(st.integers(0, 4)):
            return {name: inner for name, inner in value.items() if name != key}
        return {**value, key: _changed(draw, value[key])}
    if isinstance(value, list) and value and draw(st.integers(0, 4)):
        place = draw(st.integers(0, len(value) - 1))
        return [*value[:place], _changed(draw, value[place]), *value[place + 1 :]]
    return draw(JSON)
