"""Records that are nearly right, and what holds for a converter whatever it is given."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.format import PLAIN, Candidate, Context, Format
from aria_finetune.data_formats.record import Draft

WORDS = (
    "user",
    "assistant",
    "human",
    "gpt",
    "system",
    "text",
    "image",
    "video",
    "<image>",
    "<video>",
    "",
    " ",
    "a.jpg",
)


def mutations(
    *examples: object, words: tuple[str, ...] = (), more_keys: tuple[str, ...] = ()
) -> st.SearchStrategy[Any]:
    """Examples with something in them replaced, added or left out, and arbitrary JSON of the same keys and `words`."""
    keys = st.sampled_from(sorted({key for example in examples for key in _keys(example)} | {"other", *more_keys}))
    scalars = st.none() | st.booleans() | st.integers(-1, 9) | st.floats(allow_nan=False, allow_infinity=False)
    values = st.recursive(
        scalars | st.sampled_from([*WORDS, *words]) | st.text(max_size=4),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
        max_leaves=8,
    )
    return st.one_of(values, *(_mutated(example, keys, values) for example in examples))


def convert_or_reject(form: Format, record: object, context: Context = PLAIN) -> list[Draft]:
    """The drafts of a record, all of whose media are used; nothing but `RecordError` may be raised or yielded beside.

    What is asserted of a record holds for whatever is put in.
    """
    drafts = [candidate for candidate in _candidates(form, record, context) if isinstance(candidate, Draft)]
    for draft in drafts:
        _check_whole(draft)
    return drafts


def convert_one_or_reject(form: Format, record: object) -> None:
    """The same for a format of whose records each is one conversation, or is rejected by what is raised."""
    candidates = _candidates(form, record, PLAIN)
    assert len(candidates) <= 1
    for candidate in candidates:
        assert isinstance(candidate, Draft)
        _check_whole(candidate)


def _candidates(form: Format, record: object, context: Context) -> list[Candidate]:
    form.matches(record)
    if form.marks is not None:
        form.marks(record)
    try:
        candidates = list(form.convert(record, context))
    except RecordError:
        return []
    assert candidates
    assert all(isinstance(candidate, Draft | RecordError) for candidate in candidates)
    return candidates


def _check_whole(draft: Draft) -> None:
    parts = [part for message in draft.messages for part in message.content]
    assert {part.media for part in parts if part.media is not None} == set(range(len(draft.media)))
    assert all((part.text is None) == (part.type != "text") for part in parts)
    assert not draft.document or [message.role for message in draft.messages] == ["assistant"]


def _keys(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        yield from value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _keys(inner)


@st.composite
def _mutated(draw: st.DrawFn, value: object, keys: st.SearchStrategy[str], values: st.SearchStrategy[Any]) -> object:
    if not isinstance(value, dict | list) or not value or draw(st.integers(0, 5)) == 0:
        return draw(values)
    place = draw(st.sampled_from(sorted(value) if isinstance(value, dict) else range(len(value))))
    changed = draw(_mutated(value[place], keys, values))
    if isinstance(value, list):
        return [changed if number == place else item for number, item in enumerate(value)]
    kept = {name: changed if name == place else item for name, item in value.items()}
    if draw(st.integers(0, 3)) == 0:
        del kept[place]
    return kept | ({draw(keys): draw(values)} if draw(st.integers(0, 3)) == 0 else {})
