"""Media that mean harm: paths that lead out, URLs, bombs, and files broken in every way.

Nothing outside the declared roots is opened, nothing is fetched, no secret is told, nothing that is small on disk
fills the memory, and every broken file is counted under its reason.
"""

from __future__ import annotations

import gzip
import json
import os
import struct
import subprocess
import sys
import tarfile
import time
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sample_files
from audited_conversion import audited
from process_watch import MemoryWatch, opened_in

from aria_finetune.conversion import ConversionOptions, convert
from aria_finetune.errors import TooManyRejects

UNSAFE, MISSING, UNREADABLE, REMOTE = "media_unsafe_path", "media_missing", "media_unreadable", "media_remote"


def chat(**media: object) -> dict[str, Any]:
    """A record with one medium, under `image` or `video`."""
    (kind,) = media
    turns = [{"from": "human", "value": f"<{kind}>\nWhat is it?"}, {"from": "gpt", "value": "A test."}]
    return {"conversations": turns, **media}


def write_lines(path: Path, records: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def rejects(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "rejects.jsonl").read_text(encoding="utf-8").splitlines()]


class Place:
    """A root with pictures, a second one, and a folder beside them in which nobody has any business."""

    def __init__(self, base: Path) -> None:
        self.root, self.other, self.outside = base / "root", base / "other", base / "outside"
        for folder in (self.root / "sub", self.other, self.outside):
            folder.mkdir(parents=True)
        picture = sample_files.image("PNG")
        for path in (self.root / "a.png", self.root / "sub" / "b.png", self.other / "c.png", self.outside / "a.png"):
            path.write_bytes(picture)
        (self.outside / "clip.mp4").write_bytes(sample_files.clip(base / "clip.mp4"))
        # A playlist of the kind that makes FFmpeg open what it names.
        (self.root / "list.mp4").write_text(f"ffconcat version 1.0\nfile '{self.outside}/clip.mp4'\n")
        for name, target in {
            "link.png": "../outside/a.png", "folder": "../outside", "one.png": "two.png", "two.png": "link.png",
            "loop.png": "pool.png", "pool.png": "loop.png", "zero.png": "/dev/zero", "mem.png": "/proc/self/mem",
            "gone.png": "nowhere.png", "within.png": "sub/b.png", "up": "..", "home.png": "sub/../a.png",
        }.items():  # fmt: skip
            (self.root / name).symlink_to(target)
        os.mkfifo(self.root / "pipe.png")

    def harmless(self) -> list[str]:
        """References that stay inside the roots, however they are written."""
        return [
            "a.png", "./a.png", "sub//b.png", "sub/../a.png", "../root/a.png", "within.png", "home.png", "up/root/sub/b.png",
            str(self.root / "a.png"), f"{self.root}/sub/../a.png", "c.png", str(self.other / "c.png"), "../other/c.png",
        ]  # fmt: skip

    def hostile(self) -> dict[str, str]:
        """References that must not be followed, and the reason each is rejected for."""
        outside = str(self.outside)
        return {
            "../outside/a.png": UNSAFE, "sub/../../outside/a.png": UNSAFE, f"{outside}/a.png": UNSAFE, "../" * 40 + "etc/passwd": UNSAFE,
            "/etc/passwd": UNSAFE, "//etc/passwd": UNSAFE, "/./etc/passwd": UNSAFE, "/proc/self/environ": UNSAFE,
            "/proc/self/root/etc/passwd": UNSAFE, "/proc/self/fd/0": UNSAFE, "/dev/zero": UNSAFE, "/dev/stdin": UNSAFE,
            "link.png": UNSAFE, "folder/a.png": UNSAFE, "one.png": UNSAFE, "up/outside/a.png": UNSAFE, "zero.png": UNSAFE,
            "mem.png": UNSAFE, "a.png\0.txt": UNSAFE, "\0": UNSAFE, f"file://{outside}/a.png": UNSAFE,
            f"FILE://localhost{outside}/a.png": UNSAFE, f" file://{outside}/a.png": UNSAFE, "x" * 300 + ".png": UNSAFE,
            "x/" * 3000 + "a.png": UNSAFE, "..": UNSAFE, "folder": UNSAFE, f"{self.root}-more/a.png": UNSAFE,
            "loop.png": UNREADABLE, "pipe.png": UNREADABLE, "sub": UNREADABLE, ".": UNREADABLE, "up/root": UNREADABLE,
            "gone.png": MISSING, "A.PNG": MISSING, "%2e%2e/outside/a.png": MISSING, "..%2foutside%2fa.png": MISSING,
            "..\\outside\\a.png": MISSING, "\\\\server\\share\\a.png": MISSING, "C:\\Windows\\a.png": MISSING, "C:/a.png": MISSING,
            "a.png.": MISSING, "a.png ": MISSING, "a.png::$DATA": MISSING, "~/.ssh/id_rsa": MISSING, "$HOME/a.png": MISSING,
            "concat:../outside/a.png|a.png": MISSING, "pipe:0": MISSING, "|cat /etc/passwd": MISSING, "\u2024\u2024/outside/a.png": MISSING,
            "&#46;&#46;/outside/a.png": MISSING, "  ": MISSING, "/": UNSAFE,
        }  # fmt: skip


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "place")


