"""Media of a draft are found below the roots and looked at as far as was asked, files, bytes and documents alike."""

from __future__ import annotations

import base64
import io
import multiprocessing
import os
import pickle  # noqa: TID251 (what a conversion does to send objects to its workers)
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from aria_finetune.conversion.media_check import CheckedMedia, MediaChecker
from aria_finetune.data_formats.record import MediaReference
from aria_finetune.errors import MediaError
from aria_finetune.media.inspection import Inspector
from aria_finetune.media.videos import VideoLimits, probe_video

BUNDLED = Path(__file__).resolve().parents[2] / "recipes" / "data" / "tiny"
CLIP = BUNDLED / "ball.mp4"
MAX_PIXELS = 64_000_000


def picture(size: tuple[int, int] = (40, 30), kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, "teal").save(buffer, kind)
    return buffer.getvalue()


def document() -> bytes:
    buffer = io.BytesIO()
    pages = [Image.new("RGB", size) for size in ((200, 100), (72, 144))]
    pages[0].save(buffer, "PDF", save_all=True, append_images=pages[1:], resolution=100)
    return buffer.getvalue()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    root.mkdir()
    (root / "a.png").write_bytes(picture())
    (root / "empty.png").write_bytes(b"")
    (root / "text.png").write_text("no picture")
    (root / "cut.png").write_bytes(picture((400, 300))[:120])
    (root / "pages.pdf").write_bytes(document())
    shutil.copy(CLIP, root / "clip.mp4")
    return root


@pytest.fixture
def inspector() -> Iterator[Inspector]:
    made = Inspector()
    yield made
    made.close()


def check(root: Path, medium: MediaReference, verify: str = "header", **more: object) -> CheckedMedia:
    return MediaChecker([root], verify, MAX_PIXELS, **more).check(medium)


def refusal(root: Path, medium: MediaReference, verify: str = "header", **more: object) -> MediaError:
    with pytest.raises(MediaError) as refused:
        check(root, medium, verify, **more)
    return refused.value


def data_uri(content: bytes) -> str:
    return "data:;base64," + base64.b64encode(content).decode()


@pytest.mark.parametrize("verify", ["header", "decode"])
def test_every_kind_is_measured(root: Path, inspector: Inspector, verify: str) -> None:
    checker = MediaChecker([root], verify, MAX_PIXELS, inspector)
    video = probe_video(CLIP, VideoLimits())
    for content in (None, "bytes", "uri"):
        for kind, name, expected in (
            ("image", "a.png", ("image/png", 40, 30, 1, None)),
            ("video", "clip.mp4", (video.mime, video.width, video.height, video.frames, video.duration)),
            ("document", "pages.pdf", ("application/pdf", 144, 72, 2, None)),
        ):
            data = (root / name).read_bytes()
            reference = data_uri(data) if content == "uri" else name
            seen = checker.check(MediaReference(kind, reference, content=data if content == "bytes" else None))
            assert (seen.mime, seen.width, seen.height, seen.frames, seen.duration) == expected
            assert seen.content == (data if content else root / name)


def test_a_page_of_a_document(root: Path, inspector: Inspector) -> None:
    checker = MediaChecker([root], "header", MAX_PIXELS, inspector)
    sizes = [checker.check(MediaReference("document", "pages.pdf", page=page)) for page in (1, 2)]
    assert [(seen.width, seen.height) for seen in sizes] == [(144, 72), (52, 104)]
    error = refusal(root, MediaReference("document", "pages.pdf", page=3), inspector=inspector)
    assert (error.reason, error.detail) == ("media_missing", "there is no page 3 in a document of 2")
    assert refusal(root, MediaReference("document", "a.png"), inspector=inspector).reason == "media_unreadable"


