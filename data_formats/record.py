"""The canonical record: one conversation with its media, the only form the rest of the tool knows.

The dataclasses are not frozen because they are made by the million, and freezing them costs three times the rest; all
the same nothing changes one. Schema version 1. Every field is always present and no field changes its type, so JSON, Arrow and Parquet
read it alike. Converters produce `Draft`s, whose media are still references; `Record` is what stands in a
converted data set, its media checked, hashed and measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

SCHEMA_VERSION = 1

Role = Literal["system", "user", "assistant", "tool"]
PartType = Literal["text", "image", "video", "document"]
ROLES: tuple[str, ...] = ("system", "user", "assistant", "tool")
PART_TYPES: tuple[str, ...] = ("text", "image", "video", "document")


@dataclass(slots=True)
class Part:
    """A piece of a message: text, or the place of `media[media]`."""

    type: PartType
    text: str | None = None
    media: int | None = None


@dataclass(slots=True)
class Message:
    """One turn. `train` false keeps an assistant turn out of the loss; None leaves it to `data.loss_on`."""

    role: Role
    content: tuple[Part, ...]
    train: bool | None = None


@dataclass(slots=True, unsafe_hash=True)
class MediaReference:
    """A medium as the source names it: a path, a URL or a data URI in `reference`.

    `start` and `end` are seconds of a clip, `num_frames` how many frames the source asks for, `page` the
    page of a document, counted from 1. `content` are the bytes of a medium that lies in the source itself, and
    `reference` is then only its name. `alternatives` are tried in order where there is no file `reference`, for
    sources that leave out a folder or the ending of a name.
    """

    kind: PartType
    reference: str
    start: float | None = None
    end: float | None = None
    num_frames: int | None = None
    page: int | None = None
    content: bytes | None = None
    alternatives: tuple[str, ...] = ()


@dataclass(slots=True)
class Draft:
    """What a converter makes of one candidate of a source record.

    A `document` is no conversation but a text to go on with: it has a single message, of the assistant.
    """

    messages: tuple[Message, ...]
    media: tuple[MediaReference, ...] = ()
    references: tuple[str, ...] = ()
    tools: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    repairs: tuple[str, ...] = ()
    document: bool = False


@dataclass(slots=True)
class Media:
    """A medium that was checked. `path` is relative to the data set's folder, or absolute when referenced.

    `width` and `height` are pixels as shown (after EXIF or stream rotation), `duration` seconds, `frames`
    the number of decodable frames, `origin` the reference as the source gave it (data URIs shortened). `packed` is never
    written: of a medium whose bytes lie in the Parquet file `path` it is row group, row and number in the row.
    """

    kind: PartType
    path: str | None
    sha256: str
    mime: str
    width: int
    height: int
    frames: int | None = None
    duration: float | None = None
    start: float | None = None
    end: float | None = None
    num_frames: int | None = None
    page: int | None = None
    origin: str = ""
    packed: tuple[int, int, int] | None = None

    @property
    def name(self) -> str:
        """What tells its bytes from others: the path, and of what is packed also the place."""
        return (self.path or "") + ("#{}.{}.{}".format(*self.packed) if self.packed else "")

    def to_dict(self) -> dict[str, Any]:
        """The medium as plain JSON types."""
        return {
            "kind": self.kind,
            "path": self.path,
            "sha256": self.sha256,
            "mime": self.mime,
            "width": self.width,
            "height": self.height,
            "frames": self.frames,
            "duration": self.duration,
            "start": self.start,
            "end": self.end,
            "num_frames": self.num_frames,
            "page": self.page,
            "origin": self.origin,
        }


@dataclass(slots=True)
class Source:
    """Where a record came from."""

    format: str
    file: str
    ordinal: int
    converter_version: str

    def to_dict(self) -> dict[str, Any]:
        """The source as plain JSON types."""
        return {
            "format": self.format,
            "file": self.file,
            "ordinal": self.ordinal,
            "converter_version": self.converter_version,
        }


@dataclass(slots=True)
class Record:
    """One conversation of the canonical data set; `meta` is a JSON object as text."""

    id: str
    messages: tuple[Message, ...]
    media: tuple[Media, ...]
    references: tuple[str, ...]
    tools: str | None
    meta: str
    source: Source

    def to_dict(self) -> dict[str, Any]:
        """The record as plain JSON types, every field present."""
        # All that is converted goes through here: written out it takes a third of the time that orjson takes to find
        # the fields of a dataclass with slots, and a tenth of that of dataclasses.asdict.
        return {
            "id": self.id,
            "messages": [
                {
                    "role": message.role,
                    "content": [
                        {"type": part.type, "text": part.text, "media": part.media} for part in message.content
                    ],
                    "train": message.train,
                }
                for message in self.messages
            ],
            "media": [medium.to_dict() for medium in self.media],
            "references": list(self.references),
            "tools": self.tools,
            "meta": self.meta,
            "source": self.source.to_dict(),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Record:
        """Read what `to_dict` wrote.

        Raises:
            KeyError, TypeError: a field is missing, unknown or of the wrong type.
        """
        return cls(
            id=data["id"],
            messages=tuple(_message(message) for message in data["messages"]),
            media=tuple(_media(medium) for medium in data["media"]),
            references=tuple(data["references"]),
            tools=data["tools"],
            meta=data["meta"],
            source=Source(**data["source"]),
        )


def _media(data: Mapping[str, Any]) -> Media:
    if "packed" in data:
        raise TypeError("'packed' is no field of a medium that is written")
    return Media(**data)


def _message(data: Mapping[str, Any]) -> Message:
    return Message(role=data["role"], content=tuple(Part(**part) for part in data["content"]), train=data["train"])
