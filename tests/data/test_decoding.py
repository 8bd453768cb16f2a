"""Decoding in a process of its own: the same tiles as in this one, and hangs and crashes that happen for real.

The decoding process is given a `sitecustomize` module, through which Pillow and PyAV do what a hostile file would
make them do: whatever the name of the file asks for.
"""

from __future__ import annotations

import copy
import ctypes
import hashlib
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from aria_finetune.data import decoding_process
from aria_finetune.data.decoding import Decoder
from aria_finetune.data.tiles import Tile, fit_tile, make_tiles
from aria_finetune.errors import MediaError, UserError
from aria_finetune.media.images import ImageLimits, open_image
from aria_finetune.media.videos import VideoLimits, choose_times, probe_video, read_frames

ROOT = Path(__file__).resolve().parents[2]
BUNDLED = ROOT / "recipes" / "data" / "tiny"
IMAGES, VIDEOS = ImageLimits(), VideoLimits()
PR_SET_CHILD_SUBREAPER = 36

HOSTILE = '''
import ctypes, os, re, signal, sys, time
import av
from PIL import Image, PngImagePlugin

class Unheard(Exception):
    """Nothing that a reader is known to raise."""

def misbehave(path):
    name = os.path.basename(str(path))
    if "sleep" in name:
        time.sleep(1e6)
    elif "spin" in name:
        re.match("(a+)+$", "a" * 64 + "b")  # in C and with the interpreter's lock for longer than anyone waits
    elif "stubborn" in name:
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        time.sleep(1e6)
    elif "abort" in name:
        os.abort()
    elif "segfault" in name:
        ctypes.string_at(0)
    elif "killed" in name:
        os.kill(os.getpid(), signal.SIGKILL)
    elif "unheard" in name:
        raise Unheard
    elif "once" in name and not os.path.exists(str(path) + ".tried"):
        open(str(path) + ".tried", "w").close()
        os.abort()

open_png, open_clip, resize = PngImagePlugin.PngImageFile._open, av.open, Image.Image.resize

def hostile_png(self):
    misbehave(self.fp.name)
    open_png(self)

def hostile_clip(path, *arguments, **options):
    misbehave(path)
    return open_clip(path, *arguments, **options)

def hungry_resize(self, *arguments, **options):
    if self.size == (41, 41):
        raise MemoryError
    return resize(self, *arguments, **options)

PngImagePlugin.PngImageFile._open, av.open, Image.Image.resize = hostile_png, hostile_clip, hungry_resize
'''


@pytest.fixture
def decoder():
    made = Decoder()
    yield made
    made.close()


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A decoder with a deadline of one second, whose process does what the names of files say."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(HOSTILE)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    made = Decoder(1.0)
    yield made
    made.close()


def picture(path: Path, size: tuple[int, int] = (40, 30)) -> Path:
    Image.new("RGB", size, "teal").save(path, format="PNG")
    return path


def show(decoder: Decoder, path: Path) -> list[Tile]:
    return decoder.image(path, 490, IMAGES, split=False).tiles


def refusal(decoder: Decoder, path: Path) -> MediaError:
    with pytest.raises(MediaError) as refused:
        show(decoder, path)
    return refused.value


def process_id(decoder: Decoder) -> int:
    assert decoder._server is not None
    return decoder._server._process.pid


def runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def assert_same(ours: list[Tile], theirs: list[Tile]) -> None:
    assert [(tile.height, tile.width) for tile in ours] == [(tile.height, tile.width) for tile in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert one.pixels.dtype == np.uint8
        np.testing.assert_array_equal(one.pixels, other.pixels)


class TestTiles:
    def test_every_bundled_picture_is_that_of_this_process_bit_for_bit(self, decoder):
        files = sorted([*BUNDLED.glob("photos/*"), *BUNDLED.glob("shapes/*")])
        assert len(files) > 100
        for path in files:
            image = open_image(path, IMAGES)
            decoded = decoder.image(path, 490, IMAGES, split=False)
            assert decoded.size == image.size
            assert_same(decoded.tiles, make_tiles(image, 490, split=False))

    @pytest.mark.parametrize(("tile", "split"), [(980, False), (490, True), (980, True)])
    def test_large_and_split_photographs_too(self, decoder, tile, split):
        for path in sorted(BUNDLED.glob("photos/*")):
            expected = make_tiles(open_image(path, IMAGES), tile, split=split)
            assert_same(decoder.image(path, tile, IMAGES, split=split).tiles, expected)

    @pytest.mark.parametrize("tile", [490, 980])
    def test_the_bundled_clip_too(self, decoder, tile):
        clip = BUNDLED / "ball.mp4"
        times = choose_times(probe_video(clip, VIDEOS).times, 8)
        expected = [fit_tile(frame, tile) for frame in read_frames(clip, times, VIDEOS)]
        assert_same(decoder.frames(clip, times, tile, VIDEOS), expected)

    def test_the_limits_are_those_that_were_asked_for(self, decoder, tmp_path):
        path = picture(tmp_path / "a.png")
        with pytest.raises(MediaError, match="media_too_large"):
            decoder.image(path, 490, ImageLimits(max_pixels=1199), split=False)
        with pytest.raises(MediaError, match="media_too_large"):
            decoder.frames(BUNDLED / "ball.mp4", [0.0], 490, VideoLimits(max_pixels=100))
        assert show(decoder, path)

    def test_a_name_that_is_no_text(self, decoder, tmp_path):
        path = picture(Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xe9.png")))
        assert_same(show(decoder, path), make_tiles(open_image(path, IMAGES), 490, split=False))


class TestPackedInParquet:
    @pytest.fixture
    def packed(self, tmp_path: Path) -> Path:
        photos = [path.read_bytes() for path in sorted(BUNDLED.glob("photos/*"))]
        rows = [[{"bytes": photo}] for photo in (*photos, b"", b"damaged")]
        parquet.write_table(pa.table({"media": rows}), tmp_path / "data.parquet", row_group_size=3)
        return tmp_path / "data.parquet"

    @pytest.mark.parametrize("split", [False, True])
    def test_the_tiles_are_those_of_the_file(self, decoder, packed, split):
        for row, path in enumerate(sorted(BUNDLED.glob("photos/*"))):
            place, sha256 = (row // 3, row % 3, 0), hashlib.sha256(path.read_bytes()).hexdigest()
            found = decoder.image(packed, 490, IMAGES, split=split, sha256=sha256, packed=place)
            expected = decoder.image(path, 490, IMAGES, split=split, sha256=sha256)
            assert found.size == expected.size
            assert_same(found.tiles, expected.tiles)

    def test_another_picture_or_none_in_its_place(self, decoder, packed):
        photos = sorted(BUNDLED.glob("photos/*"))
        second = hashlib.sha256(photos[1].read_bytes()).hexdigest()
        places = {(0, 0, 0): "media_changed", (1, 1, 0): "media_unreadable", (1, 2, 0): "media_unreadable",
                  (9, 0, 0): "media_changed"}  # fmt: skip
        for place, reason in places.items():
            with pytest.raises(MediaError) as refused:
                decoder.image(packed, 490, IMAGES, split=False, sha256=second, packed=place)
            assert refused.value.reason == reason
        assert decoder.image(packed, 490, IMAGES, split=False, sha256=second, packed=(0, 1, 0)).tiles


class TestErrors:
    @pytest.mark.parametrize(
        ("content", "reason"), [(None, "media_missing"), (b"", "media_unreadable"), (b"damaged", "media_unreadable")]
    )
    def test_a_bad_file_says_what_it_says_in_this_process(self, decoder, tmp_path, content, reason):
        path = tmp_path / "a.png"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(MediaError) as here:
            open_image(path, IMAGES)
        there = refusal(decoder, path)
        assert (there.reason, there.detail) == (here.value.reason, here.value.detail)
        assert there.reason == reason
        before = process_id(decoder)
        assert show(decoder, picture(tmp_path / "b.png"))
        assert process_id(decoder) == before, "a bad file is no reason to start again"

    def test_a_file_that_became_a_link(self, decoder, tmp_path):
        path, elsewhere = picture(tmp_path / "a.png"), picture(tmp_path / "elsewhere.png")
        assert show(decoder, path)
        path.unlink()
        path.symlink_to(elsewhere)
        assert refusal(decoder, path).reason == "media_unsafe_path"
        path.unlink()
        path.symlink_to(tmp_path / "nowhere")
        assert refusal(decoder, path).reason == "media_unsafe_path"

    def test_a_folder_that_became_a_link(self, decoder, tmp_path):
        for name in ("media", "elsewhere"):
            (tmp_path / name).mkdir()
            picture(tmp_path / name / "a.png")
        assert show(decoder, tmp_path / "media" / "a.png")
        shutil.rmtree(tmp_path / "media")
        (tmp_path / "media").symlink_to(tmp_path / "elsewhere")
        assert refusal(decoder, tmp_path / "media" / "a.png").reason == "media_unsafe_path"

    def test_a_clip_that_became_a_link(self, decoder, tmp_path):
        (tmp_path / "clip.mp4").symlink_to(BUNDLED / "ball.mp4")
        with pytest.raises(MediaError, match="media_unsafe_path"):
            decoder.frames(tmp_path / "clip.mp4", [0.0], 490, VIDEOS)

    def test_too_little_memory_for_one_picture(self, hostile, tmp_path):
        error = refusal(hostile, picture(tmp_path / "a.png", (41, 41)))
        assert error.reason == "media_unreadable"
        assert "memory" in error.detail
        assert show(hostile, picture(tmp_path / "b.png", (42, 42)))


class TestHashes:
    def test_a_picture_replaced_by_another_of_its_size(self, decoder, tmp_path):
        path = picture(tmp_path / "a.png")
        known = hashlib.sha256(path.read_bytes()).hexdigest()
        assert decoder.image(path, 490, IMAGES, split=False, sha256=known).size == (40, 30)
        Image.new("RGB", (40, 30), "tomato").save(path)
        for _ in range(2):
            with pytest.raises(MediaError, match="media_changed: no longer the file that was converted"):
                decoder.image(path, 490, IMAGES, split=False, sha256=known)
        picture(path)
        assert decoder.image(path, 490, IMAGES, split=False, sha256=known).size == (40, 30)

    def test_a_clip_replaced_by_another_with_the_same_frames(self, decoder, tmp_path):
        clip = tmp_path / "clip.mp4"
        shutil.copy(BUNDLED / "ball.mp4", clip)
        known = hashlib.sha256(clip.read_bytes()).hexdigest()
        assert len(decoder.frames(clip, [0.0], 490, VIDEOS, sha256=known)) == 1
        with clip.open("ab") as stream:
            stream.write(b"\0\0\0\x08free")
        with pytest.raises(MediaError, match="media_changed"):
            decoder.frames(clip, [0.0], 490, VIDEOS, sha256=known)
        assert len(decoder.frames(clip, [0.0], 490, VIDEOS)) == 1, "it still decodes"

    def test_a_broken_file_is_told_as_broken(self, decoder, tmp_path):
        (tmp_path / "a.png").write_bytes(b"damaged")
        with pytest.raises(MediaError, match="media_unreadable"):
            decoder.image(tmp_path / "a.png", 490, IMAGES, split=False, sha256="0" * 64)

    def test_a_file_is_read_again_only_after_a_change_and_a_large_one_never(self, tmp_path, monkeypatch):
        read: list[Path] = []
        monkeypatch.setattr(decoding_process, "hash_file", lambda path: read.append(path) or "right")
        path = picture(tmp_path / "a.png")
        for _ in range(3):
            decoding_process._require_bytes(path, "right")
        assert read == [path]
        os.utime(path, (1, 1))
        with pytest.raises(MediaError, match="media_changed"):
            decoding_process._require_bytes(path, "another")
        assert read == [path, path]
        monkeypatch.setattr(decoding_process, "HASHED_BYTES", path.stat().st_size - 1)
        decoding_process._require_bytes(path, "another")
        assert read == [path, path]


class TestHangs:
    @pytest.mark.parametrize("word", ["sleep", "spin", "stubborn"])
    def test_a_picture_is_given_up_at_the_deadline(self, hostile, tmp_path, word, monkeypatch):
        monkeypatch.setattr("aria_finetune.media.isolation.GRACE_SECONDS", 0.5)
        good = picture(tmp_path / "good.png")
        show(hostile, good)
        before, began = process_id(hostile), time.monotonic()
        error = refusal(hostile, picture(tmp_path / f"{word}.png"))
        assert 0.9 < time.monotonic() - began < 5
        assert error.reason == "media_unreadable"
        assert error.detail == "decoding took longer than 1 s and was stopped"
        assert not runs(before)
        assert_same(show(hostile, good), make_tiles(open_image(good, IMAGES), 490, split=False))
        assert process_id(hostile) != before

    def test_a_video_is_given_up_at_the_deadline(self, hostile, tmp_path):
        shutil.copy(BUNDLED / "ball.mp4", tmp_path / "sleep.mp4")
        with pytest.raises(MediaError, match="longer than 1 s"):
            hostile.frames(tmp_path / "sleep.mp4", [0.0], 490, VIDEOS)
        assert len(hostile.frames(BUNDLED / "ball.mp4", [0.0], 490, VIDEOS)) == 1

    def test_the_time_of_one_medium_does_not_count_for_the_next(self, hostile, tmp_path):
        path = picture(tmp_path / "a.png")
        for _ in range(2):
            show(hostile, path)
            time.sleep(0.6)
        before = process_id(hostile)
        show(hostile, path)
        assert process_id(hostile) == before

    @pytest.mark.usefixtures("hostile")
    def test_a_caller_that_is_interrupted_gets_no_stale_answer(self, tmp_path):
        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        slow = Decoder(30.0)
        show(slow, picture(tmp_path / "red.png"))
        before = signal.signal(signal.SIGALRM, interrupt)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.3)
            with pytest.raises(KeyboardInterrupt):
                show(slow, picture(tmp_path / "sleep.png"))
        finally:
            signal.signal(signal.SIGALRM, before)
        other = picture(tmp_path / "other.png", (300, 20))
        assert_same(show(slow, other), make_tiles(open_image(other, IMAGES), 490, split=False))
        slow.close()


class TestCrashes:
    @pytest.mark.parametrize(
        ("word", "told"),
        [("abort", "SIGABRT"), ("segfault", "SIGSEGV"), ("killed", "SIGKILL"), ("unheard", "exit code 1")],
    )
    def test_a_crash_is_told_from_a_time_out(self, hostile, tmp_path, word, told):
        error = refusal(hostile, picture(tmp_path / f"{word}.png"))
        assert error.reason == "media_unreadable"
        assert error.detail.startswith(f"the decoder crashed ({told}")
        assert show(hostile, picture(tmp_path / "good.png"))
        assert not list(tmp_path.glob("core*"))

    def test_a_medium_is_not_blamed_for_one_crash(self, hostile, tmp_path):
        path = picture(tmp_path / "once.png")
        assert_same(show(hostile, path), make_tiles(open_image(path, IMAGES), 490, split=False))
        assert (tmp_path / "once.png.tried").exists()

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
    def test_one_that_was_ended_while_idle_is_started_again(self, decoder, tmp_path, number):
        path = picture(tmp_path / "a.png")
        show(decoder, path)
        before = process_id(decoder)
        os.kill(before, number)
        assert show(decoder, path)
        assert process_id(decoder) != before

    def test_ctrl_c_is_not_for_the_decoder(self, decoder, tmp_path):
        path = picture(tmp_path / "a.png")
        show(decoder, path)
        before = process_id(decoder)
        assert os.getsid(before) == before, "the terminal's signals would reach it"
        os.kill(before, signal.SIGINT)
        assert show(decoder, path)
        assert process_id(decoder) == before


class TestProcess:
    def test_it_loads_nothing_heavy(self):
        code = f"import sys, {Decoder.SERVER}; print(*sys.modules)"
        loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
        heavy = {"torch", "transformers", "trl", "peft", "datasets", "pydantic", "yaml", "matplotlib", "hypothesis"}
        assert {"av", "PIL", "numpy"} <= set(loaded.stdout.split())
        assert heavy.isdisjoint(loaded.stdout.split())

    def test_it_starts_with_the_first_medium_and_ends_when_closed(self, tmp_path):
        decoder = Decoder()
        assert decoder._server is None
        show(decoder, picture(tmp_path / "a.png"))
        process = process_id(decoder)
        decoder.close()
        decoder.close()
        assert not runs(process)

    def test_it_ends_when_nobody_refers_to_it(self, tmp_path):
        decoder = Decoder()
        show(decoder, picture(tmp_path / "a.png"))
        process = process_id(decoder)
        del decoder
        assert not runs(process)

    def test_a_copy_has_its_own(self, decoder, tmp_path):
        path = picture(tmp_path / "a.png")
        decoder.seconds = 7.0
        show(decoder, path)
        other = copy.deepcopy(decoder)
        assert other.seconds == 7.0
        assert_same(show(other, path), show(decoder, path))
        assert process_id(other) != process_id(decoder)
        other.close()
        assert show(decoder, path)

    def test_a_fork_has_its_own(self, decoder, tmp_path):
        path = picture(tmp_path / "a.png")
        show(decoder, path)
        before = process_id(decoder)
        ours, theirs = multiprocessing.Pipe()

        def child() -> None:
            tiles = show(decoder, path)
            theirs.send((process_id(decoder), tiles[0].pixels))

        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
        assert ours.poll(30)
        other, pixels = ours.recv()
        process.join()
        assert process.exitcode == 0
        assert other != before
        tiles = show(decoder, path)
        np.testing.assert_array_equal(tiles[0].pixels, pixels)
        assert process_id(decoder) == before, "the fork took ours along"

    def test_one_that_does_not_start_is_no_fault_of_the_medium(self, monkeypatch, tmp_path):
        path = picture(tmp_path / "a.png")
        monkeypatch.setattr(sys, "executable", "/bin/false")
        with pytest.raises(UserError, match=r"did not start \(exit code 1\)"):
            show(Decoder(), path)
        monkeypatch.setattr(sys, "executable", str(tmp_path / "nothing"))
        with pytest.raises(UserError, match="No such file") as refused:
            show(Decoder(), path)
        assert refused.value.fix

    def test_it_finds_the_package_from_any_folder(self, decoder, tmp_path, monkeypatch):
        """And takes no module from the folder it is started in, where the user's own files lie."""
        (tmp_path / "numpy.py").write_text("raise SystemExit(3)")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
        assert show(decoder, picture(tmp_path / "a.png"))


OWNER = """
import os, sys, time
from pathlib import Path
from aria_finetune.data import decoding_process
from aria_finetune.data.decoding import Decoder
from aria_finetune.media.images import ImageLimits

def show(name):
    decoder.image(Path(name), 490, ImageLimits(), split=False)

decoder = Decoder(2.0)
show(sys.argv[1])
print(decoder._server._process.pid, flush=True)
if sys.argv[2] == "forked" and os.fork() == 0:
    print(os.getpid(), flush=True)
    time.sleep(60)
elif sys.argv[2] == "decoding":
    print("asking", flush=True)
    show(sys.argv[3])
elif sys.argv[2] != "exits":
    time.sleep(60)
"""


@pytest.mark.usefixtures("hostile")
@pytest.mark.skipif(sys.platform != "linux", reason="orphans come to us only where a process can ask for them")
class TestOrphans:
    @pytest.fixture(autouse=True)
    def _adopted(self):
        """Orphans of our children become ours, so that we see how they end."""
        prctl = ctypes.CDLL(None).prctl
        assert prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
        yield
        prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)

    def start(self, tmp_path: Path, case: str) -> subprocess.Popen[str]:
        good, bad = picture(tmp_path / "good.png"), picture(tmp_path / "spin.png")
        return subprocess.Popen(
            [sys.executable, "-c", OWNER, str(good), case, str(bad)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), str(ROOT)])},
            stdout=subprocess.PIPE,
            text=True,
        )

    def exit_code(self, process: int, within: float) -> int:
        until = time.monotonic() + within
        while time.monotonic() < until:
            ended, status = os.waitpid(process, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.02)
        pytest.fail(f"process {process} outlived its owner by {within} s")

    def test_none_is_left_at_a_normal_exit(self, tmp_path):
        with self.start(tmp_path, "exits") as owner:
            process = int(owner.stdout.readline())
            assert owner.wait(30) == 0
        assert not runs(process)

    @pytest.mark.parametrize(
        ("case", "within", "code"), [("idle", 1.5, 0), ("forked", 1.5, 0), ("decoding", 4.0, -signal.SIGALRM)]
    )
    def test_none_is_left_when_the_owner_is_killed(self, tmp_path, case, within, code):
        """Idle, or with a fork of the owner alive, it ends at once; inside a decoder, at the deadline of 2 s."""
        owner = self.start(tmp_path, case)
        process = int(owner.stdout.readline())
        fork = int(owner.stdout.readline()) if case == "forked" else None
        if case == "decoding":
            owner.stdout.readline()
            time.sleep(0.2)
        owner.kill()
        owner.wait()
        try:
            assert self.exit_code(process, within) == code
        finally:
            owner.stdout.close()
            if fork is not None:
                os.kill(fork, signal.SIGKILL)
                os.waitpid(fork, 0)