@pytest.mark.parametrize(
    ("name", "verify", "reason"),
    [
        ("a.png", "decode", None),
        ("cut.png", "header", None),
        ("cut.png", "decode", "media_unreadable"),
        ("text.png", "stat", None),
        ("text.png", "header", "media_unreadable"),
        ("empty.png", "stat", "media_unreadable"),
        ("nothing.png", "stat", "media_missing"),
        ("../secret.png", "stat", "media_unsafe_path"),
        ("https://example.org/a.png", "stat", "media_remote"),
        (".", "stat", "media_unreadable"),
    ],
)
def test_how_far_a_file_is_looked_into(
    root: Path, inspector: Inspector, name: str, verify: str, reason: str | None
) -> None:
    if reason is None:
        assert check(root, MediaReference("image", name), verify, inspector=inspector).content == root / name
    else:
        assert refusal(root, MediaReference("image", name), verify, inspector=inspector).reason == reason


def test_without_a_look_into_it_the_type_is_what_name_or_first_bytes_claim(root: Path) -> None:
    assert check(root, MediaReference("image", "text.png"), "stat") == CheckedMedia(root / "text.png", "image/png")
    content = picture(kind="WEBP")
    for verify in ("stat", "none"):
        assert check(root, MediaReference("image", "a.jpg", content=content), verify).mime == "image/webp"
        assert check(root, MediaReference("video", "v.mp4", content=b"video"), verify).mime == "video/mp4"
        assert check(root, MediaReference("video", "v", content=b"video"), verify).mime == "application/octet-stream"
    assert refusal(root, MediaReference("image", "a.png", content=b""), "stat").reason == "media_unreadable"


class TestNoVerification:
    @pytest.mark.parametrize("kind", ["image", "video", "document"])
    @pytest.mark.parametrize(
        ("reference", "expected"),
        [
            ("a.png", "a.png"),
            ("nothing.png", "nothing.png"),
            ("folder/../b.png", "b.png"),
            ("./x//y.png", "x/y.png"),
            ("../root/a.png", "a.png"),
            ("../secret.png", None),
            ("/etc/passwd", None),
            ("https://example.org/a.png", None),
            ("file:///etc/passwd", None),
            ("a\0b.png", None),
            ("x" * 300, None),
            ("", None),
        ],
    )
    def test_the_path_that_a_reference_names(self, tmp_path, kind, reference, expected):
        root = tmp_path / "root"  # which is not there
        content = check(root, MediaReference(kind, reference), "none").content
        assert content == (None if expected is None else str(root / expected))

    def test_an_absolute_reference_inside_any_root(self, tmp_path):
        checker = MediaChecker([tmp_path / "one", tmp_path / "two"], "none", MAX_PIXELS)
        named = str(tmp_path / "two" / "a.png")
        assert checker.check(MediaReference("image", named)).content == named
        assert checker.check(MediaReference("image", "a.png")).content == str(tmp_path / "one" / "a.png")
        assert MediaChecker([], "none", MAX_PIXELS).check(MediaReference("image", "a.png")).content is None

    def test_nothing_is_looked_at(self, root, monkeypatch):
        def touched(*_: object, **__: object) -> None:
            pytest.fail("the disk was looked at")

        references = [MediaReference("image", name) for name in ("a.png", "nothing.png", "../x", "s3://bucket/key")]
        references += [MediaReference("video", "", content=b"bytes"), MediaReference("image", data_uri(b"no picture"))]
        checker = MediaChecker([root], "none", MAX_PIXELS)
        for name in ("stat", "lstat", "open", "scandir", "readlink"):
            monkeypatch.setattr(os, name, touched)
        seen = [checker.check(reference) for reference in references]
        monkeypatch.undo()
        assert [medium.content for medium in seen[3:]] == [None, b"bytes", b"no picture"]
        assert {(medium.width, medium.frames) for medium in seen} == {(0, None)}

    def test_a_data_uri_that_can_not_be_read_has_no_content(self, root):
        assert check(root, MediaReference("image", "data:image/png;base64,!!!"), "none").content is None