class TestPaths:
    def test_nothing_outside_the_roots_is_opened(self, place: Place, tmp_path: Path) -> None:
        hostile, harmless = place.hostile(), place.harmless()
        assert len(hostile) >= 30
        records = [chat(image=name) for name in (*hostile, *harmless)] + [
            chat(video=name) for name in hostile if name.strip()
        ]
        source = write_lines(place.root / "data.jsonl", records)
        work = tmp_path / "work"
        work.mkdir()
        jobs = [
            {
                "source": str(source), "output": str(work / verify),
                "options": {"format": "llava", "verify": verify, "media_roots": [str(place.root), str(place.other)]},
            }
            for verify in ("stat", "header", "decode", "none")
        ]  # fmt: skip
        with opened_in(place.outside) as opened:
            found = audited(tmp_path / "audit", jobs)
        assert opened == []
        assert found.opened_outside(place.root, place.other, work) == []
        assert found.sockets == []
        # The watch sees what it is to see.
        assert ("open", str(place.root / "a.png")) in found.events

        expected = [
            *hostile.values(),
            *[None] * len(harmless),
            *[reason for name, reason in hostile.items() if name.strip()],
        ]
        for job in jobs[:3]:
            reasons = {line["ordinal"]: line["reason"] for line in rejects(Path(job["output"]))}
            wrong = {
                (records[number].get("image", records[number].get("video")), reasons.get(number), reason)
                for number, reason in enumerate(expected)
                if reasons.get(number) != reason
            }
            assert wrong == set(), job["options"]["verify"]

    def test_without_a_look_no_path_leaves_the_root(self, place: Place, tmp_path: Path) -> None:
        names = [name for name in place.hostile() if name.strip()]
        source = write_lines(place.root / "data.jsonl", [chat(image=name) for name in names])
        convert(source, tmp_path / "out", ConversionOptions(format="llava", verify="none"))
        lines = (tmp_path / "out" / "data-00000.jsonl").read_text(encoding="utf-8").splitlines()
        paths = [json.loads(line)["media"][0]["path"] for line in lines]
        assert len(paths) == len(names)
        assert all(path is None or Path(os.path.normpath(path)).is_relative_to(place.root) for path in paths)

    def test_files_that_a_record_names_for_its_text(self, place: Place, tmp_path: Path) -> None:
        """Subtitles are read into the record, so a path that leads out would publish what stands there."""
        (place.outside / "secret.json").write_text('[{"start": "00:00:01", "end": "00:00:02", "line": "a secret"}]')
        (place.root / "link.json").symlink_to(place.outside / "secret.json")
        (place.root / "subtitles").mkdir()
        (place.root / "videos").mkdir()
        (place.root / "videos" / "v.mp4").write_bytes(sample_files.clip(tmp_path / "v.mp4"))
        names = [
            "../outside/secret.json",
            "../../outside/secret.json",
            str(place.outside / "secret.json"),
            "link.json",
            "\0",
        ]
        record = {
            "video_id": "v", "video_path": "v.mp4", "question": "What is said?", "duration": 1.0, "duration_group": 15,
            "candidates": ["This", "That"], "correct_choice": 0, "question_category": "x", "topic_category": "x", "id": "v_0",
            "starting_timestamp_for_subtitles": 0,
        }  # fmt: skip
        records = [record | {"subtitle_path": name} for name in names]
        source = write_lines(place.root / "data.jsonl", records)
        options = {"format": "longvideobench", "media_roots": [str(place.root)]}
        job = {"source": str(source), "output": str(tmp_path / "out"), "options": options}
        with opened_in(place.outside) as opened:
            found = audited(tmp_path / "audit", [job])
        assert opened == []
        assert found.results[0]["reasons"] == {UNSAFE: len(names)}
        assert b"a secret" not in b"".join(
            path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()
        )


