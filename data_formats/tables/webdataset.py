"""WebDataset: tar files whose members with the same name up to the first dot make one sample.

`{"__key__": name, "jpg" | "png" | "mp4" | ...: bytes, "txt": text, "json": value, "cls": class}`
A sample is a caption, a question with its answer, a class, or a conversation in the form of LLaVA or chat messages,
whose media lie beside it in the sample.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from aria_finetune.data_formats.building import fields, media_bytes, media_fields
from aria_finetune.data_formats.chat import llava, messages
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.format import PLAIN, Candidate, Context, Format
from aria_finetune.data_formats.record import Draft, MediaReference, PartType
from aria_finetune.data_formats.tables import described

_CHATS = (llava.FORMAT, messages.FORMAT)
_TEXT_MEMBERS = ("txt", "caption")
_CAPTION_KEYS = ("caption", "text")
_COLUMN_OF_KIND: dict[PartType, str] = {"image": "images", "video": "videos"}
_COLUMNS = (*media_fields.IMAGE_KEYS, *media_fields.VIDEO_KEYS)
_NUMBER = re.compile(r"[0-9]{1,18}")


def matches(record: object) -> bool:
    """A sample of a tar file, which has `__key__`."""
    return isinstance(record, dict) and "__key__" in record


def convert(record: object, context: Context = PLAIN) -> Iterator[Candidate]:
    """What the sample holds: a conversation, a question, a caption or a class, the first of these that it has.

    Raises:
        RecordError: `bad_schema`, `unsupported_modality`, `placeholder_mismatch` where the conversation and the
            sample differ in their media, and what the formats of conversations raise.
    """
    sample = fields.mapping(record, "the sample")
    members = _members(sample)
    data = sample.get("json")
    chat = next((known for known in _CHATS if known.matches(data)), None)
    media = list(members.values())
    if chat is not None:
        meta, repairs = media_bytes.rest(sample, {"json", *members})
        for candidate in _conversation(chat, data, media, context):
            yield _with_more(candidate, meta, repairs)
    elif not media:
        raise RecordError("bad_schema", "the sample has no image, video or PDF file")
    else:
        yield from _said(sample, data, media, members)


def _said(
    sample: Mapping[str, Any], data: object, media: Sequence[MediaReference], members: Collection[str]
) -> Iterator[Candidate]:
    beside = data if isinstance(data, dict) else {}
    text = next((ending for ending in _TEXT_MEMBERS if ending in sample), None)
    caption = next((key for key in _CAPTION_KEYS if key in beside), None)
    if "question" in beside:
        meta, repairs = _rest(sample, members, described.QUESTION_KEYS)
        yield described.answered(media, beside, meta, repairs)
    elif text is not None:
        same = [key for key in _CAPTION_KEYS if beside.get(key) == sample[text]]
        yield from described.described(media, sample[text], text, *_rest(sample, {*members, text}, same))
    elif caption is not None:
        yield from described.described(media, beside[caption], f"json.{caption}", *_rest(sample, members, [caption]))
    elif "cls" in sample:
        yield described.classified(media, sample["cls"], "cls", *_rest(sample, {*members, "cls"}))
    else:
        detail = "the sample has neither txt nor cls nor a json with a caption or a conversation"
        raise RecordError("bad_schema", detail)


def _rest(
    sample: Mapping[str, Any], members: Collection[str], of_json: Collection[str] = ()
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What of a sample is not used, without the fields `of_json` of its `json`."""
    left = fields.rest(sample, {*members, "json"})
    data = sample.get("json")
    more = fields.rest(data, of_json) if isinstance(data, dict) else data
    return media_fields.without_bytes(left | ({"json": more} if more else {}))


def _members(sample: Mapping[str, Any]) -> dict[str, MediaReference]:
    """The media of a sample; those with numbers in their endings, as `0.jpg` and `10.jpg`, by these numbers."""
    key = sample.get("__key__")
    found: dict[str, MediaReference] = {}
    for ending, content in sample.items():
        kind = described.kind_of(ending) if isinstance(content, bytes) else None
        if kind:
            name = f"{key}.{ending}" if isinstance(key, str) else ending
            found[ending] = MediaReference(kind, name, content=content)
    numbers = {ending: _NUMBER.search(ending.rpartition(".")[0]) for ending in found}
    if all(numbers.values()):
        found = dict(sorted(found.items(), key=lambda item: int(match[0]) if (match := numbers[item[0]]) else 0))
    return found


