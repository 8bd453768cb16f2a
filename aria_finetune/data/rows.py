"""What the model will see of one record, decided before the first step: turns, pictures, tokens.

No picture is decoded here: sizes come from the record, the times of video frames from the container. Knows
nothing of tensors or of where records come from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from aria_finetune.data.chat import ChatTokenizer, LossOn, Picture, Text, Turn
from aria_finetune.data.tiles import tile_count
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.record import Media, Message, Record
from aria_finetune.errors import MediaError
from aria_finetune.media.inspection import Inspector
from aria_finetune.media.videos import VideoLimits, choose_times, probe_video, timestamp

SMALL, LARGE = 490, 980
VISION_TOKENS = {SMALL: 128, LARGE: 256}
"""Image tokens of one tile by its side in pixels, as the real Aria's projector has them."""

TooLong = Literal["reject", "fail", "fewer_frames"]


@dataclass(frozen=True)
class Viewing:
    """How rows are shown to the model; the meaning of each field is that of `data` in the recipe."""

    image_size: Literal[490, 980, "auto"] = "auto"
    split_images: bool = False
    max_tokens: int = 4096
    too_long: TooLong = "reject"
    loss_on: LossOn = "assistant"
    num_frames: int = 8
    timestamps: bool = True
    vision_tokens: Mapping[int, int] = field(default_factory=lambda: dict(VISION_TOKENS))
    video_limits: VideoLimits = field(default_factory=VideoLimits)


@dataclass(frozen=True, slots=True)
class Sight:
    """One picture of a row: an image, the frame of a video at `time` seconds, or the page `page` of a document.

    `tile` is the side of its tiles in pixels, `tiles` how many it becomes.
    """

    media: int
    tile: int
    tiles: int
    time: float | None = None
    page: int | None = None


@dataclass(frozen=True, slots=True)
class Loss:
    """Why a row of a run can't be shown any more, its files, and which row it was (`data.begun`)."""

    reason: str
    detail: str
    media: str
    sha256: str


@dataclass(frozen=True, slots=True)
class RowPlan:
    """A row as it will be shown: `sights` in the order of the pictures in `turns`; `lost` if it can't be."""

    record: Record
    turns: tuple[Turn, ...]
    sights: tuple[Sight, ...]
    tokens: int
    labels: int
    lost: Loss | None = None

    @property
    def image_count(self) -> int:
        """Number of still images, pages of documents among them."""
        return sum(sight.time is None for sight in self.sights)

    @property
    def video_count(self) -> int:
        """Number of videos."""
        return len({sight.media for sight in self.sights if sight.time is not None})


def plan_row(
    record: Record,
    viewing: Viewing,
    chat: ChatTokenizer,
    *,
    generation: bool = False,
    inspector: Inspector | None = None,
) -> RowPlan:
    """Decide what the model sees of `record` within `viewing.max_tokens`.

    `auto` shows still images larger than 490 px at 980 where the whole row then fits, and video frames at 490.
    With `too_long: fewer_frames` videos lose frames, evenly over the clip, until the row fits.

    Args:
        record: a canonical record whose media paths can be opened.
        viewing: sizes, limits and the loss.
        chat: renders and counts.
        generation: drop the closing assistant turns and end with the header of one, for an answer to be generated.
        inspector: looks into clips, in a process that can be killed; without it, this process does.

    Raises:
        RecordError: `too_long`, `no_label`, `unsupported_modality`, or the reason for which a video can't be used.
    """
    videos = [index for index, media in enumerate(record.media) if media.kind == "video"]
    clips = {index: _open_clip(record.media[index], viewing, inspector) for index in videos}
    plan = _fitting_plan(record, viewing, chat, clips, generation=generation)
    if not generation and plan.labels == 0:
        raise RecordError("no_label", "no token of the row is in the loss")
    return plan


@dataclass(frozen=True, slots=True)
class _Clip:
    """The part of a video from `start` to `end`; `times` and both of them are seconds of the whole video."""

    times: tuple[float, ...]
    start: float | None
    end: float | None
    wanted: int

    def spread(self, count: int) -> tuple[float, ...]:
        """Times of `count` frames, or of all there are, evenly over the part."""
        try:
            return tuple(choose_times(self.times, count, self.start, self.end))
        except MediaError as error:
            raise RecordError(error.reason, error.detail) from error


def _fitting_plan(
    record: Record, viewing: Viewing, chat: ChatTokenizer, clips: Mapping[int, _Clip], *, generation: bool
) -> RowPlan:
    shown = {index: clip.spread(clip.wanted) for index, clip in clips.items()}
    messages = _prompt(record.messages) if generation else record.messages
    shortest: RowPlan | None = None
    for image_tile in _image_tiles(record, viewing):
        layout = _Layout(record, messages, viewing, image_tile)
        plan = layout.plan(shown, chat, generation=generation)
        if plan.tokens <= viewing.max_tokens:
            return plan
        shortest = plan
    if clips and viewing.too_long == "fewer_frames":
        fewer = _fewer_frames(layout, clips, chat, viewing.max_tokens, generation=generation)
        if fewer is not None:
            return fewer
    tokens = shortest.tokens if shortest else 0
    raise RecordError("too_long", f"{tokens} tokens, data.max_tokens is {viewing.max_tokens}")


