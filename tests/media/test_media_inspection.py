"""Media are looked into with the same result as in this process, and one that hangs or crashes a reader loses only itself.

The process is given a `sitecustomize` module, through which Pillow, PyAV and the reader of documents do what a
hostile file would make them do: whatever the name of the file, or the first bytes of it, asks for.
"""

from __future__ import annotations

import io
import os
import pickle  # noqa: TID251 (what a loader does to send objects to its workers)
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from aria_finetune.errors import MediaError
from aria_finetune.media import inspection
from aria_finetune.media.documents import DocumentLimits, document_text, probe_document
from aria_finetune.media.images import ImageLimits, probe_image
from aria_finetune.media.inspection import Inspector
from aria_finetune.media.videos import VideoLimits, probe_video

ROOT = Path(__file__).resolve().parents[2]
BUNDLED = ROOT / "recipes" / "data" / "tiny"
IMAGES, VIDEOS, DOCUMENTS = ImageLimits(), VideoLimits(), DocumentLimits()

HOSTILE = '''
import ctypes, os, re, signal, sys, time
import av
from PIL import PngImagePlugin, TiffImagePlugin
from aria_finetune.media import paths

class Unheard(Exception):
    """Nothing that a reader is known to raise."""

def misbehave(path):
    name = os.path.basename(str(path))
    if name.startswith("aria-finetune-"):
        name = open(path, "rb").read(100).decode("latin-1")
    if "sleep" in name:
        time.sleep(1e6)
    elif "spin" in name:
        re.match("(a+)+$", "a" * 64 + "b")  # in C and with the interpreter's lock for longer than anyone waits
    elif "stubborn" in name:
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        time.sleep(1e6)
    elif "stop" in name:
        os.kill(os.getpid(), signal.SIGSTOP)
    elif "abort" in name:
        os.abort()
    elif "segfault" in name:
        ctypes.string_at(0)
    elif "killed" in name:
        os.kill(os.getpid(), signal.SIGKILL)
    elif "unheard" in name:
        raise Unheard
    elif "exit" in name:
        sys.exit()
    elif "hungry" in name:
        raise MemoryError

class Slow:
    """A clip whose every packet takes its time, or which never comes to an end."""

    def __init__(self, container, name):
        self.container, self.name = container, name

    def __getattr__(self, name):
        return getattr(self.container, name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.container.close()

    def demux(self, *streams):
        for packet in self.container.demux(*streams):
            if "slow" in self.name:
                time.sleep(0.15)
            if "halfway" in self.name and packet.pts and packet.pts * packet.time_base > 0.4:
                time.sleep(1e6)
            yield packet

open_png, open_tiff, open_clip = PngImagePlugin.PngImageFile._open, TiffImagePlugin.TiffImageFile._open, av.open

def hostile_png(self):
    misbehave(getattr(self.fp, "name", "bytes"))
    open_png(self)

def hostile_tiff(self):
    misbehave(getattr(self.fp, "name", "bytes"))
    open_tiff(self)

def hostile_clip(path, *arguments, **options):
    misbehave(path)
    container = open_clip(path, *arguments, **options)
    return Slow(container, path) if "slow" in path or "halfway" in path else container

def hostile_file(path, require=paths.require_regular_file):
    if str(path).endswith(".pdf"):
        misbehave(path)
    require(path)

PngImagePlugin.PngImageFile._open, TiffImagePlugin.TiffImageFile._open = hostile_png, hostile_tiff
av.open, paths.require_regular_file = hostile_clip, hostile_file
'''


@pytest.fixture
def inspector() -> Iterator[Inspector]:
    made = Inspector()
    yield made
    made.close()


@pytest.fixture(scope="module")
def hostile_modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    (folder / "sitecustomize.py").write_text(HOSTILE)
    return folder


@pytest.fixture(scope="module")
def impatient() -> Iterator[Inspector]:
    """An inspector with a deadline of one second, the same for all tests: to start a process takes as long."""
    made = Inspector(1.0)
    yield made
    made.close()


@pytest.fixture
def hostile(impatient: Inspector, hostile_modules: Path, monkeypatch: pytest.MonkeyPatch) -> Inspector:
    """One whose process does what the names of files say."""
    monkeypatch.syspath_prepend(str(hostile_modules))
    monkeypatch.setattr("aria_finetune.media.isolation.GRACE_SECONDS", 0.3)
    return impatient


