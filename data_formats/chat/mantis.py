"""Mantis: conversations about several images or a video, and the sets of its regression heads, which are refused.

`{"id", "images": [path], "conversation": [{"role", "content"}], "source"}`, or `"video": path` for the images.
Read from Parquet, an image is `{"bytes", "path"}`, of which either may be null.
"""

from __future__ import annotations

from collections.abc import Iterator

from aria_finetune.data_formats.building import chat_fields, fields, media_fields, placeholders, preference_keys
from aria_finetune.data_formats.building.turns import Turn, draft, role
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.format import PLAIN, Candidate, Context, Format
from aria_finetune.data_formats.record import Draft

_KNOWN_KEYS = frozenset({"conversation", "tools", *chat_fields.SYSTEM_KEYS, *media_fields.MEDIA_KEYS})
_TURN_KEYS = ("role", "content", *chat_fields.TRAIN_KEYS)
_OTHER_CONVERSATIONS = ("messages", "conversations")
_REFUSED = "its labels are scores for a regression head, not answers to learn to write"


def matches(record: object) -> bool:
    """`conversation` alone, its turns, as far as they are objects, with `role` and no list of parts."""
    if not isinstance(record, dict) or "conversation" not in record or preference_keys.is_preference(record):
        return False
    turns = record["conversation"]
    alone = not any(key in record for key in _OTHER_CONVERSATIONS)
    return alone and (not isinstance(turns, list) or all(map(_may_be_turn, turns)))


def marks(record: object) -> bool:
    """Images or a video beside the conversation."""
    return isinstance(record, dict) and any(key in record for key in ("image", "images", "video", "videos"))


def convert(record: object, context: Context = PLAIN) -> Iterator[Draft]:  # noqa: ARG001
    """The one conversation of a record.

    Raises:
        RecordError: `bad_schema`, `bad_roles`, `unsupported_modality`, or `placeholder_mismatch` where there are
            placeholders and not as many as media.
    """
    source = fields.mapping(record, "the record")
    media_fields.refuse_audio(source)
    images, videos = media_fields.images(source), media_fields.videos(source)
    written = fields.array(fields.required(source, "conversation", "the record"), "conversation")
    turns = [_turn(turn, f"conversation[{number}]") for number, turn in enumerate(written)]
    # Without media an answer may well be about the HTML tags of these names; a question has lost its media.
    turns = [placeholders.split(turn) if images or videos or turn.role == "user" else turn for turn in turns]
    turns, repairs = placeholders.fill(turns, images, videos, add_missing=True)
    meta = fields.rest(source, _KNOWN_KEYS) | media_fields.rest(source)
    meta, dropped = media_fields.without_bytes(meta | chat_fields.meta_of_turns(written, _TURN_KEYS, "conversation"))
    turns = [*chat_fields.system_turn(source), *turns]
    yield draft(turns, tools=chat_fields.tools(source), meta=meta, repairs=(*repairs, *dropped))


def _may_be_turn(turn: object) -> bool:
    return not isinstance(turn, dict) or ("role" in turn and not isinstance(turn.get("content"), list))


def _turn(value: object, where: str) -> Turn:
    turn = fields.mapping(value, where)
    speaker = role(turn.get("role"), where)
    return Turn(speaker, (fields.turn_text(turn, "content", speaker, where),), chat_fields.train_flag(turn, where))


def _has_scores(record: object) -> bool:
    if not isinstance(record, dict) or not {"prompt", "images"} <= record.keys():
        return False
    labels = record.get("labels")
    return isinstance(labels, dict) and all(isinstance(score, int | float) for score in labels.values())


def _refuse(record: object, context: Context = PLAIN) -> Iterator[Candidate]:  # noqa: ARG001
    yield RecordError("empty_answer", _REFUSED)


CHAT = Format(
    name="mantis",
    title="Mantis-Instruct: several images or a video beside a conversation",
    schema=(
        '{"id": TEXT, "images": [PATH] | null, "source": TEXT,\n'
        ' "conversation": [{"role": "user" | "assistant", "content": TEXT}]}\n'
        'or "video": PATH for the images; PATH may be {"bytes": BYTES, "path": PATH} in Parquet'
    ),
    example={
        "id": "pairs_12",
        "images": ["images/kitchen_before.jpg", "images/kitchen_after.jpg"],
        "conversation": [
            {"role": "user", "content": "<image> <image> What was moved?"},
            {"role": "assistant", "content": "The kettle, from the stove to the table."},
        ],
        "source": "pairs",
    },
    traps=(
        "its video set has no placeholder at all: the video goes before the first user text (placeholder_added)",
        "as many <image> as images, or none; another number is placeholder_mismatch",
        "a file without any images and video is read as messages, with the same result",
        "a first turn of the assistant is bad_roles; Mantis' own loader drops it in silence",
        "the data sets with from and value are read as llava",
    ),
    keys=frozenset({"id", "images", "video", "conversation", "source"}),
    matches=matches,
    convert=convert,
    narrower_than=("messages",),
    marks=marks,
)

REGRESSION = Format(
    name="mantis-regression",
    title="Mantis for a regression head: scores of images",
    schema='{"id": TEXT, "images": [PATH], "prompt": TEXT, "labels": {NAME: NUMBER}}',
    example={
        "id": "clip_3",
        "images": ["frames/clip_3_00.jpg", "frames/clip_3_01.jpg"],
        "prompt": "Rate the clip.",
        "labels": {"sharpness": 3.0, "steadiness": 1.5},
    },
    traps=("there is no text to answer with; write the scores out as answers yourself if you want them learnt",),
    keys=frozenset({"id", "images", "prompt", "labels"}),
    matches=_has_scores,
    convert=_refuse,
    refused=_REFUSED,
)

FORMATS = (CHAT, REGRESSION)
