"""Tarsier's annotations: chat messages whose answer stands under `reference` and whose video may be unnamed.

`{"messages": [{"role", "content": [{"type", "text", "reference", "video": {"video_file"}}]}], "dataset", "vid"}`
`video_file` is often the word `<placeholder>`: the file is then called after `vid`, as in DREAM-1K.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from aria_finetune.data_formats.building import chat_fields, fields, media_fields, message_parts
from aria_finetune.data_formats.building.turns import Piece, Turn, draft, role
from aria_finetune.data_formats.chat import messages
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.format import PLAIN, Context, Format
from aria_finetune.data_formats.record import Draft, MediaReference, PartType, Role

_KNOWN_KEYS = frozenset({"messages"})
_TURN_KEYS = ("role", "content", *chat_fields.TRAIN_KEYS)
_PART_KEYS = ("type", "text", "reference", "video", "image")
_MEDIUM_KEYS = ("video_file", "image_file", "start_time", "end_time")
_UNNAMED = "<placeholder>"
# The folders of DREAM-1K, first as its own list names them, then as its archive unpacks.
_FOLDERS = ("", "video/", "video/DREAM-1K_videos/", "DREAM-1K_videos/")
_ENDINGS = (".mp4", ".webm", ".mkv", ".avi", ".mov")


def marks(record: object) -> bool:
    """A part with `reference`, or a video under `video_file`."""
    parts = message_parts.parts_of(record)
    media = [part.get(kind) for part in parts for kind in ("video", "image")]
    named = any(isinstance(medium, dict) and medium.keys() & {"video_file", "image_file"} for medium in media)
    return named or any("reference" in part for part in parts)


def convert(record: object, context: Context = PLAIN) -> Iterator[Draft]:  # noqa: ARG001
    """The one conversation of a record; a `reference` is the answer where the text beside it is empty.

    Raises:
        RecordError: `bad_schema`, `bad_roles`, `unsupported_modality`, or `media_missing` for a video that neither
            its file nor `vid` names.
    """
    source = fields.mapping(record, "the record")
    written = fields.array(fields.required(source, "messages", "the record"), "messages")
    turns = [_turn(message, source, f"messages[{number}]") for number, message in enumerate(written)]
    parts = {
        f"{number}.{place}": part
        for number, message in enumerate(written)
        for place, part in enumerate(message["content"])
    }
    references = [text for part in parts.values() if (text := fields.optional_text(part, "reference"))]
    extra = {place: found for place, part in parts.items() if (found := _rest(part))}
    meta = fields.rest(source, _KNOWN_KEYS) | chat_fields.meta_of_turns(written, _TURN_KEYS, "messages")
    meta, dropped = media_fields.without_bytes(meta | ({"parts": extra} if extra else {}))
    yield draft(turns, references=references, meta=meta, repairs=dropped)


def _turn(value: object, source: Mapping[str, Any], where: str) -> Turn:
    message = fields.mapping(value, where)
    content = fields.array(fields.required(message, "content", where), f"{where}.content")
    speaker = role(message.get("role"), where)
    parts = [fields.mapping(part, f"{where}.content[{number}]") for number, part in enumerate(content)]
    pieces = [_piece(part, speaker, source, f"{where}.content[{number}]") for number, part in enumerate(parts)]
    return Turn(speaker, tuple(pieces), chat_fields.train_flag(message, where))


def _piece(part: dict[str, Any], speaker: Role, source: Mapping[str, Any], where: str) -> Piece:
    match part.get("type"):
        case "text":
            said = fields.optional_text(part, "text") or ""
            reference = fields.optional_text(part, "reference") or ""
            return said or (reference if speaker == "assistant" else "")
        case ("video" | "image") as kind:
            return _medium(kind, fields.mapping(part.get(kind), f"{where}.{kind}"), source, f"{where}.{kind}")
        case kind:
            raise RecordError("unsupported_modality", f"{where} is of type {kind!r:.60}")


def _medium(kind: PartType, medium: dict[str, Any], source: Mapping[str, Any], where: str) -> MediaReference:
    start, end = (_seconds(medium.get(key), f"{where}.{key}") for key in ("start_time", "end_time"))
    name = fields.text(medium.get(f"{kind}_file"), f"{where}.{kind}_file")
    if name and name != _UNNAMED:
        return MediaReference(kind, name, start=start, end=end)
    vid = source.get("vid")
    if kind != "video" or not isinstance(vid, str | int) or isinstance(vid, bool) or vid == "":
        raise RecordError("media_missing", f"{where} names no file, and there is no 'vid' to find it by")
    dataset = source.get("dataset")
    folders = (*_FOLDERS, *([f"{dataset}/"] if isinstance(dataset, str) and dataset else []))
    first, *others = [f"{folder}{vid}{ending}" for ending in _ENDINGS for folder in folders]
    return MediaReference(kind, first, start=start, end=end, alternatives=tuple(others))


def _seconds(value: object, where: str) -> float | None:
    """Seconds into the video; null and anything below 0 mean its start or end."""
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise fields.wrong(value, where, "a number of seconds")
    return float(value) if value >= 0 else None


def _rest(part: dict[str, Any]) -> dict[str, Any]:
    extra = fields.rest(part, _PART_KEYS)
    for kind in ("video", "image"):
        if isinstance(part.get(kind), dict):
            extra |= fields.rest(part[kind], _MEDIUM_KEYS)
    return extra


FORMAT = Format(
    name="tarsier",
    title="Tarsier's annotations of videos (DREAM-1K)",
    schema=(
        '{"messages": [{"role": "user" | "assistant", "content": [PART]}], "dataset": TEXT, "vid": NAME}\n'
        'PART: {"type": "text", "text": TEXT, "reference": TEXT | null}\n'
        '    | {"type": "video", "video": {"video_file": PATH | "<placeholder>", "start_time": SECONDS}}'
    ),
    example={
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "video", "text": None, "reference": None, "video": {"video_file": "<placeholder>"}},
                    {"type": "text", "text": "Describe the video.", "reference": None, "video": None},
                ],
            },
            {
                "role": "assistant",
                "content": [{"type": "text", "text": "", "reference": "A cat falls asleep.", "video": None}],
            },
        ],
        "dataset": "DREAM/movie_animation",
        "vid": 7,
    },
    traps=(
        "the answer is under reference where the text is empty; it is kept as a reference as well",
        "a video_file of <placeholder> is looked for as <vid>.mp4 and the like, here, in video/ and in DREAM-1K's folders",
        "a file in which each record has text, prompt and response is Tarsier's older form, which is not read",
    ),
    keys=frozenset({"messages", "dataset", "vid", "task", "idx", "extra_info"}),
    matches=messages.matches_under_messages,
    convert=convert,
    narrower_than=("messages",),
    marks=marks,
)
