"""WebDataset archives: members become samples, hostile ones are refused, a cut one tells so."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

import pytest

from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.reading import archives, sources


def archive(path: Path, members: list[tuple[str, bytes]], mode: str = "w") -> Path:
    with tarfile.open(path / "data.tar", mode) as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path / "data.tar"


def samples(path: Path) -> list[object]:
    (file,) = sources.locate(path)
    assert file.contents.kind == "tar"
    return list(sources.read(file))


MEMBERS = [
    ("a/0.jpg", b"\xff\xd8one"),
    ("a/0.txt", "grün".encode()),
    ("a/1.x.jpg", b"two"),
    ("a/1.x.json", b'{"caption": "zwei"}'),
    ("b/0.cls", b"7"),
    ("b/0.txt.gz", gzip.compress(b"three")),
]
WANTED = [
    {"__key__": "a/0", "jpg": b"\xff\xd8one", "txt": "grün"},
    {"__key__": "a/1", "x.jpg": b"two", "x.json": {"caption": "zwei"}},
    {"__key__": "b/0", "cls": "7", "txt": "three"},
]


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_members_with_one_key_are_a_sample(tmp_path: Path, mode: str) -> None:
    assert samples(archive(tmp_path, MEMBERS, mode)) == WANTED


def test_a_cut_archive_gives_what_is_whole(tmp_path: Path) -> None:
    path = archive(tmp_path, [*MEMBERS, ("c/0.jpg", bytes(100_000))])
    path.write_bytes(path.read_bytes()[:60_000])
    *whole, last = samples(path)
    assert whole == WANTED
    assert isinstance(last, RecordError)
    assert last.reason == "bad_archive"
    assert "'c/0'" in last.detail


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("../0.jpg", b"x", "media_unsafe_path"),
        ("/etc/0.jpg", b"x", "media_unsafe_path"),
        ("a/../../0.jpg", b"x", "media_unsafe_path"),
        ("0.json", b"{", "bad_json"),
        ("0.json", b'{"a": 1, "a": 2}', "bad_json"),
        ("0.txt", b"\xff", "bad_text"),
    ],
)
def test_a_bad_member_is_one_bad_sample(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    found = samples(archive(tmp_path, [("ok/1.txt", b"1"), (name, content), ("ok/2.txt", b"2")]))
    assert [item.reason if isinstance(item, RecordError) else item["txt"] for item in found] == ["1", reason, "2"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(tmp_path: Path, kind: bytes) -> None:
    with tarfile.open(tmp_path / "data.tar", "w") as tar:
        member = tarfile.TarInfo("0.jpg")
        member.type, member.linkname = kind, "/etc/passwd"
        tar.addfile(member)
    (found,) = samples(tmp_path / "data.tar")
    assert isinstance(found, RecordError)
    assert found.reason == "media_unsafe_path"


def test_a_bomb_of_text_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "TEXT_BYTES", 1000)
    monkeypatch.setattr(archives, "SAMPLE_BYTES", 5000)
    found = samples(archive(tmp_path, [("0.txt.gz", gzip.compress(bytes(100_000))), ("1.jpg", bytes(6000))]))
    assert [getattr(item, "reason", None) for item in found] == ["bad_text", "media_too_large"]


def test_two_members_of_one_ending(tmp_path: Path) -> None:
    (found,) = samples(archive(tmp_path, [("0.jpg", b"1"), ("0.JPG", b"2")]))
    assert isinstance(found, RecordError)
    assert found.reason == "bad_schema"