def _conversation(
    chat: Format, data: object, members: Sequence[MediaReference], context: Context
) -> Iterator[Candidate]:
    record = {"messages": data} if isinstance(data, list) and chat is messages.FORMAT else data
    names_media = not isinstance(record, dict) or any(record.get(column) for column in _COLUMNS)
    try:
        candidates = list(chat.convert(record, context))
    except RecordError as error:
        if error.reason != "placeholder_mismatch" or names_media or not members:
            raise
        candidates = []
    shows_media = any(isinstance(candidate, Draft) and candidate.media for candidate in candidates)
    if isinstance(record, dict) and members and not names_media and not shows_media:
        candidates = list(chat.convert(record | _columns(members), context))
    for candidate in candidates:
        yield _with_contents(candidate, members) if isinstance(candidate, Draft) else candidate


def _columns(members: Sequence[MediaReference]) -> dict[str, list[str]]:
    return {
        column: [member.reference for member in members if member.kind == kind]
        for kind, column in _COLUMN_OF_KIND.items()
    }


def _with_more(candidate: Candidate, meta: Mapping[str, Any], repairs: tuple[str, ...]) -> Candidate:
    if not isinstance(candidate, Draft):
        return candidate
    return replace(candidate, meta={**meta, **candidate.meta}, repairs=(*candidate.repairs, *repairs))


def _with_contents(draft: Draft, members: Sequence[MediaReference]) -> Draft:
    """The draft with the bytes of the sample: found by name, or else in order (`media_matched_by_order`).

    Members that the conversation does not show are noticed (`media_not_shown`).
    """
    media, repairs, shown = list(draft.media), list(draft.repairs), 0
    for kind in ("image", "video"):
        places = [number for number, medium in enumerate(media) if medium.kind == kind]
        there = [member for member in members if member.kind == kind]
        if not places or not there:
            continue
        found = [_named(media[place].reference, there) for place in places]
        if None in found:
            if len(there) != len(places):
                detail = f"the conversation names {len(places)} {kind}s and the sample holds {len(there)}"
                raise RecordError("placeholder_mismatch", detail)
            repairs += ["media_matched_by_order"] if len(there) > 1 else []
            found = list(there)
        for place, member in zip(places, found, strict=True):
            media[place] = replace(media[place], content=member.content if member else None)
        shown += len({member.reference for member in found if member})
    repairs += ["media_not_shown"] if shown < len(members) else []
    return replace(draft, media=tuple(media), repairs=tuple(dict.fromkeys(repairs)))


def _named(name: str, members: Sequence[MediaReference]) -> MediaReference | None:
    """The member that a name means: in full, or by its last part, with or without the key of the sample."""
    last = name.rpartition("/")[2]
    for member in members:
        if member.reference == name or member.reference.rpartition("/")[2] == last:
            return member
        if member.reference.rpartition("/")[2].partition(".")[2] == last:
            return member
    return None


FORMAT = Format(
    name="webdataset",
    title="WebDataset, tar files of media with captions, classes or conversations",
    schema=(
        "a tar file with members KEY.ENDING: jpg, png, webp, mp4, pdf, ... for media, beside them\n"
        "txt   a caption\n"
        'json  {"caption" | "text": TEXT} or {"question": TEXT, "answer": TEXT}\n'
        "      or a conversation in the form of llava or messages\n"
        "cls   the name of a class"
    ),
    example={
        "__key__": "000001",
        "jpg": b"the bytes of the image",
        "txt": "A lighthouse at night.",
        "json": {"caption": "A lighthouse at night.", "width": 640, "height": 480},
    },
    traps=(
        "a key ends at the first dot of the file name, not of the path; folders are part of the key",
        "txt counts before a caption in json, and both before cls; what is not used is kept as metadata",
        "a conversation that names no media gets those of the sample in order, numbered ones by their numbers",
        "names that are not those of the members are matched in order (media_matched_by_order)",
        "media that a conversation does not show are left out (media_not_shown)",
        "members that are neither media, text nor JSON are left out (bytes_dropped)",
    ),
    keys=frozenset({"__key__", "txt", "json", "cls", "jpg", "png", "webp", "mp4"}),
    matches=matches,
    convert=convert,
)
