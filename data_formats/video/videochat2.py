"""VideoChat2-IT, and TimeIT of TimeChat: the questions and answers about a clip or an image as one list.

`[{"video" | "image": PATH, "QA": [{"i": TEXT, "q": TEXT, "a": TEXT}], "start": S, "end": S}]`. Where questions are
asked, the list is one conversation; `i` is an instruction for all of it. Sets of captions leave `q` empty: each of
their answers is a record, asked for by `i`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from aria_finetune.data_formats.building import chat_fields, fields, media_bytes, media_fields, questions
from aria_finetune.data_formats.building.turns import Turn, draft
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.format import PLAIN, Candidate, Context, Format
from aria_finetune.data_formats.record import MediaReference
from aria_finetune.data_formats.video import clips

_KNOWN_KEYS = ("QA", "video", "image", "start", "end")
_QA_KEYS = ("q", "a")
_TIME_TOKEN = "<time_token_"  # noqa: S105


def matches(record: object) -> bool:
    """`QA`, and `video` or `image`."""
    return isinstance(record, dict) and "QA" in record and ("video" in record or "image" in record)


def convert(record: object, context: Context = PLAIN) -> Iterator[Candidate]:  # noqa: ARG001
    """One conversation, or where nothing is asked one candidate for each caption.

    Raises:
        RecordError: `bad_schema`.
    """
    source = fields.mapping(record, "the record")
    medium, prompt = _medium(source)
    pairs = [
        fields.mapping(pair, f"QA[{number}]")
        for number, pair in enumerate(fields.array(fields.required(source, "QA", "the record"), "QA"))
    ]
    if not pairs:
        raise RecordError("bad_schema", "QA is empty")
    meta, repairs = media_bytes.rest(fields.rest(source, _KNOWN_KEYS) | _meta_of_pairs(pairs), ())
    if any(_TIME_TOKEN in text for pair in pairs for text in pair.values() if isinstance(text, str)):
        repairs = (*repairs, "relative_times_in_text")
    if any(_question(pair) for pair in pairs):
        yield draft(_turns(medium, prompt, pairs), meta=meta, repairs=repairs)
        return
    for number, pair in enumerate(pairs):
        try:
            caption = fields.turn_text(pair, "a", "assistant", f"QA[{number}]")
            asked = fields.optional_text(pair, "i") or prompt
        except RecordError as error:
            yield error
            continue
        yield questions.asked([medium], asked, caption, references=(caption,), meta=meta, repairs=repairs)


def _medium(source: Mapping[str, Any]) -> tuple[MediaReference, str]:
    given = [key for key in ("video", "image") if source.get(key) is not None]
    if len(given) != 1:
        raise RecordError("bad_schema", f"the record names {' and '.join(given) or 'neither video nor image'}")
    if given == ["image"]:
        return MediaReference("image", media_fields.reference(source["image"], "image")), questions.IMAGE_PROMPT
    start, end = clips.span(source.get("start"), source.get("end"), "the clip")
    return clips.named(source["video"], "video", start=start, end=end), questions.VIDEO_PROMPT


def _question(pair: Mapping[str, Any]) -> str:
    question = pair.get("q")
    return "" if question is None else fields.text(question, "q").strip()


def _turns(medium: MediaReference, prompt: str, pairs: Sequence[Mapping[str, Any]]) -> list[Turn]:
    instruction = fields.optional_text(pairs[0], "i")
    turns = []
    if instruction and _question(pairs[0]):
        turns.append(Turn("system", (instruction,)))
    for number, pair in enumerate(pairs):
        where = f"QA[{number}]"
        asked = pair["q"] if _question(pair) else ""
        if number == 0:
            turns.append(Turn("user", (medium, asked or instruction or prompt)))
        elif asked:
            turns.append(Turn("user", (asked,)))
        turns.append(Turn("assistant", (fields.turn_text(pair, "a", "assistant", where),)))
    return turns


def _meta_of_pairs(pairs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What pairs hold beside question and answer; the instruction only where it is not that of the first."""
    first = pairs[0].get("i")
    used = [fields.rest(pair, ("i",)) if pair.get("i") == first else pair for pair in pairs]
    return chat_fields.meta_of_turns(used, _QA_KEYS, "QA")


FORMAT = Format(
    name="videochat2",
    title="VideoChat2-IT, also TimeIT of TimeChat",
    schema=('{"video" | "image": PATH, "QA": [{"i": TEXT, "q": TEXT, "a": TEXT}], "start": SECONDS, "end": SECONDS}'),
    example={
        "video": "clips/kitchen.mp4",
        "QA": [
            {"i": "Answer in a few words.", "q": "What is on the stove?", "a": "A pot."},
            {"q": "What happens to it?", "a": "It boils over."},
        ],
    },
    traps=(
        "i is said once, before the conversation, as a system turn",
        "q is empty in sets of captions: each caption is a record then, asked for by i or 'Describe the video.'",
        "start and end are seconds of the part that is shown",
        "<time_token_N> counts parts of the clip and not seconds; it stays as it is (relative_times_in_text)",
    ),
    keys=frozenset({*_KNOWN_KEYS, "source"}),
    matches=matches,
    convert=convert,
)
