"""LLaVA's conversations and what grew from them: ShareGPT4V, LLaVA-OneVision, LLaVA-Video, Video-LLaVA, M4, Qwen-VL.

`{"conversations": [{"from", "value"}], "image": path | [path], "video": path | [path], "system": text}`
`<image>` and `<video>` in the text are the places of the media; the text around them stays exactly as it is.
The text-only ShareGPT form with tools, and LLaMA-Factory's `images` and `videos`, are the same format.
"""

from __future__ import annotations

from collections.abc import Iterator

from aria_finetune.data_formats.building import chat_fields, fields, media_fields, placeholders
from aria_finetune.data_formats.building.turns import Turn, draft, role
from aria_finetune.data_formats.format import PLAIN, Context, Format
from aria_finetune.data_formats.record import Draft

_KNOWN_KEYS = frozenset({"conversations", "tools", *chat_fields.SYSTEM_KEYS, *media_fields.MEDIA_KEYS})
_TURN_KEYS = ("from", "value", *chat_fields.TRAIN_KEYS)


def matches(record: object) -> bool:
    """`conversations` whose turns, as far as they are objects, say `from`."""
    if not isinstance(record, dict) or "conversations" not in record:
        return False
    turns = record["conversations"]
    return not isinstance(turns, list) or all("from" in turn for turn in turns if isinstance(turn, dict))


def convert(record: object, context: Context = PLAIN) -> Iterator[Draft]:  # noqa: ARG001
    """The one conversation of a record.

    Raises:
        RecordError: `bad_schema`, `bad_roles`, `unsupported_modality`, or `placeholder_mismatch` where there are
            placeholders and not as many as media.
    """
    source = fields.mapping(record, "the record")
    media_fields.refuse_audio(source)
    images, videos = media_fields.images(source), media_fields.videos(source)
    written = fields.array(fields.required(source, "conversations", "the record"), "conversations")
    turns = [_turn(turn, f"conversations[{number}]") for number, turn in enumerate(written)]
    # Without media an answer may well be about the HTML tags of these names; a question has lost its media.
    turns = [placeholders.split(turn) if images or videos or turn.role == "user" else turn for turn in turns]
    turns, repairs = placeholders.fill(turns, images, videos, add_missing=True)
    meta = fields.rest(source, _KNOWN_KEYS) | chat_fields.meta_of_turns(written, _TURN_KEYS, "conversations")
    yield draft([*chat_fields.system_turn(source), *turns], tools=chat_fields.tools(source), meta=meta, repairs=repairs)


def _turn(value: object, where: str) -> Turn:
    turn = fields.mapping(value, where)
    speaker = role(turn.get("from"), where)
    return Turn(speaker, (fields.turn_text(turn, "value", speaker, where),), chat_fields.train_flag(turn, where))


FORMAT = Format(
    name="llava",
    title="LLaVA conversations, also ShareGPT, LLaVA-Video, Video-LLaVA, M4-Instruct, Qwen-VL fine-tuning",
    schema=(
        '{"conversations": [{"from": "human" | "gpt" | "system" | "function_call" | "observation", "value": TEXT}],\n'
        ' "image": PATH | [PATH], "video": PATH | [PATH], "system": TEXT, "tools": JSON}'
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
        "a first turn from gpt is bad_roles",
    ),
    keys=_KNOWN_KEYS,
    matches=matches,
    convert=convert,
)