SECRET = "hunter2-s3cret"  # noqa: S105
URLS = {
    f"http://user:{SECRET}@host.example/a.png": REMOTE,
    f"https://host.example/a.png?token={SECRET}&x=1": REMOTE,
    f"HTTPS://HOST.EXAMPLE:8443/a.png?X-Amz-Credential={SECRET}&X-Amz-Signature={SECRET}": REMOTE,
    f"https://account.blob.core.windows.net/c/a.png?sv=2024&sig={SECRET}": REMOTE,
    f"https://host.example/a.png#access_token={SECRET}": REMOTE,
    f"s3://key:{SECRET}@bucket/a.png": REMOTE,
    f"gs://bucket/a.png?key={SECRET}": REMOTE,
    f"ftp://anonymous:{SECRET}@ftp.example/a.png": REMOTE,
    f"rtsp://admin:{SECRET}@10.0.0.1/stream": REMOTE,
    f"hf://datasets/x/y/a.png?token={SECRET}": REMOTE,
    f"http://[::1]:80/a.png?password={SECRET}": REMOTE,
    f"http://[::1/a.png?password={SECRET}": REMOTE,
    f"http://user:{SECRET}@[fe80::1%25eth0]/a.png": REMOTE,
    f"https://host.example/redirect?url=http://user:{SECRET}@169.254.169.254/latest/meta-data": REMOTE,
    "http://169.254.169.254/latest/meta-data/iam": REMOTE,
    f"https://ex\u0430mple.\u4e2d\u56fd/a.png?secret={SECRET}": REMOTE,
    f"https://user:{SECRET}@ex\u200bample.com\u3002evil/a.png": REMOTE,
    f"\t\n https://user:{SECRET}@host.example/a.png": REMOTE,
    f"http:/user:{SECRET}@host.example/a.png": MISSING,
    f"file://user:{SECRET}@host.example/share/a.png": UNSAFE,
    f"http://{'a' * 5000}.example/a.png?token={SECRET}": REMOTE,
    "javascript:alert(1)": MISSING,
    "data:image/png;base64,iVBOR": UNREADABLE,
    "data:image/png;base64,!!!!": UNREADABLE,
    "data:image/png;base64,": UNREADABLE,
    "data:text/html,<script>alert(1)</script>": UNREADABLE,
    "data:image/png;base64,aGVsbG8gd29ybGQ=": UNREADABLE,
    "data:,": UNREADABLE,
}


