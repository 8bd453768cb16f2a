"""Images and videos as chat records name them: `image`, `images`, `video` and `videos` beside the turns.

Only the names are read; whether there is such a file is for whoever opens it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aria_finetune.data_formats.building import fields
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.record import MediaReference, PartType

IMAGE_KEYS = ("image", "images")
VIDEO_KEYS = ("video", "videos")
AUDIO_KEYS = ("audio", "audios")
MEDIA_KEYS = frozenset({*IMAGE_KEYS, *VIDEO_KEYS, *AUDIO_KEYS})
_NAME_KEYS = ("path", "url")


def images(record: Mapping[str, Any]) -> list[MediaReference]:
    """The images a record names beside its turns.

    Raises:
        RecordError: `bad_schema`, not text or a list of it, or both keys are used.
    """
    return _column(record, IMAGE_KEYS, "image")


def videos(record: Mapping[str, Any]) -> list[MediaReference]:
    """The videos a record names beside its turns; raises as `images` does."""
    return _column(record, VIDEO_KEYS, "video")


def refuse_audio(record: Mapping[str, Any]) -> None:
    """Raise `unsupported_modality` if the record names any sound."""
    for key in AUDIO_KEYS:
        if record.get(key):
            raise RecordError("unsupported_modality", f"{key}: Aria does not hear")


def reference(value: object, where: str) -> str:
    """The name of one medium: text, or an object with it under `path` or `url`."""
    if isinstance(value, dict):
        names = [value[key] for key in _NAME_KEYS if value.get(key)]
        if len(names) != 1:
            raise RecordError("bad_schema", f"{where} needs one of 'path' and 'url'")
        value = names[0]
    name = fields.text(value, where)
    if not name:
        raise RecordError("bad_schema", f"{where} is empty")
    return name


def _column(record: Mapping[str, Any], keys: tuple[str, ...], kind: PartType) -> list[MediaReference]:
    given = [key for key in keys if record.get(key) is not None]
    if len(given) > 1:
        raise RecordError("bad_schema", f"both {given[0]!r} and {given[1]!r} name media")
    if not given:
        return []
    key = given[0]
    value = record[key]
    if not isinstance(value, list):
        return [MediaReference(kind, reference(value, key))]
    return [MediaReference(kind, reference(item, f"{key}[{number}]")) for number, item in enumerate(value)]
