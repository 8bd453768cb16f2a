"""LLaVA's conversations and what grew from them: ShareGPT4V, LLaVA-OneVision, LLaVA-Video, Video-LLaVA, M4, Qwen-VL.

`{"conversations": [{"from", "value"}], "image": path | [path], "video": path | [path], "system": text}`
`<image>` and `<video>` in the text are the places of the media; the text around them stays exactly as it is.
The text-only ShareGPT form with tools, and LLaMA-Factory's `images` and `videos`, are the same format. So are the
packed records of Qwen-VL's fine-tuning, each a list of such objects, of which every one is a conversation.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

from aria_finetune.data_formats.building import chat_fields, fields, media_fields, placeholders, preference_keys
from aria_finetune.data_formats.building.turns import Turn, draft, role
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.format import PLAIN, Candidate, Context, Format
from aria_finetune.data_formats.record import Draft, MediaReference, Message, Part, Role

_KNOWN_KEYS = frozenset({"conversations", "data_path", "tools", *chat_fields.SYSTEM_KEYS, *media_fields.MEDIA_KEYS})
_UNUSUAL_KEYS = _KNOWN_KEYS - {"conversations", "image"}
_USUAL_ROLES: Mapping[object, Role] = {"human": "user", "gpt": "assistant"}
_PLAIN_TYPES = frozenset({str, int, float, bool, type(None)})
_TURN_KEYS = ("from", "value", *chat_fields.TRAIN_KEYS)
# Left in VideoInstruct-100K, which LLaVA-Hound took up, by the model that wrote the answers; its authors say to
# remove it: https://github.com/mbzuai-oryx/Video-ChatGPT/issues/69
_NOISE = "QA_GT_caption_based_noisy"
_NOISE_MARKER = re.compile(rf"\n?{_NOISE}")


def matches(record: object) -> bool:
    """`conversations` whose turns, as far as they are objects, say `from`; or a list of such objects."""
    if isinstance(record, list):
        return bool(record) and all(map(_has_turns, record))
    return _has_turns(record)


def convert(record: object, context: Context = PLAIN) -> Iterator[Candidate]:  # noqa: ARG001
    """The conversation of a record, or one of each object in a packed record.

    Raises:
        RecordError: `bad_schema`, `bad_roles`, `unsupported_modality`, or `placeholder_mismatch` where there are
            placeholders and not as many as media. Of a packed record it is yielded in place of the one conversation.
    """
    if not isinstance(record, list):
        yield conversation(record, "the record")
        return
    if not record:
        raise RecordError("bad_schema", "the record is an empty list")
    for number, packed in enumerate(record):
        try:
            yield conversation(packed, f"item {number} of the record")
        except RecordError as error:
            yield error


def conversation(record: object, where: str) -> Draft:
    """The conversation of one object, for formats that differ from LLaVA's in little.

    Raises:
        RecordError: as `convert`.
    """
    source = fields.mapping(record, where)
    return _usual_conversation(source) or _any_conversation(source, where)


def _usual_conversation(source: Mapping[str, Any]) -> Draft | None:
    """The conversation of a record as nearly all are: texts, and at most one image whose place is marked once.

    Millions of records are of this shape, and this takes a fifth of the time. None for any other.
    """
    image, turns = source.get("image"), source.get("conversations")
    if type(turns) is not list or (image is not None and (type(image) is not str or not image)):
        return None
    if not _UNUSUAL_KEYS.isdisjoint(source):
        return None
    messages, places = [], 0
    for turn in turns:
        content = _usual_content(turn, image)
        if content is None:
            return None
        places += len(content) == 2
        messages.append(Message(_USUAL_ROLES[turn["from"]], content))
    meta = {key: value for key, value in source.items() if key not in _KNOWN_KEYS}
    if places != (image is not None) or not _PLAIN_TYPES.issuperset(map(type, meta.values())):
        return None
    return Draft(tuple(messages), (MediaReference("image", image),) if image else (), (), None, meta)


def _usual_content(turn: object, image: str | None) -> tuple[Part, ...] | None:  # noqa: PLR0911 (a shape each)
    """The part of a turn of nothing but text, or its two parts where `<image>` stands before or behind it."""
    if type(turn) is not dict or len(turn) != 2:
        return None
    speaker, text = turn.get("from"), turn.get("value")
    if type(speaker) is not str or speaker not in _USUAL_ROLES:
        return None
    if type(text) is not str or _NOISE in text:
        return None
    if "<" not in text:
        return (Part("text", text),) if text else ()
    if "<video>" in text or "<image>" not in text:
        return None if "<video>" in text else (Part("text", text),)
    before, _, behind = text.partition("<image>")
    if image is None or "<image>" in behind or (before and behind) or not (before + behind).strip():
        return None
    place = Part("image", None, 0)
    return (Part("text", before), place) if before else (place, Part("text", behind))


def _any_conversation(source: Mapping[str, Any], where: str) -> Draft:
    media_fields.refuse_audio(source)
    folder = fields.optional_text(source, "data_path")
    images, videos = media_fields.images(source), media_fields.videos(source)
    if folder is not None:
        images = [_in_folder(medium, folder) for medium in images]
        videos = [_in_folder(medium, folder) for medium in videos]
    written = fields.array(fields.required(source, "conversations", where), "conversations")
    turns = [_turn(turn, f"conversations[{number}]") for number, turn in enumerate(written)]
    noise = any(_NOISE in piece for turn in turns for piece in turn.pieces if isinstance(piece, str))
    turns = [_without_noise(turn) for turn in turns] if noise else turns
    # Without media an answer may well be about the HTML tags of these names; a question has lost its media.
    turns = [placeholders.split(turn) if images or videos or turn.role == "user" else turn for turn in turns]
    turns, repairs = placeholders.fill(turns, images, videos, add_missing=True)
    repairs = ("noise_marker_removed", *repairs) if noise else repairs
    meta = fields.rest(source, _KNOWN_KEYS) | media_fields.rest(source)
    meta, dropped = media_fields.without_bytes(meta | chat_fields.meta_of_turns(written, _TURN_KEYS, "conversations"))
    turns = [*chat_fields.system_turn(source), *turns]
    return draft(turns, tools=chat_fields.tools(source), meta=meta, repairs=(*repairs, *dropped))


def _has_turns(record: object) -> bool:
    if not isinstance(record, dict) or "conversations" not in record or preference_keys.is_preference(record):
        return False
    turns = record["conversations"]
    return not isinstance(turns, list) or all("from" in turn for turn in turns if isinstance(turn, dict))


def _turn(value: object, where: str) -> Turn:
    turn = fields.mapping(value, where)
    speaker = role(turn.get("from"), where)
    return Turn(speaker, (fields.turn_text(turn, "value", speaker, where),), chat_fields.train_flag(turn, where))


def _without_noise(turn: Turn) -> Turn:
    return replace(turn, pieces=tuple(_NOISE_MARKER.sub("", p) if isinstance(p, str) else p for p in turn.pieces))


def _in_folder(medium: MediaReference, folder: str) -> MediaReference:
    """A medium below `data_path`, which is where Qwen-VL's training looks, or else where it says itself."""
    if medium.content is not None or medium.reference[:5].lower() == "data:" or "://" in medium.reference:
        return medium
    path = str(PurePosixPath(folder) / medium.reference)
    if path == medium.reference:
        return medium
    return replace(medium, reference=path, alternatives=(medium.reference, *medium.alternatives))