class TestURLs:
    def test_nothing_is_fetched_and_no_secret_is_told(self, tmp_path: Path) -> None:
        records = [chat(image=url) for url in URLS] + [chat(video=url) for url in URLS]
        source = write_lines(tmp_path / "in" / "data.jsonl", records)
        jobs = [
            {"source": str(source), "output": str(tmp_path / verify), "options": {"format": "llava", "verify": verify}}
            for verify in ("stat", "header", "decode", "none")
        ]
        found = audited(tmp_path / "audit", jobs)
        assert found.sockets == []
        expected = [*URLS.values()] * 2
        for verify in ("header", "decode"):
            assert [line["reason"] for line in rejects(tmp_path / verify)] == expected
        assert SECRET not in found.said
        for job in jobs:
            for name in ("rejects.jsonl", "report.json", "manifest.json"):
                assert SECRET not in (Path(job["output"]) / name).read_text(encoding="utf-8"), (job["output"], name)
        # What was not looked at is written as it stands: data are for the model and not for people.
        assert json.loads((tmp_path / "none" / "report.json").read_text())["rejected"] == 0

    @pytest.mark.parametrize(
        "url", [f"https:\\\\user:{SECRET}@host.example\\a.png", f"//user:{SECRET}@host.example/a.png"]
    )
    def test_urls_that_are_written_as_only_browsers_read_them(self, tmp_path: Path, url: str) -> None:
        source = write_lines(tmp_path / "in" / "data.jsonl", [chat(image=url)])
        convert(source, tmp_path / "out", ConversionOptions(format="llava", max_rejects=1))
        assert [line["reason"] in {MISSING, UNSAFE} for line in rejects(tmp_path / "out")] == [True]
        assert SECRET not in (tmp_path / "out" / "rejects.jsonl").read_text(encoding="utf-8")

    @pytest.mark.parametrize("allowed", ["0", "1000"])
    def test_the_console_tells_none_either(self, tmp_path: Path, allowed: str) -> None:
        for number, url in enumerate(URLS):
            write_lines(tmp_path / "in" / f"part-{number}.jsonl", [chat(image=url)])
        command = [sys.executable, "-m", "aria_finetune.cli", "convert", str(tmp_path / "in"), str(tmp_path / "out")]
        ended = subprocess.run(
            [*command, "--max-rejects", allowed, "--workers", "1"],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert ended.returncode == (3 if allowed == "0" else 0), ended.stderr
        assert REMOTE in ended.stdout + ended.stderr
        assert SECRET not in ended.stdout + ended.stderr


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        *chunks,
        (b"IDAT", zlib.compress(b"")),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )


def jpeg(width: int, height: int) -> bytes:
    data = sample_files.image("JPEG")
    place = data.index(b"\xff\xc0") + 5
    return data[:place] + struct.pack(">HH", height, width) + data[place + 4 :]


def gif(width: int, height: int) -> bytes:
    data = sample_files.image("GIF")
    return data[:6] + struct.pack("<HH", width, height) + data[10:]


def webp(width: int, height: int) -> bytes:
    data = sample_files.image("WEBP", lossless=True)
    bits = int.from_bytes(data[21:25], "little") >> 28 << 28 | height - 1 << 14 | width - 1
    return data[:21] + bits.to_bytes(4, "little") + data[25:]


def tiff(width: int, height: int) -> bytes:
    """Tags of a grey picture of one strip that is said to have 4 GB."""
    tags = [
        (256, 4, width),
        (257, 4, height),
        (258, 3, 8),
        (259, 3, 1),
        (262, 3, 1),
        (273, 4, 8),
        (278, 4, height),
        (279, 4, 2**32 - 1),
    ]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)


def bmp(width: int, height: int) -> bytes:
    return b"BM" + struct.pack("<IIIIiiHHIIIIII", 54, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)


MIB = bytes(1 << 20)


