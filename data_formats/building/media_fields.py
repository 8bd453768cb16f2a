"""Images and videos as chat records name them: `image`, `images`, `video` and `videos` beside the turns.

A medium is named by text, by an object with `path` or `url`, or is an Arrow struct `{bytes, path}` that holds it.
Only the names are read; whether there is such a file is for whoever opens it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aria_finetune.data_formats.building import fields
from aria_finetune.data_formats.building.turns import Turn
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.record import MediaReference, PartType

IMAGE_KEYS = ("image", "images")
VIDEO_KEYS = ("video", "videos")
AUDIO_KEYS = ("audio", "audios")
_COLUMN_KEYS = (*IMAGE_KEYS, *VIDEO_KEYS)
MEDIA_KEYS = frozenset({*IMAGE_KEYS, *VIDEO_KEYS, *AUDIO_KEYS})
_NAME_KEYS = ("path", "url")
OBJECT_KEYS = (*_NAME_KEYS, "bytes")
"""The keys of an object that stands for one medium."""

_UNIT_OF_BOX_TYPE = {"real": "pixels", "norm1": "0-1"}
_BOX_MARKS = ("<bbox>", "<ref-object>")
_KIND_OF_BOX = {2: "xy", 4: "xyxy"}


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


def media(kind: PartType, value: object, where: str) -> list[MediaReference]:
    """The media of a column that holds one or a list of them; none where it is null.

    Raises:
        RecordError: `bad_schema`, as `medium`.
    """
    if value is None:
        return []
    if isinstance(value, list):
        return [medium(kind, item, f"{where}[{number}]") for number, item in enumerate(value)]
    return [medium(kind, value, where)]


def medium(kind: PartType, value: object, where: str) -> MediaReference:
    """One medium: named as in `reference`, or held by an Arrow struct `{bytes, path}` or as bare bytes.

    Bytes without a path are called by their place in the record. A struct whose bytes are null is only a name.
    """
    struct = value if isinstance(value, dict) else {"bytes": value if isinstance(value, bytes) else None}
    content = struct.get("bytes")
    if content is None:
        return MediaReference(kind, reference(value, where))
    if not isinstance(content, bytes):
        raise fields.wrong(content, f"{where}.bytes", "binary")
    return MediaReference(kind, fields.optional_text(struct, "path") or where, content=content)


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


def rest(record: Mapping[str, Any]) -> dict[str, Any]:
    """What the objects in the columns of media hold beside name and bytes, as `{column: {number: fields}}`."""
    extra: dict[str, Any] = {}
    for key in _COLUMN_KEYS:
        value = record.get(key)
        items = [item for item in enumerate(value if isinstance(value, list) else [value]) if isinstance(item[1], dict)]
        found = {str(number): more for number, item in items if (more := fields.rest(item, OBJECT_KEYS))}
        if found:
            extra[key] = found
    return extra


def boxes(record: Mapping[str, Any], turns: Sequence[Turn]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The `objects` of ms-swift with their coordinate system, for the metadata, and what was noticed.

    `<bbox>` and `<ref-object>` in the text mean entries of `objects`. How a box is written out depends on the model
    and on the size of the picture, so they stay (`box_placeholder_kept_as_text`).
    """
    objects = record.get("objects")
    if not isinstance(objects, dict) or not isinstance(objects.get("bbox"), list):
        return {}, ()
    kinds = {_KIND_OF_BOX.get(len(box)) for box in objects["bbox"] if isinstance(box, list)} - {None}
    unit = _UNIT_OF_BOX_TYPE.get(str(objects.get("bbox_type") or "real"), "unknown")
    meta = {"objects": objects | {"coordinates": f"{' or '.join(sorted(map(str, kinds)))} {unit}".strip()}}
    pieces = [piece for turn in turns for piece in turn.pieces]
    marked = any(isinstance(piece, str) and any(mark in piece for mark in _BOX_MARKS) for piece in pieces)
    return meta, ("box_placeholder_kept_as_text",) if marked else ()


def without_bytes(meta: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The metadata of a row of a table without its binary cells, and `bytes_dropped` if there were any."""
    dropped: list[bytes] = []
    kept = {key: _plain(value, dropped) for key, value in meta.items() if not _drop(value, dropped)}
    return kept, ("bytes_dropped",) if dropped else ()


def _plain(value: object, dropped: list[bytes]) -> object:
    if isinstance(value, dict):
        return {key: _plain(item, dropped) for key, item in value.items() if not _drop(item, dropped)}
    if isinstance(value, list):
        return [_plain(item, dropped) for item in value if not _drop(item, dropped)]
    return value


def _drop(value: object, dropped: list[bytes]) -> bool:
    if isinstance(value, bytes):
        dropped.append(value)
    return isinstance(value, bytes)


def _column(record: Mapping[str, Any], keys: tuple[str, ...], kind: PartType) -> list[MediaReference]:
    given = [key for key in keys if record.get(key) is not None]
    if len(given) > 1:
        raise RecordError("bad_schema", f"both {given[0]!r} and {given[1]!r} name media")
    return media(kind, record[given[0]], given[0]) if given else []
