"""Media are copied, linked or left where they are, and equal bytes are held once."""

from __future__ import annotations

import base64
import errno
import os
from pathlib import Path

import pytest
from conversion_sources import listing, llava, sha256, write_image, write_source, written

from aria_finetune.conversion import ConversionOptions, convert, read_dataset
from aria_finetune.conversion.media_check import CheckedMedia
from aria_finetune.conversion.media_store import CopyingStore, InPlaceStore, KeptMedia, media_store
from aria_finetune.errors import MediaError


def checked(content: Path | bytes | None, mime: str = "image/png") -> CheckedMedia:
    return CheckedMedia(content, mime)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return write_image(tmp_path / "in" / "a.png")


def expected(path: Path, ending: str = "png") -> KeptMedia:
    return KeptMedia(f"media/{sha256(path)[:2]}/{sha256(path)}.{ending}", sha256(path))


class TestCopies:
    def test_files_and_bytes_are_held_once(self, tmp_path: Path, image: Path) -> None:
        twin = tmp_path / "in" / "twin.png"
        twin.write_bytes(image.read_bytes())
        store = CopyingStore(tmp_path)
        for content in (image, image, twin, image.read_bytes()):
            assert store.keep(checked(content)) == expected(image)
        (copy,) = (tmp_path / "media").rglob("*.png")
        assert copy.stat().st_ino != image.stat().st_ino
        assert store.read(expected(image).path or "") == copy.read_bytes() == image.read_bytes()

    @pytest.mark.parametrize(
        ("mime", "name", "ending"),
        [
            ("image/jpeg", "a.png", "jpg"),
            ("video/mp4", "a", "mp4"),
            ("application/pdf", "a.x", "pdf"),
            ("application/octet-stream", "a.XYZ", "xyz"),
            ("application/octet-stream", "a.b c", "bin"),
            ("application/octet-stream", "a", "bin"),
        ],
    )
    def test_they_are_named_by_their_type(self, tmp_path: Path, mime: str, name: str, ending: str) -> None:
        file = tmp_path / name
        file.write_bytes(b"content")
        assert CopyingStore(tmp_path).keep(checked(file, mime)) == expected(file, ending)

    def test_what_has_no_file(self, tmp_path: Path) -> None:
        for store in (CopyingStore(tmp_path), InPlaceStore(tmp_path)):
            assert store.keep(checked(None)) == KeptMedia(None, "")
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("link", [False, True])
    def test_a_file_that_is_gone_costs_its_record(self, tmp_path: Path, link: bool) -> None:
        with pytest.raises(MediaError, match=r"media_unreadable: gone\.png can't be read"):
            CopyingStore(tmp_path, link=link).keep(checked(tmp_path / "gone.png"))
        assert not list(tmp_path.rglob("*incoming*"))

    def test_a_write_that_fails_leaves_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(Path, "replace", full)
        with pytest.raises(OSError, match="No space"):
            CopyingStore(tmp_path).keep(checked(b"content"))
        assert not [path for path in tmp_path.rglob("*") if path.is_file()]

    def test_two_processes_of_the_same_number_do_not_meet(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Machines that share a disk do not share process numbers."""
        monkeypatch.setattr(os, "getpid", lambda: 7)
        opened: set[str] = set()
        replace = Path.replace
        monkeypatch.setattr(Path, "replace", lambda self, to: opened.add(self.name) or replace(self, to))
        for store in (CopyingStore(tmp_path), CopyingStore(tmp_path), InPlaceStore(tmp_path / "media")):
            store.keep(checked(os.urandom(8)))
        assert len(opened) == 3


class TestLinks:
    def test_a_file_gets_a_second_name(self, tmp_path: Path, image: Path) -> None:
        store = CopyingStore(tmp_path, link=True)
        assert store.keep(checked(image)) == store.keep(checked(image)) == expected(image)
        linked = tmp_path / (expected(image).path or "")
        assert linked.stat().st_ino == image.stat().st_ino
        assert image.stat().st_nlink == 2

    def test_one_of_equal_files_is_enough(self, tmp_path: Path, image: Path) -> None:
        twin = tmp_path / "in" / "twin.png"
        twin.write_bytes(image.read_bytes())
        store = CopyingStore(tmp_path, link=True)
        assert store.keep(checked(image)) == store.keep(checked(twin))
        assert (image.stat().st_nlink, twin.stat().st_nlink) == (2, 1)

    def test_bytes_are_written(self, tmp_path: Path, image: Path) -> None:
        assert CopyingStore(tmp_path, link=True).keep(checked(image.read_bytes())) == expected(image)

    @pytest.mark.parametrize("number", [errno.EXDEV, errno.EPERM, errno.EMLINK])
    def test_where_no_link_can_be_made_it_is_copied(
        self, tmp_path: Path, image: Path, monkeypatch: pytest.MonkeyPatch, number: int
    ) -> None:
        def refused(*_: object) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "link", refused)
        assert CopyingStore(tmp_path, link=True).keep(checked(image)) == expected(image)
        assert (tmp_path / (expected(image).path or "")).read_bytes() == image.read_bytes()
        assert image.stat().st_nlink == 1

    def test_another_process_may_be_first(self, tmp_path: Path, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        link = os.link

        def second(source: Path, target: Path) -> None:
            link(source, target)
            raise FileExistsError

        monkeypatch.setattr(os, "link", second)
        assert CopyingStore(tmp_path, link=True).keep(checked(image)) == expected(image)


class TestInPlace:
    def test_files_stay(self, tmp_path: Path, image: Path) -> None:
        store = InPlaceStore(tmp_path / "media", relative_to=tmp_path)
        assert store.keep(checked(image)) == KeptMedia(str(image), "")
        assert store.read(str(image)) == image.read_bytes()
        assert not (tmp_path / "media").exists()

    @pytest.mark.parametrize("relative", [False, True])
    def test_bytes_are_written_once(self, tmp_path: Path, image: Path, relative: bool) -> None:
        folder = tmp_path / "link"
        folder.symlink_to(tmp_path / "real")
        (tmp_path / "real").mkdir()
        store = InPlaceStore(folder / "media", relative_to=folder if relative else None)
        kept = store.keep(checked(image.read_bytes()))
        assert kept == store.keep(checked(image.read_bytes()))
        path = expected(image).path or ""
        assert kept == KeptMedia(path if relative else str(tmp_path / "real" / path), sha256(image))
        assert store.read(kept.path or "") == image.read_bytes()
        assert listing(tmp_path / "real").keys() == {path}


class TestDataSets:
    @pytest.fixture
    def source(self, tmp_path: Path, image: Path) -> Path:
        data = "data:;base64," + base64.b64encode(image.read_bytes()).decode()
        return write_source(tmp_path / "in" / "data.jsonl", [llava("a.png"), llava("./a.png"), llava(data)])

    @pytest.mark.parametrize("policy", ["copy", "hardlink", "reference"])
    def test_each_policy(self, tmp_path: Path, source: Path, image: Path, policy: str) -> None:
        convert(source, tmp_path / "out", ConversionOptions(media=policy))  # type: ignore[arg-type]
        media = [record["media"][0] for record in written(tmp_path / "out")]
        inside = expected(image).path
        outside = str(image) if policy == "reference" else inside
        assert [medium["path"] for medium in media] == [outside, outside, inside]
        hash_ = "" if policy == "reference" else sha256(image)
        assert [medium["sha256"] for medium in media] == [hash_, hash_, sha256(image)]
        assert [name for name in listing(tmp_path / "out") if name.startswith("media/")] == [inside]
        assert image.stat().st_nlink == (2 if policy == "hardlink" else 1)
        read = [Path(record.media[0].path or "") for record in read_dataset(tmp_path / "out")]
        assert {path.read_bytes() for path in read} == {image.read_bytes()}

    @pytest.mark.usefixtures("image")
    def test_a_rejected_record_leaves_no_media(self, tmp_path: Path) -> None:
        two = llava(["a.png", "b.png"], question="<image><image>")
        source = write_source(tmp_path / "in" / "data.jsonl", [two])
        convert(source, tmp_path / "out", ConversionOptions(max_rejects=1))
        assert not (tmp_path / "out" / "media").exists()

    def test_the_store_of_each_policy(self, tmp_path: Path) -> None:
        assert isinstance(media_store("copy", tmp_path), CopyingStore)
        assert isinstance(media_store("hardlink", tmp_path), CopyingStore)
        assert isinstance(media_store("reference", tmp_path), InPlaceStore)