def picture(size: tuple[int, int] = (40, 30), kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, "teal").save(buffer, kind, **options)
    return buffer.getvalue()


def document(pages: int = 2) -> bytes:
    buffer = io.BytesIO()
    first, *others = [Image.new("RGB", (72 + page, 36)) for page in range(pages)]
    first.save(buffer, "PDF", save_all=True, append_images=others)
    return buffer.getvalue()


TEXT = b"""%PDF-1.4
1 0 obj << /Type /Catalog /Pages 2 0 R >> endobj
2 0 obj << /Type /Pages /Kids [3 0 R] /Count 1 >> endobj
3 0 obj << /Type /Page /Parent 2 0 R /MediaBox [0 0 99 99] /Contents 4 0 R /Resources << /Font << /F 5 0 R >> >> >> endobj
4 0 obj << /Length 32 >> stream
BT /F 9 Tf 9 9 Td (Hello) Tj ET
endstream endobj
5 0 obj << /Type /Font /Subtype /Type1 /BaseFont /Helvetica >> endobj
trailer << /Root 1 0 R >>
%%EOF
"""


def clip(path: Path, frames: int = 10) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10, options={"g": "1"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        noise = np.random.default_rng(0)
        for _ in range(frames):
            pixels = noise.integers(0, 255, (48, 64, 3), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def look(inspector: Inspector, path: Path) -> object:
    if path.suffix == ".mp4":
        return inspector.video(path, VIDEOS)
    if path.suffix == ".pdf":
        return inspector.document(path, DOCUMENTS)
    return inspector.image(path, IMAGES)


def refusal(inspector: Inspector, path: Path) -> MediaError:
    with pytest.raises(MediaError) as refused:
        look(inspector, path)
    return refused.value


def process_id(inspector: Inspector) -> int:
    assert inspector._server is not None
    return inspector._server._process.pid


def temporary_files() -> set[str]:
    return {path.name for path in Path(tempfile.gettempdir()).glob("aria-finetune-*")}


@pytest.fixture
def questions(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kinds of media that the process was asked about."""
    asked: list[str] = []
    ask = Inspector._ask

    def counted(self: Inspector, request: dict[str, object], content: bytes | None = None) -> object:
        asked.append(str(request["kind"]))
        return ask(self, request, content)

    monkeypatch.setattr(Inspector, "_ask", counted)
    return asked


class TestResults:
    def test_every_bundled_picture(self, inspector, questions):
        files = sorted([*BUNDLED.glob("photos/*"), *BUNDLED.glob("shapes/*")])
        assert len(files) > 100
        for path in files:
            expected = probe_image(path, IMAGES)
            assert inspector.image(path, IMAGES) == expected
            assert inspector.image(path.read_bytes(), IMAGES) == expected
        assert not questions, "headers of plain pictures need no process"
        for path in files[:10]:
            assert inspector.image(path, IMAGES, decode=True) == probe_image(path, IMAGES)

    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "PPM", "WEBP", "TIFF", "JPEG2000", "AVIF", "MPO"])
    @pytest.mark.parametrize("decode", [False, True])
    def test_every_kind_of_picture(self, inspector, tmp_path, kind, decode):
        content = picture((48, 36), kind)
        path = tmp_path / "picture"
        path.write_bytes(content)
        expected = probe_image(content, IMAGES)
        assert expected.width == 48
        assert inspector.image(path, IMAGES, decode=decode) == expected
        assert inspector.image(content, IMAGES, decode=decode) == expected

    @pytest.mark.parametrize("decode", [False, True])
    def test_a_clip(self, inspector, decode):
        path = BUNDLED / "ball.mp4"
        expected = probe_video(path, VIDEOS)
        assert expected.frames > 10
        assert inspector.video(path, VIDEOS, decode=decode) == expected
        assert inspector.video(path.read_bytes(), VIDEOS, decode=decode) == expected

    def test_a_clip_with_notes_and_a_turn(self, inspector, tmp_path):
        path = clip(tmp_path / "turned.mp4")
        data = bytearray(path.read_bytes())
        place = data.index(bytes.fromhex("00010000000000000000000000000000000100000000"), data.index(b"tkhd"))
        data[place : place + 36] = np.array([0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30], ">i4").tobytes()
        path.write_bytes(data)
        expected = probe_video(path, VIDEOS)
        assert (expected.width, expected.height) == (48, 64)
        assert inspector.video(path, VIDEOS) == expected

    @pytest.mark.parametrize("decode", [False, True])
    @pytest.mark.parametrize("page", [None, 1, 3])
    def test_a_document(self, inspector, tmp_path, decode, page):
        path = tmp_path / "pages.pdf"
        path.write_bytes(document(3))
        expected = probe_document(path)
        assert expected.pages == 3
        assert inspector.document(path, DOCUMENTS, page=page, decode=decode) == expected
        assert inspector.document(path.read_bytes(), DOCUMENTS, page=page, decode=decode) == expected

    def test_the_text_of_a_document(self, inspector, tmp_path):
        path = tmp_path / "text.pdf"
        path.write_bytes(TEXT)
        assert inspector.document_text(path, DOCUMENTS) == document_text(path) == "Hello"

    @pytest.mark.parametrize("page", [0, 3, -1])
    def test_a_page_that_is_not_there(self, inspector, page):
        with pytest.raises(MediaError, match=f"media_missing: there is no page {page} in a document of 2"):
            inspector.document(document(2), DOCUMENTS, page=page)

    def test_a_relative_path_after_the_folder_was_changed(self, inspector, tmp_path, monkeypatch):
        inspector.image(picture(kind="TIFF"), IMAGES)
        (tmp_path / "here.tif").write_bytes(picture(kind="TIFF"))
        monkeypatch.chdir(tmp_path)
        assert inspector.image(Path("here.tif"), IMAGES).width == 40

    def test_a_name_that_is_no_text(self, inspector, tmp_path):
        path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xe9.tif"))
        path.write_bytes(picture(kind="TIFF"))
        assert inspector.image(path, IMAGES).width == 40

    def test_bytes_larger_than_a_pipe(self, inspector):
        noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (1500, 2000, 3), np.uint8))
        buffer = io.BytesIO()
        noise.save(buffer, "TIFF")
        assert len(buffer.getvalue()) > 8_000_000
        assert inspector.image(buffer.getvalue(), IMAGES, decode=True).width == 2000

    def test_the_limits_are_those_that_were_asked_for(self, inspector):
        for content in (picture(), picture(kind="TIFF")):
            for decode in (False, True):
                assert inspector.image(content, ImageLimits(max_pixels=1200), decode=decode).width == 40
                with pytest.raises(MediaError, match="media_too_large"):
                    inspector.image(content, ImageLimits(max_pixels=1199), decode=decode)
                with pytest.raises(MediaError, match="media_too_small"):
                    inspector.image(content, ImageLimits(min_side=31), decode=decode)
        with pytest.raises(MediaError, match="media_too_large"):
            inspector.video(BUNDLED / "ball.mp4", VideoLimits(max_pixels=100))
        with pytest.raises(MediaError, match="media_too_large"):
            inspector.document(document(3), DocumentLimits(max_pages=2))


class TestRefusals:
    @pytest.mark.parametrize("suffix", [".png", ".mp4", ".pdf"])
    @pytest.mark.parametrize(
        "content", [None, b"", b"damaged", b"\x89PNG\r\n\x1a\nbroken", b"<html></html>", b"%PDF-1.7\n"]
    )
    def test_a_bad_file_says_what_it_says_in_this_process(self, inspector, tmp_path, suffix, content):
        path = tmp_path / f"bad{suffix}"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(MediaError) as here:
            {".png": probe_image, ".mp4": probe_video, ".pdf": probe_document}[suffix](
                path, {".png": IMAGES, ".mp4": VIDEOS, ".pdf": DOCUMENTS}[suffix]
            )
        there = refusal(inspector, path)
        assert (there.reason, there.detail) == (here.value.reason, here.value.detail)

    def test_pipes_and_folders_are_not_opened(self, inspector, tmp_path):
        for name in ("pipe.png", "pipe.mp4", "pipe.pdf"):
            os.mkfifo(tmp_path / name)
            assert "regular" in refusal(inspector, tmp_path / name).detail
        (tmp_path / "folder.png").mkdir()
        assert "folder" in refusal(inspector, tmp_path / "folder.png").detail

    def test_no_process_is_needed_to_refuse_what_is_no_picture(self, inspector, tmp_path, questions):
        (tmp_path / "text.png").write_text("not found")
        assert "text file" in refusal(inspector, tmp_path / "text.png").detail
        assert refusal(inspector, tmp_path / "nothing.png").reason == "media_missing"
        assert not questions

    def test_what_a_header_does_not_show_is_found_by_decoding(self, inspector):
        noise = np.random.default_rng(0).integers(0, 255, (100, 100, 3), np.uint8)
        for kind in ("PNG", "JPEG", "GIF", "BMP"):
            buffer = io.BytesIO()
            Image.fromarray(noise).save(buffer, kind)
            cut = buffer.getvalue()[: len(buffer.getvalue()) // 2]
            assert inspector.image(cut, IMAGES).width == 100
            with pytest.raises(MediaError, match="media_unreadable"):
                inspector.image(cut, IMAGES, decode=True)

    def test_a_clip_is_decoded_to_its_last_frame(self, inspector, tmp_path):
        path = clip(tmp_path / "clip.mp4")
        with av.open(str(path)) as container:
            last = [packet for packet in container.demux(video=0) if packet.size][-1]
            place, size = last.pos, last.size
        data = bytearray(path.read_bytes())
        data[place : place + size] = bytes(size)
        path.write_bytes(data)
        assert inspector.video(path, VIDEOS).frames == 10
        with pytest.raises(MediaError, match=r"media_unreadable: .* 0\.900 s"):
            inspector.video(path, VIDEOS, decode=True)


SAYS = {
    "sleep": "a step of looking into it took longer than 1 s and was stopped",
    "spin": "a step of looking into it took longer than 1 s and was stopped",
    "stubborn": "a step of looking into it took longer than 1 s and was stopped",
    "stop": "a step of looking into it took longer than 1 s and was stopped",
    "abort": "the process looking into it crashed (SIGABRT)",
    "segfault": "the process looking into it crashed (SIGSEGV)",
    "killed": "the process looking into it crashed (SIGKILL; perhaps memory ran out)",
    "unheard": "the process looking into it crashed (exit code 1)",
    "exit": "the process looking into it crashed (exit code 0)",
    "hungry": "there is not enough memory to look into it",
}
CONTENTS = {".tif": lambda: picture(kind="TIFF"), ".mp4": (BUNDLED / "ball.mp4").read_bytes, ".pdf": document}


class TestHostile:
    @pytest.mark.parametrize("suffix", CONTENTS)
    @pytest.mark.parametrize("word", SAYS)
    def test_a_hostile_file_loses_only_itself(self, hostile, tmp_path, word, suffix):
        sound, bad = tmp_path / f"sound{suffix}", tmp_path / f"{word}{suffix}"
        sound.write_bytes(CONTENTS[suffix]())
        shutil.copy(sound, bad)
        expected = look(hostile, sound)
        before, began = process_id(hostile), time.monotonic()
        error = refusal(hostile, bad)
        seconds = time.monotonic() - began
        if suffix == ".tif" and word == "hungry":
            # Pillow's readers run out of memory over damaged files too.
            assert error.detail.startswith("damaged TIFF image")
        else:
            assert error.detail == SAYS[word]
        assert error.reason == "media_unreadable"
        assert seconds < 6
        if word != "hungry":
            with pytest.raises(ProcessLookupError):
                os.kill(before, 0)
        other = tmp_path / f"other{suffix}"
        shutil.copy(sound, other)
        assert look(hostile, other) == expected

    def test_a_picture_is_decoded_in_the_process_too(self, hostile, tmp_path):
        path = tmp_path / "abort.png"
        path.write_bytes(picture())
        assert hostile.image(path, IMAGES).width == 40, "its header is read without Pillow"
        with pytest.raises(MediaError, match="SIGABRT"):
            hostile.image(path, IMAGES, decode=True)

    @pytest.mark.parametrize("word", ["sleep", "abort"])
    def test_a_clip_in_bytes_leaves_no_file(self, hostile, word):
        before = temporary_files()
        with pytest.raises(MediaError, match=re.escape(SAYS[word])):
            hostile.video(word.encode() + bytes(200), VIDEOS)
        assert temporary_files() == before

    def test_a_long_look_is_no_hang_while_it_goes_on(self, hostile, tmp_path):
        path = clip(tmp_path / "slow.mp4")
        began = time.monotonic()
        assert hostile.video(path, VIDEOS).frames == 10
        assert time.monotonic() - began > 1.5
        assert hostile.video(path, VIDEOS, decode=True).frames == 10

    def test_a_hang_in_the_middle_of_a_clip(self, hostile, tmp_path):
        assert "longer than 1 s" in refusal(hostile, clip(tmp_path / "halfway.mp4")).detail

    def test_none_is_left(self, hostile, tmp_path):
        for word in ("sleep", "stubborn", "stop", "abort"):
            (tmp_path / f"{word}.tif").write_bytes(picture(kind="TIFF"))
            refusal(hostile, tmp_path / f"{word}.tif")
        hostile.close()
        assert processes() == []


def processes() -> list[int]:
    """Processes that look into media and that we started; ended ones that nobody has asked about count as well."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(status.read_text().rpartition(")")[2].split()[1])
            command = status.with_name("cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if parent == os.getpid() and (b"inspection_process" in command or not command):
            found.append(int(status.parent.name))
    return found


class TestMemory:
    def test_a_clip_is_read_once(self, inspector, tmp_path, questions):
        path = clip(tmp_path / "clip.mp4")
        first = inspector.video(path, VIDEOS)
        assert all(inspector.video(path, VIDEOS) == first for _ in range(5))
        assert questions == ["video"]

    def test_what_was_asked_matters(self, inspector, tmp_path, questions):
        path = clip(tmp_path / "clip.mp4")
        inspector.video(path, VIDEOS)
        inspector.video(path, VIDEOS, decode=True)
        with pytest.raises(MediaError, match="media_too_large"):
            inspector.video(path, VideoLimits(max_pixels=100))
        assert len(questions) == 3

    def test_a_file_that_changed_is_read_again(self, inspector, tmp_path):
        path = clip(tmp_path / "clip.mp4")
        assert inspector.video(path, VIDEOS).frames == 10
        clip(path, 7)
        assert inspector.video(path, VIDEOS).frames == 7
        path.write_bytes(b"")
        assert refusal(inspector, path).reason == "media_unreadable"
        path.unlink()
        assert refusal(inspector, path).reason == "media_missing"
        clip(path, 5)
        assert inspector.video(path, VIDEOS).frames == 5

    def test_a_hang_is_waited_for_once(self, hostile, tmp_path, questions):
        shutil.copy(BUNDLED / "ball.mp4", tmp_path / "sleep.mp4")
        began = time.monotonic()
        details = {refusal(hostile, tmp_path / "sleep.mp4").detail for _ in range(20)}
        assert time.monotonic() - began < 4
        assert details == {SAYS["sleep"]}
        assert questions == ["video"]

    def test_no_more_is_kept_than_there_is_room_for(self, inspector, tmp_path, questions, monkeypatch):
        monkeypatch.setattr(inspection, "REMEMBERED_BYTES", 3 * inspection._ENTRY_BYTES)
        files = []
        for number in range(4):
            files.append(tmp_path / f"{number}.tif")
            files[-1].write_bytes(picture(kind="TIFF"))
        for number in (0, 1, 2, 0, 3, 0, 2, 1):
            inspector.image(files[number], IMAGES)
        assert len(questions) == 5, "1 was forgotten for 3, as it had not been asked about for the longest time"
        monkeypatch.setattr(inspection, "REMEMBERED_BYTES", 10)
        path = clip(tmp_path / "clip.mp4")
        assert inspector.video(path, VIDEOS) == inspector.video(path, VIDEOS)
        assert not inspector._memory._answers

    def test_a_pickled_one_remembers_nothing_and_works(self, inspector, tmp_path):
        path = clip(tmp_path / "clip.mp4")
        expected = inspector.video(path, VIDEOS)
        other = pickle.loads(pickle.dumps(inspector))  # noqa: S301 (our own)
        assert other._server is None
        assert other.video(path, VIDEOS) == expected
        other.close()


class TestProcess:
    def test_it_loads_nothing_heavy(self):
        code = f"import sys, {Inspector.SERVER}; print(*sys.modules)"
        loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
        heavy = {"torch", "transformers", "datasets", "pydantic", "yaml", "pyarrow", "pypdfium2", "matplotlib"}
        assert {"av", "PIL", "numpy"} <= set(loaded.stdout.split())
        assert heavy.isdisjoint(loaded.stdout.split())

    def test_one_that_was_killed_while_idle_is_started_again(self, inspector):
        inspector.image(picture(kind="TIFF"), IMAGES)
        os.kill(process_id(inspector), signal.SIGKILL)
        assert inspector.image(picture(kind="TIFF"), IMAGES).width == 40