def _fewer_frames(
    layout: _Layout, clips: Mapping[int, _Clip], chat: ChatTokenizer, max_tokens: int, *, generation: bool
) -> RowPlan | None:
    """The plan with the most frames per video that fits, or None if one frame each is too many."""
    fitting = None
    low, high = 1, max(len(clip.spread(clip.wanted)) for clip in clips.values()) - 1
    while low <= high:
        middle = (low + high) // 2
        # Chosen anew from the whole clip: taken from frames chosen before, they would lean to its end.
        thinned = {index: clip.spread(min(middle, clip.wanted)) for index, clip in clips.items()}
        plan = layout.plan(thinned, chat, generation=generation)
        if plan.tokens <= max_tokens:
            fitting, low = plan, middle + 1
        else:
            high = middle - 1
    return fitting


@dataclass(frozen=True)
class _Layout:
    """Turns a record's messages into turns and sights; with `auto`, `image_tile` is that of large still images."""

    record: Record
    messages: tuple[Message, ...]
    viewing: Viewing
    image_tile: int

    def plan(self, shown: Mapping[int, tuple[float, ...]], chat: ChatTokenizer, *, generation: bool) -> RowPlan:
        sights: list[Sight] = []
        turns = tuple(self._turn(message, shown, sights) for message in self.messages)
        encoding = chat.encode(turns, loss_on=self.viewing.loss_on, generation_prompt=generation)
        return RowPlan(self.record, turns, tuple(sights), len(encoding.ids), encoding.label_count)

    def _turn(self, message: Message, shown: Mapping[int, tuple[float, ...]], sights: list[Sight]) -> Turn:
        content: list[Text | Picture] = []
        for part in message.content:
            if part.type == "text":
                content.append(Text(part.text or ""))
            elif part.type == "image" and part.media is not None:
                content.append(self._show(self._image(part.media), sights))
            elif part.type == "document" and part.media is not None:
                content.extend(self._pages(part.media, sights))
            elif part.type == "video" and part.media is not None:
                content.extend(self._frames(part.media, shown[part.media], sights))
            else:
                raise RecordError("unsupported_modality", f"a part of type {part.type} can't be shown")
        return Turn(message.role, tuple(content), message.train)

    def _image(self, index: int) -> Sight:
        media = self.record.media[index]
        tile = self.image_tile if self.viewing.image_size != "auto" or _is_large(media) else SMALL
        return Sight(index, tile, tile_count(media.width, media.height, tile, split=self.viewing.split_images))

    def _pages(self, index: int, sights: list[Sight]) -> list[Text | Picture]:
        """Every page of a document, or the one that the source asks for, as a tile of its own."""
        media = self.record.media[index]
        tile = self.image_tile if self.viewing.image_size != "auto" or _is_large(media) else SMALL
        pages = [media.page] if media.page is not None else range(1, (media.frames or 0) + 1)
        return [self._show(Sight(index, tile, 1, page=page), sights) for page in pages]

    def _frames(self, index: int, times: Iterable[float], sights: list[Sight]) -> list[Text | Picture]:
        tile = SMALL if self.viewing.image_size == "auto" else self.viewing.image_size
        content: list[Text | Picture] = []
        for time in times:
            picture = self._show(Sight(index, tile, 1, time), sights)
            if self.viewing.timestamps:
                content += [Text(timestamp(time)), picture, Text("\n")]
            else:
                content.append(picture)
        return content

    def _show(self, sight: Sight, sights: list[Sight]) -> Picture:
        sights.append(sight)
        return Picture(sight.tiles * self.viewing.vision_tokens[sight.tile])


def _image_tiles(record: Record, viewing: Viewing) -> list[int]:
    """Tile sizes to try for still images, the best first."""
    if viewing.image_size != "auto":
        return [viewing.image_size]
    large = any(media.kind != "video" and _is_large(media) for media in record.media)
    return [LARGE, SMALL] if large else [SMALL]


def _is_large(media: Media) -> bool:
    return max(media.width, media.height) > SMALL


def _open_clip(media: Media, viewing: Viewing, inspector: Inspector | None) -> _Clip:
    probe = inspector.video if inspector else probe_video
    try:
        times = probe(Path(media.path or ""), viewing.video_limits).times
    except MediaError as error:
        raise RecordError(error.reason, error.detail) from error
    return _Clip(times, media.start, media.end, media.num_frames or viewing.num_frames)


def as_prompt(plan: RowPlan, chat: ChatTokenizer) -> RowPlan:
    """The same row, shown as it is but without its closing assistant turns, for an answer to be generated."""
    end = len(plan.turns)
    while end and plan.turns[end - 1].role == "assistant":
        end -= 1
    turns = plan.turns[:end]
    sights = plan.sights[: sum(isinstance(part, Picture) for turn in turns for part in turn.content)]
    tokens = len(chat.encode(turns, generation_prompt=True).ids)
    return replace(plan, turns=turns, sights=sights, tokens=tokens, labels=0)


def _prompt(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """The messages up to the closing assistant turns, which are the answer."""
    end = len(messages)
    while end and messages[end - 1].role == "assistant":
        end -= 1
    return messages[:end]
