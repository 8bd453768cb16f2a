"""ShareGPT4Video: a long caption of each clip, and captions of the steps between its keyframes.

`{"video_id", "video_path", "captions": [{"idx", "content"}], "keyframe": [...], "timestamp": [...]}`. The caption
with `idx` of -1 is that of the whole clip. The others say what changed since the keyframe before, so that none of
them can stand by itself; they are kept as metadata.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from aria_finetune.data_formats.building import fields, media_bytes, questions
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.format import PLAIN, Candidate, Context, Format
from aria_finetune.data_formats.record import MediaReference
from aria_finetune.data_formats.video import clips

_KEYS = frozenset({"video_id", "video_path", "captions"})
_WHOLE = ("-1", -1)


def matches(record: object) -> bool:
    """`video_id`, `video_path` and `captions`."""
    return isinstance(record, dict) and record.keys() >= _KEYS


def convert(record: object, context: Context = PLAIN) -> Iterator[Candidate]:  # noqa: ARG001
    """The caption of the whole clip; where none is marked as that, one candidate for each caption.

    Raises:
        RecordError: `bad_schema`.
    """
    source = fields.mapping(record, "the record")
    media = [_clip(source)]
    captions = fields.array(fields.required(source, "captions", "the record"), "captions")
    whole = [caption for caption in captions if isinstance(caption, dict) and caption.get("idx") in _WHOLE]
    steps = [caption for caption in captions if caption not in whole] if whole else []
    used = ("video_path",) if steps else ("video_path", "captions")
    meta, repairs = media_bytes.rest({**source, "captions": steps}, used)
    if steps:
        repairs = (*repairs, "step_captions_kept_as_metadata")
    for caption in _texts(whole or captions):
        if isinstance(caption, RecordError):
            yield caption
        else:
            yield questions.asked(
                media, questions.VIDEO_PROMPT, caption, references=(caption,), meta=meta, repairs=repairs
            )


def _texts(captions: Sequence[object]) -> Iterator[str | RecordError]:
    if not captions:
        yield RecordError("bad_schema", "captions is empty")
    for number, caption in enumerate(captions):
        where = f"captions[{number}]"
        try:
            text = fields.required(caption, "content", where) if isinstance(caption, dict) else caption
            yield fields.text(text, where)
        except RecordError as error:
            yield error


def _clip(source: dict[str, Any]) -> MediaReference:
    path = source.get("video_path")
    if isinstance(path, str) and path:
        return clips.clip(path, path.rpartition("/")[2])
    return clips.clip(clips.identifier(fields.required(source, "video_id", "the record"), "video_id"))


FORMAT = Format(
    name="sharegpt4video",
    title="ShareGPT4Video's captions of clips and their keyframes",
    schema=(
        '{"video_id": ID, "video_path": PATH, "captions": [{"idx": "-1" | "1" | ..., "content": TEXT}],\n'
        ' "keyframe": [N], "timestamp": [TIME], "zip_folder": NAME}'
    ),
    example={
        "video_id": "abc",
        "video_path": "pexels/abc.mp4",
        "captions": [
            {"idx": "1", "content": "A man stands at a bus stop."},
            {"idx": "2", "content": "The bus has arrived and its door opens."},
            {"idx": "-1", "content": "A man waits at a stop until a bus arrives and opens its door."},
        ],
    },
    traps=(
        "the caption with idx -1 is the answer; those of the steps stay metadata (step_captions_kept_as_metadata)",
        "without such an idx every caption is a record",
        "the LLaVA form of the data set is read as llava",
    ),
    keys=_KEYS | {"keyframe", "timestamp", "zip_folder"},
    matches=matches,
    convert=convert,
)
