"""What tests of several rooms share: the tiny Aria that ships with the package, and a copy of it in fp32; a tokenizer
of single characters, records written by hand, and media whose content says what it is.

No test reaches the network: the hub's client is told so before anything imports it.
"""

import gc
import json
import os
import shutil
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import av
import numpy as np
import pytest
import torch
from peft import PeftModel
from PIL import Image
from safetensors.numpy import save_file
from transformers import AriaProcessor, PreTrainedTokenizerFast

from aria_finetune.data.chat import ChatTokenizer
from aria_finetune.data_formats.record import Media, Message, Part, Record, Source
from aria_finetune.model.hub_layout import open_checkpoint
from aria_finetune.model.loading import load_processor
from aria_finetune.tiny import CHECKPOINT
from aria_finetune.tiny.architecture import tiny_tokenizer

MakeImage = Callable[..., Media]
MakeVideo = Callable[..., Media]
MakeRecord = Callable[..., Record]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", action="store_true", help="Inject every fault as often as `make soak` does.")


def pytest_collection_finish() -> None:
    """Have the collector leave alone what imports have made: trainers call it, and it took a third of a second each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def soak(pytestconfig: pytest.Config) -> bool:
    """Whether faults are injected in full numbers instead of a few."""
    return bool(pytestconfig.getoption("--soak"))


@pytest.fixture(scope="session")
def tiny_aria_processor() -> AriaProcessor:
    return load_processor(open_checkpoint("tiny"))


@pytest.fixture(scope="session")
def tiny_folder() -> Path:
    """The shipped checkpoint, bf16. Not to be written to."""
    return CHECKPOINT


@pytest.fixture(scope="session")
def fp32_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped checkpoint with every weight stored as fp32 of the same value. Not to be written to."""
    folder = tmp_path_factory.mktemp("fp32") / "aria"
    shutil.copytree(CHECKPOINT, folder)
    save_file(upcast((folder / "model.safetensors").read_bytes()), folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config).replace("bfloat16", "float32"))
    return folder


def upcast(file: bytes) -> dict[str, np.ndarray]:
    """Tensors of a bf16 safetensors file as fp32: 16 zero bits more behind every value."""
    start = 8 + int.from_bytes(file[:8], "little")
    tensors = {}
    for name, entry in json.loads(file[8:start]).items():
        if name != "__metadata__":
            assert entry["dtype"] == "BF16", name
            begin, end = entry["data_offsets"]
            halves = np.frombuffer(file[start + begin : start + end], dtype="<u2").astype(np.uint32)
            tensors[name] = (halves << 16).view(np.float32).reshape(entry["shape"])
    return tensors


@pytest.fixture(scope="session")
def pretend_trained() -> Callable[..., PeftModel]:
    """A function that fills the B matrices of an adapter, which start at zero, and moves DoRA's magnitudes, as training would."""

    def fill(model: PeftModel, *, deviation: float = 0.01, seed: int = 3) -> PeftModel:
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(std=deviation, generator=generator)
            if "lora_magnitude_vector" in name:
                parameter.data *= 1 + 0.05 * torch.randn(parameter.shape, generator=generator)
        return model

    return fill


@pytest.fixture(scope="session")
def letters() -> PreTrainedTokenizerFast:
    """Aria's control tokens, and one token for every byte: no merges, so lengths can be counted by hand."""
    return tiny_tokenizer([])


@pytest.fixture(scope="session")
def letter_chat(letters: PreTrainedTokenizerFast) -> ChatTokenizer:
    return ChatTokenizer(letters)


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


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show what tests found out that is worth reading where they passed too (`record_property("shown", text)`)."""
    for report in terminalreporter.getreports("passed"):
        for name, text in report.user_properties:
            if name == "shown":
                terminalreporter.section(report.nodeid)
                terminalreporter.write_line(str(text))