class TestAlternatives:
    def test_they_are_tried_in_order(self, root):
        medium = MediaReference("image", "a", alternatives=("a.jpg", "a.png", "text.png"))
        assert check(root, medium).content == root / "a.png"

    @pytest.mark.parametrize("first", ["nothing.png", "../a.png", "/elsewhere/a.png", "https://example.org/a.png"])
    def test_they_stand_in_for_what_is_not_here(self, root, first):
        assert check(root, MediaReference("image", first, alternatives=("a.png",))).content == root / "a.png"

    def test_the_first_is_preferred_even_if_it_is_bad(self, root):
        for bad in ("text.png", "."):
            medium = MediaReference("image", bad, alternatives=("a.png",))
            assert refusal(root, medium).reason == "media_unreadable"

    def test_the_error_names_the_first(self, root):
        error = refusal(root, MediaReference("image", "first", alternatives=("second", "../third", "http://fourth/x")))
        assert error.reason == "media_missing"
        assert "'first'" in error.detail
        assert "second" not in error.detail


class TestProcess:
    def test_plain_pictures_need_none(self, root, inspector):
        check(root, MediaReference("image", "a.png"), inspector=inspector)
        check(root, MediaReference("image", "x", content=picture()), inspector=inspector)
        assert inspector._server is None

    def test_a_file_in_many_records_is_looked_into_once(self, root, inspector, monkeypatch):
        asked = []
        ask = Inspector._ask
        monkeypatch.setattr(Inspector, "_ask", lambda self, *what: asked.append(what) or ask(self, *what))
        checker = MediaChecker([root], "decode", MAX_PIXELS, inspector)
        for _ in range(5):
            checker.check(MediaReference("image", "a.png"))
            checker.check(MediaReference("video", "clip.mp4"))
        assert len(asked) == 2

    def test_a_clip_that_crashes_the_reader_is_told(self, root, tmp_path, monkeypatch):
        (tmp_path / "site").mkdir()
        (tmp_path / "site" / "sitecustomize.py").write_text("import av, os\nav.open = lambda *_, **__: os.abort()\n")
        monkeypatch.syspath_prepend(str(tmp_path / "site"))
        checker = MediaChecker([root], "header", MAX_PIXELS)
        for medium in (MediaReference("video", "clip.mp4"), MediaReference("video", "x", content=CLIP.read_bytes())):
            with pytest.raises(MediaError, match=r"media_unreadable: .* crashed \(SIGABRT\)"):
                checker.check(medium)
        assert checker.check(MediaReference("image", "a.png")).width == 40
        checker.close()

    def test_closing_leaves_an_inspector_of_somebody_else(self, root, inspector):
        checker = MediaChecker([root], "decode", MAX_PIXELS, inspector)
        checker.check(MediaReference("image", "a.png"))
        checker.close()
        assert inspector._server is not None
        own = MediaChecker([root], "decode", MAX_PIXELS)
        own.check(MediaReference("image", "a.png"))
        own.close()
        assert own._inspector._server is None

    def test_it_can_be_sent_to_another_process(self, root):
        checker = MediaChecker([root], "decode", 40_000)
        expected = checker.check(MediaReference("image", "a.png"))
        other = pickle.loads(pickle.dumps(checker))  # noqa: S301 (our own)
        assert other.check(MediaReference("image", "a.png")) == expected
        with pytest.raises(MediaError, match="media_too_large"):
            other.check(MediaReference("image", "x", content=picture((401, 100))))
        ours, theirs = multiprocessing.Pipe()
        fork = multiprocessing.get_context("fork").Process(
            target=lambda: theirs.send(checker.check(MediaReference("video", "clip.mp4")))
        )
        fork.start()
        assert ours.poll(30)
        assert ours.recv() == checker.check(MediaReference("video", "clip.mp4"))
        fork.join()
        checker.close()
        other.close()


def test_an_audio_part_is_not_read(root: Path) -> None:
    assert refusal(root, MediaReference("audio", "a.mp3")).reason == "unsupported_modality"  # type: ignore[arg-type]