def zeros(mib: int) -> bytes:
    """Zeros packed with gzip, as several parts of one stream."""
    return gzip.compress(MIB * 50, 6) * (mib // 50)


def images(folder: Path, contents: dict[str, bytes]) -> Path:
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return write_lines(folder / "data.jsonl", [chat(image=name) for name in contents])


def picture_bombs(folder: Path) -> Path:
    return images(folder, {
        "1.png": png(60_000, 60_000), "2.png": png(2**31 - 1, 2**31 - 1), "3.jpg": jpeg(65_500, 65_500), "4.gif": gif(65_535, 65_535),
        "5.webp": webp(16_384, 16_384), "6.tif": tiff(100_000, 100_000), "7.bmp": bmp(50_000, 50_000), "8.ppm": b"P6 99999 99999 255\n" + bytes(99),
    })  # fmt: skip


def text_chunk_bombs(folder: Path) -> Path:
    packed = zlib.compress(bytes(300 << 20))
    return images(folder, {
        "1.png": png(40, 40, (b"zTXt", b"a\0\0" + packed)), "2.png": png(40, 40, (b"iTXt", b"a\0\1\0\0\0" + packed)),
        "3.png": png(40, 40, (b"iCCP", b"a\0\0" + packed)),
    })  # fmt: skip


def clip_bomb(folder: Path) -> Path:
    (folder / "v.gif").write_bytes(gif(9_000, 9_000))
    return write_lines(folder / "data.jsonl", [chat(video="v.gif")])


def tar_source(folder: Path, members: list[tuple[str, bytes]]) -> Path:
    (folder / "data.tar").write_bytes(sample_files.tar(members))
    return folder / "data.tar"


def sized(name: str, size: int) -> bytes:
    """The header of a member that is said to have so many bytes."""
    member = tarfile.TarInfo(name)
    member.size = size
    return member.tobuf(tarfile.GNU_FORMAT)


def text_in_tar(folder: Path) -> Path:
    return tar_source(
        folder,
        [("0.png", png(40, 40)), ("0.txt.gz", gzip.compress(zeros(50)) + zeros(1000)), ("1.json.gz", zeros(1000))],
    )


def large_sample(folder: Path) -> Path:
    """A tar of a few kilobytes of which a member has 800 MB."""
    head = gzip.compress(sized("0.png", 800 << 20))
    (folder / "data.tar.gz").write_bytes(head + zeros(800) + gzip.compress(bytes(1024)))
    return folder / "data.tar.gz"


def false_sizes(folder: Path) -> Path:
    (folder / "data.tar").write_bytes(sized("0.png", 2**60) + bytes(1024))
    return folder / "data.tar"


def holes(folder: Path) -> Path:
    """A sparse member: nothing but a promise of 2 GiB of zeros."""
    header = bytearray(sized("0.png", 0))
    header[156:157] = tarfile.GNUTYPE_SPARSE
    header[483:495] = b"%011o\0" % (2**31 - 1)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (folder / "data.tar").write_bytes(bytes(header) + bytes(1024))
    return folder / "data.tar"


def long_name(folder: Path) -> Path:
    """A header in which a name of 800 MB stands."""
    header = bytearray(sized("././@LongLink", 800 << 20))
    header[156:157] = tarfile.GNUTYPE_LONGNAME
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (folder / "data.tar.gz").write_bytes(gzip.compress(bytes(header)) + zeros(800))
    return folder / "data.tar.gz"


def deep_lines(folder: Path) -> Path:
    deep = "[" * 100_000 + "]" * 100_000
    text = (
        json.dumps(chat(image="a.png")) + f'\n{{"conversations": {deep}}}\n' + '{"a":' * 100_000 + "}" * 100_000 + "\n"
    )
    (folder / "data.jsonl").write_text(text)
    return folder / "data.jsonl"


def deep_list(folder: Path) -> Path:
    (folder / "data.json").write_text("[" * 100_000 + "]" * 100_000)
    return folder / "data.json"


def deep_document(folder: Path) -> Path:
    (folder / "data.json").write_text('{"data":' * 100_000 + "1" + "}" * 100_000)
    return folder / "data.json"


def sparse(path: Path, start: bytes, mib: int, end: bytes) -> Path:
    """A file of which all but its ends are zeros that take no room on the disk."""
    with path.open("wb") as stream:
        stream.write(start)
        stream.seek(mib << 20, os.SEEK_CUR)
        stream.write(end)
    return path


def long_cell(folder: Path) -> Path:
    return sparse(folder / "data.csv", b'image,caption\na.png,"', 300, b'"\n')


def long_cell_of_many_lines(folder: Path) -> Path:
    with (folder / "data.csv").open("wb") as stream:
        stream.write(b'image,caption\na.png,"')
        for _ in range(100):
            stream.write((b"x" * 1023 + b"\n") * 1024)
    return folder / "data.csv"


def long_line(folder: Path) -> Path:
    return sparse(folder / "data.jsonl", b'{"id": 1}\n{"id": "', 100, b'"}\n{}\n')


def long_element(folder: Path) -> Path:
    return sparse(folder / "data.json", b'[{"conversations": "', 200, b'"}]')


def packed_line(folder: Path) -> Path:
    (folder / "data.jsonl.gz").write_bytes(gzip.compress(b'{"id": 1}\n{"id": "') + zeros(1000))
    return folder / "data.jsonl.gz"


def packed_document(folder: Path) -> Path:
    (folder / "data.json.gz").write_bytes(gzip.compress(b'{"id": "') + zeros(1000))
    return folder / "data.json.gz"


def packed_utf_16(folder: Path) -> Path:
    (folder / "data.json.gz").write_bytes(gzip.compress(b"\xff\xfe[\0") + zeros(1000))
    return folder / "data.json.gz"


def pages(folder: Path, document: bytes) -> Path:
    (folder / "a.pdf").write_bytes(document)
    return folder


def many_pages(folder: Path) -> Path:
    return pages(folder, sample_files.pdf(1001))


def large_picture_on_a_page(folder: Path) -> Path:
    return pages(folder, sample_files.pdf(1).replace(b"/Width 16 /Height 16", b"/Width 60000 /Height 60000"))


def huge_page(folder: Path) -> Path:
    """It is drawn as large as any other."""
    return pages(folder, sample_files.pdf(1, "0 0 1000000000 1000000000"))


def long_subtitles(folder: Path) -> Path:
    sparse(folder / "s.srt", b"1\n00:00:01,000 --> 00:00:02,000\n", 300, b"\n")
    return video_question(folder)


def subtitles_of_brackets(folder: Path) -> Path:
    line = b"Dialogue: 0,0:00:01.00,0:00:02.00,Default,,0,0,0,," + b"{\\i" * 2_000_000
    (folder / "s.srt").write_bytes(b"[Events]\n" + line + b"\n" * 1_000_000)
    return video_question(folder)


def video_question(folder: Path) -> Path:
    (folder / "v.mp4").write_bytes(sample_files.clip(folder / "v.mp4"))
    return write_lines(folder / "data.jsonl", [{
        "video_id": "v", "video_path": "v.mp4", "question": "What is said?", "duration": 1.0, "candidates": ["This", "That"],
        "correct_choice": 0, "subtitle_path": "s.srt", "starting_timestamp_for_subtitles": 0, "id": "v_0",
    }])  # fmt: skip


def data_uri(folder: Path) -> Path:
    uri = "data:image/png;base64," + "A" * (40 << 20)
    return write_lines(folder / "data.jsonl", [chat(image=uri), chat(image="gone.png")])


TOO_LARGE = "media_too_large"
BOMBS: dict[Callable[[Path], Path], dict[str, int] | str] = {
    picture_bombs: {TOO_LARGE: 8},
    text_chunk_bombs: {UNREADABLE: 3},
    clip_bomb: {TOO_LARGE: 1},
    text_in_tar: {"bad_text": 2},
    large_sample: {TOO_LARGE: 1},
    false_sizes: {"bad_archive": 1},
    holes: {"bad_archive": 1},
    long_name: {"bad_archive": 1},
    deep_lines: {"bad_json": 2, MISSING: 1},
    deep_list: "nested deeper than 100 levels",
    deep_document: "none of its first 1 records can be parsed",
    long_cell: "a line is longer than 64 MiB",
    long_cell_of_many_lines: "a row is longer than 64 MiB",
    long_line: "a line is longer than 64 MiB",
    long_element: "a record is longer than 64 MiB",
    packed_line: "a line is longer than 64 MiB",
    packed_document: "its compressed data swell to more than",
    packed_utf_16: "its compressed data swell to more than",
    many_pages: {TOO_LARGE: 1},
    large_picture_on_a_page: {TOO_LARGE: 1},
    huge_page: {},
    long_subtitles: {TOO_LARGE: 1},
    subtitles_of_brackets: {},
    data_uri: {UNREADABLE: 1, MISSING: 1},
}
"""What is small on disk or in a header and large in memory, and what is to be said of it."""

MOST_GROWN_MIB = 512
MOST_SECONDS = 30

CHILD = """
import json, sys
from pathlib import Path
from aria_finetune.conversion import ConversionOptions, convert
from aria_finetune.errors import TooManyRejects
from aria_finetune.errors import UserError

print("ready", flush=True)
for line in sys.stdin:
    source, output, name = json.loads(line)
    try:
        result = convert(Path(source), Path(output), ConversionOptions(name, verify="decode", max_rejects=99)).to_dict()
    except UserError as error:
        result = str(error)
    print(json.dumps(result), flush=True)
"""


class TestBombs:
    def test_they_are_refused_before_they_go_off(self, tmp_path: Path) -> None:
        with subprocess.Popen(
            [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        ) as child:  # fmt: skip
            assert child.stdin is not None
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
            watch = MemoryWatch(child.pid)
            try:
                wrong = {}
                for bomb, expected in BOMBS.items():
                    folder = tmp_path / bomb.__name__
                    folder.mkdir()
                    source = bomb(folder)
                    form = "webdataset" if source.name.startswith("data.tar") else "auto"
                    watch.restart()
                    started = time.monotonic()
                    child.stdin.write(json.dumps([str(source), str(tmp_path / "out" / bomb.__name__), form]) + "\n")
                    child.stdin.flush()
                    found = json.loads(child.stdout.readline())
                    seconds, grown = time.monotonic() - started, watch.grown_mib()
                    print(f"{bomb.__name__}: {seconds:.1f} s, {grown:.0f} MiB")
                    told = found["reasons"] if isinstance(found, dict) else found
                    as_expected = (
                        told == expected if isinstance(expected, dict) else isinstance(told, str) and expected in told
                    )
                    if not as_expected or grown > MOST_GROWN_MIB or seconds > MOST_SECONDS:
                        wrong[bomb.__name__] = (told, seconds, grown)
            finally:
                watch.close()
                child.stdin.close()
            assert not wrong, "\n".join(f"{name}: {found}" for name, found in wrong.items())


KINDS = {"JPEG": "jpg", "PNG": "png", "GIF": "gif", "WEBP": "webp", "TIFF": "tif", "BMP": "bmp"}
CLIPS = {"mpeg4.mp4": "mpeg4", "x264.mp4": "libx264", "vp8.webm": "libvpx"}

WAYS: dict[str, Callable[[bytes], bytes]] = {
    "emptied": lambda _: b"",
    "cut to a few bytes": lambda data: data[:10],
    "zeroed": lambda data: bytes(len(data)),
    "garbage": lambda data: bytes((7 * place * place + 3) % 251 for place in range(len(data))),
    "a web page": lambda _: b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
    "a pointer of git-LFS": lambda _: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345\n",
    "text": lambda _: b"Das ist kein Bild.\n",
    "another kind": lambda data: b"%PDF-1.7\n" + data,
    "cut in the middle": lambda data: data[: len(data) * 2 // 3],
}
"""Ways of breaking a file that are known to leave nothing of it, at least to who decodes all of it."""

HEADER_IS_WHOLE = {("cut in the middle", kind) for kind in ("JPEG", "PNG", "TIFF", "BMP")}
"""Where the header stands first and says all, so that only decoding shows the cut; WebP and GIF say their frames later."""


def broken_media(folder: Path) -> dict[str, tuple[dict[str, Any], str | None, str | None]]:
    """Records of broken files by name, each with the reason for its rejection by a look at headers and by decoding."""
    folder.mkdir()
    found: dict[str, tuple[dict[str, Any], str | None, str | None]] = {}

    def add(name: str, data: bytes, header: str | None, decode: str | None, kind: str = "image") -> None:
        (folder / name).write_bytes(data)
        found[name] = (chat(**{kind: name}), header, decode)

    for kind, ending in KINDS.items():
        sound = sample_files.image(kind, (64, 48))
        for number, (way, breaks) in enumerate(WAYS.items()):
            header = None if (way, kind) in HEADER_IS_WHOLE else UNREADABLE
            if way == "cut in the middle" and kind == "GIF":
                header = None  # its first frame is announced before the cut
            add(f"{kind}{number}.{ending}", breaks(sound), header, UNREADABLE)
        # Sound but for its name, its size, or its shape.
        add(f"{kind}-misnamed.{'png' if ending == 'jpg' else 'jpg'}", sound, None, None)
    add("tiny.png", sample_files.image("PNG", (8, 8)), "media_too_small", "media_too_small")
    add("strip.png", sample_files.image("PNG", (4000, 15)), "media_too_small", "media_too_small")
    # libjpeg takes zeros for pixels like any others, and no reader can know better.
    add("half.jpg", half_decodable(sample_files.image("JPEG", (64, 48))), None, None)
    add("half.png", half_decodable(sample_files.image("PNG", (64, 48))), None, UNREADABLE)

    for name, codec in CLIPS.items():
        sound = sample_files.clip(folder / name, codec)
        (folder / name).unlink()
        stem, ending = name.split(".")
        for number, way in enumerate(("emptied", "cut to a few bytes", "garbage", "a web page")):
            add(f"{stem}{number}.{ending}", WAYS[way](sound), UNREADABLE, UNREADABLE, "video")
    sound = sample_files.clip(folder / "x.mp4")
    (folder / "x.mp4").unlink()
    add("cut.mp4", sound[: len(sound) * 2 // 3], UNREADABLE, UNREADABLE, "video")  # its index was at the end
    add("lost.mp4", without_frames(sound), None, UNREADABLE, "video")
    add("picture.mp4", sample_files.image("PNG"), UNREADABLE, UNREADABLE, "video")
    return found


def half_decodable(data: bytes) -> bytes:
    """Zeros in place of the middle of what is drawn."""
    third = len(data) // 3
    return data[: 2 * third] + bytes(third // 2) + data[2 * third + third // 2 :]


def without_frames(data: bytes) -> bytes:
    """Zeros where the later frames of an MP4 file were; its index and its first frame are sound."""
    start, end = data.index(b"mdat") + 4, data.index(b"moov") - 4
    start += (end - start) // 2
    return data[:start] + bytes(end - start) + data[end:]


def broken_documents(folder: Path) -> dict[str, str]:
    """Broken PDFs, all of which show by their headers already."""
    sound = sample_files.pdf()
    documents = {
        "emptied.pdf": b"",
        "page.pdf": WAYS["a web page"](sound),
        "cut.pdf": sound[: len(sound) // 2],
        "garbage.pdf": b"%PDF-1.4\n" + WAYS["garbage"](sound) + b"\n%%EOF",
        "locked.pdf": sound.replace(b"/Root 1 0 R", b"/Root 1 0 R /Encrypt << /Filter /Other /V 9 >>"),
    }
    folder.mkdir()
    for name, data in documents.items():
        (folder / name).write_bytes(data)
    return dict.fromkeys(documents, UNREADABLE)


class TestBrokenMedia:
    @pytest.mark.parametrize("verify", ["header", "decode"])
    def test_every_one_is_counted_under_its_reason(self, tmp_path: Path, verify: str) -> None:
        media = broken_media(tmp_path / "in")
        kinds = Counter("video" if "video" in record else "image" for record, _, _ in media.values())
        assert kinds["image"] >= 60
        assert kinds["video"] >= 15
        expected = {name: header if verify == "header" else decode for name, (_, header, decode) in media.items()}
        source = write_lines(tmp_path / "in" / "data.jsonl", [record for record, _, _ in media.values()])
        bad = Counter(reason for reason in expected.values() if reason)
        options = ConversionOptions(verify=verify, max_rejects=bad.total())  # type: ignore[arg-type]
        report = convert(source, tmp_path / "out", options)

        names = list(expected)
        found = dict.fromkeys(names) | {names[line["ordinal"]]: line["reason"] for line in rejects(tmp_path / "out")}
        assert {name: found[name] for name in names if found[name] != expected[name]} == {}
        assert report.reasons == bad
        assert (report.read, report.written) == (len(media), len(media) - bad.total())
        with pytest.raises(TooManyRejects, match=f"{bad.total()} of {len(media)} conversations were rejected"):
            convert(source, tmp_path / "again", ConversionOptions(verify=verify, max_rejects=bad.total() - 1))  # type: ignore[arg-type]

    @pytest.mark.parametrize("verify", ["header", "decode"])
    def test_documents_too(self, tmp_path: Path, verify: str) -> None:
        expected = broken_documents(tmp_path / "in")
        (tmp_path / "in" / "sound.pdf").write_bytes(sample_files.pdf())
        options = ConversionOptions(verify=verify, max_rejects=5, evaluation=True)  # type: ignore[arg-type]
        report = convert(tmp_path / "in", tmp_path / "out", options)
        assert report.reasons == Counter(expected.values())
        assert (report.read, report.written) == (6, 1)
