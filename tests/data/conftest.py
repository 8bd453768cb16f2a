"""A tokenizer of single characters, records written by hand, and media whose content says what it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from transformers import AriaProcessor, PreTrainedTokenizerFast

from aria_finetune.data.chat import ChatTokenizer
from aria_finetune.data_formats.record import Media, Message, Part, Record, Source
from aria_finetune.tiny.architecture import tiny_tokenizer

MakeImage = Callable[..., Media]
MakeVideo = Callable[..., Media]
MakeRecord = Callable[..., Record]


@pytest.fixture(scope="session")
def letters() -> PreTrainedTokenizerFast:
    """Aria's control tokens, and one token for every byte: no merges, so lengths can be counted by hand."""
    return tiny_tokenizer([])


@pytest.fixture(scope="session")
def letter_chat(letters: PreTrainedTokenizerFast) -> ChatTokenizer:
    return ChatTokenizer(letters)


@pytest.fixture(scope="session")
def tiny_chat(tiny_aria_processor: AriaProcessor) -> ChatTokenizer:
    return ChatTokenizer(tiny_aria_processor.tokenizer)


@pytest.fixture
def make_image(tmp_path: Path) -> MakeImage:
    """Write a PNG of one colour and describe it as a record does."""

    def make(name: str, size: tuple[int, int], colour: str | tuple[int, int, int] = "red") -> Media:
        path = tmp_path / name
        Image.new("RGB", size, colour).save(path)
        return Media("image", str(path), "", "image/png", *size, frames=1)

    return make


@pytest.fixture
def make_video(tmp_path: Path) -> MakeVideo:
    """Write a clip whose frame number `n` is grey of brightness `4 * n`, and describe it as a record does."""

    def make(
        name: str,
        frames: int,
        *,
        rate: int = 10,
        size: tuple[int, int] = (64, 48),
        start: float | None = None,
        end: float | None = None,
        num_frames: int | None = None,
        milliseconds: Sequence[int] | None = None,
    ) -> Media:
        path = tmp_path / name
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=rate, options={"qp": "4"})
            stream.width, stream.height = size
            stream.pix_fmt = "yuv420p"
            if milliseconds is not None:
                stream.codec_context.time_base = Fraction(1, 1000)
            for number in range(frames):
                pixels = np.full((size[1], size[0], 3), 4 * number, np.uint8)
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                if milliseconds is not None:
                    frame.pts, frame.time_base = milliseconds[number], Fraction(1, 1000)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        return Media("video", str(path), "", "video/mp4", *size, frames, frames / rate, start, end, num_frames)

    return make


@pytest.fixture(scope="session")
def make_record() -> MakeRecord:
    """A record of `messages`, (role, parts) pairs in which text is text and a number the place of a medium."""

    def make(
        messages: Sequence[tuple[str, Sequence[str | int]]],
        media: Sequence[Media] = (),
        *,
        ordinal: int = 0,
        train: Sequence[bool | None] | None = None,
        references: tuple[str, ...] = (),
    ) -> Record:
        def part(value: str | int) -> Part:
            return Part("text", text=value) if isinstance(value, str) else Part(media[value].kind, media=value)

        flags = train or [None] * len(messages)
        turns = [
            Message(role, tuple(map(part, parts)), flag) for (role, parts), flag in zip(messages, flags, strict=True)
        ]
        source = Source("messages", "train.jsonl", ordinal, "0")
        return Record(f"r{ordinal}", tuple(turns), tuple(media), references, None, "{}", source)

    return make