FORMAT = Format(
    name="llava",
    title="LLaVA conversations, also ShareGPT, LLaVA-Video, Video-LLaVA, M4-Instruct, Qwen-VL fine-tuning",
    schema=(
        '{"conversations": [{"from": "human" | "gpt" | "system" | "function_call" | "observation", "value": TEXT}],\n'
        ' "image": PATH | [PATH], "video": PATH | [PATH], "system" | "system_prompt": TEXT, "tools": JSON,\n'
        ' "data_path": FOLDER}\n'
        "or a list of such objects (packed records): each is a conversation of its own"
    ),
    example={
        "id": "0",
        "image": "images/street.jpg",
        "conversations": [
            {"from": "human", "value": "<image>\nHow many cars are there?"},
            {"from": "gpt", "value": "Three."},
        ],
    },
    traps=(
        "<image> may stand anywhere in the text; nothing around it is removed, so a line break beside it stays",
        "in LLaVA-Video the placeholder of a video is <image>",
        "no placeholder at all: the media go before the first user text, counted as placeholder_added",
        "one <video> is one part, however many frames are taken from it later",
        "a video given as a list of its frames is bad_schema; list them as images, or name the video",
        "a first turn from gpt is bad_roles; LLaVA's own loader drops it in silence",
        "boxes in the text stay as they are, in whatever coordinates the set has",
        "M4-Instruct has sample_id for id; it, metadata and choice_list stay in meta",
        "data_path goes in front of the names; where no such file is there, the names count by themselves",
        "QA_GT_caption_based_noisy, left in the text of VideoInstruct, is taken out of it (noise_marker_removed)",
    ),
    keys=_KNOWN_KEYS,
    matches=matches,
    convert=convert,
)
