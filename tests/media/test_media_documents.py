"""PDF documents are measured, drawn upright and read, or refused with the right reason."""

from __future__ import annotations

import hashlib
import io
import os
import random
import threading
from contextlib import suppress
from pathlib import Path

import pytest
from PIL import Image

from aria_finetune.errors import MediaError
from aria_finetune.media.documents import (
    DEFAULT_LIMITS,
    DocumentInfo,
    DocumentLimits,
    document_text,
    page_text,
    probe_document,
    render_page,
)

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)
# A red square in the lower left corner of a page of 200 by 100 points.
SQUARE = b"1 0 0 rg 0 0 40 40 re f"


def lines(*said: str) -> bytes:
    shown = " T* ".join(f"({line}) Tj" for line in said)
    return f"BT /F1 12 Tf 14 TL 10 80 Td {shown} ET".encode()


class Cipher:
    """The oldest encryption of PDF (RC4, 40 bits), enough to need a password or to have an empty one."""

    PADDING = bytes.fromhex("28BF4E5E4E758A4164004E56FFFA01082E2E00B6D0683E802F0CA9FE6453697A")

    def __init__(self, password: bytes) -> None:
        user = (password + self.PADDING)[:32]
        self.owner = self.rc4(self.md5((b"owner" + self.PADDING)[:32])[:5], user)
        self.key = self.md5(user + self.owner + (-4 & 0xFFFFFFFF).to_bytes(4, "little") + b"0" * 16)[:5]

    def entries(self) -> bytes:
        check = self.rc4(self.key, self.PADDING)
        rights = f"/O <{self.owner.hex()}> /U <{check.hex()}> /P -4".encode()
        return b"/Encrypt << /Filter /Standard /V 1 /R 2 " + rights + b" >> /ID [<" + b"30" * 16 + b"> <30>]"

    def stream(self, number: int, data: bytes) -> bytes:
        return self.rc4(self.md5(self.key + number.to_bytes(3, "little") + b"\0\0")[:10], data)

    @staticmethod
    def md5(data: bytes) -> bytes:
        return hashlib.md5(data, usedforsecurity=False).digest()

    @staticmethod
    def rc4(key: bytes, data: bytes) -> bytes:
        state, j = list(range(256)), 0
        for i in range(256):
            j = (j + state[i] + key[i % len(key)]) % 256
            state[i], state[j] = state[j], state[i]
        out, i, j = bytearray(), 0, 0
        for byte in data:
            i = (i + 1) % 256
            j = (j + state[i]) % 256
            state[i], state[j] = state[j], state[i]
            out.append(byte ^ state[(state[i] + state[j]) % 256])
        return bytes(out)


def pdf(*contents: bytes, page: bytes = b"", extra: tuple[bytes, ...] = (), catalog: bytes = b"", **options) -> bytes:
    """A document of pages of 200 by 100 points; `page` and `catalog` are added to these, `extra` are objects from 4."""
    cipher: Cipher | None = options.get("cipher")
    first = 4 + len(extra)
    places = range(first, first + 2 * len(contents), 2)
    kids = b" ".join(b"%d 0 R" % place for place in places)
    count = options.get("count", len(contents))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R " + catalog + b" >>",
        b"<< /Type /Pages /Kids ["
        + kids
        + b"] /Count %d /MediaBox %s >>" % (count, options.get("box", b"[0 0 200 100]")),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica " + options.get("font", b"") + b" >>",
        *extra,
    ]
    resources = b"/Resources << /Font << /F1 3 0 R >> " + options.get("resources", b"") + b" >>"
    for place, content in zip(places, contents, strict=True):
        data = cipher.stream(place + 1, content) if cipher else content
        objects += [
            b"<< /Type /Page /Parent 2 0 R %s /Contents %d 0 R %s >>" % (resources, place + 1, page),
            b"<< /Length %d >> stream\n" % len(data) + data + b"\nendstream",
        ]
    return written(objects, cipher.entries() if cipher else b"")


def written(objects: list[bytes], trailer: bytes = b"") -> bytes:
    out, offsets = b"%PDF-1.4\n", []
    for number, data in enumerate(objects, 1):
        offsets.append(len(out))
        out += b"%d 0 obj\n" % number + data + b"\nendobj\n"
    table = b"0000000000 65535 f \n" + b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    size = len(objects) + 1
    end = b"trailer << /Size %d /Root 1 0 R " % size + trailer + b" >>\nstartxref\n%d\n%%%%EOF\n" % len(out)
    return out + b"xref\n0 %d\n" % size + table + end


def reason_of(source: Path | bytes, limits: DocumentLimits = DEFAULT_LIMITS) -> str:
    """The reason of all ways of reading, which must agree."""
    reasons = set()
    for read in (
        lambda: probe_document(source, limits),
        lambda: render_page(source, 1, 50, limits),
        lambda: page_text(source, 1, limits),
        lambda: document_text(source, limits),
    ):
        with pytest.raises(MediaError) as caught:
            read()
        reasons.add((caught.value.reason, caught.value.detail))
    assert len(reasons) == 1
    return ": ".join(reasons.pop())


def test_pages_are_counted_and_measured(tmp_path: Path) -> None:
    data = pdf(SQUARE, SQUARE)
    (tmp_path / "a.pdf").write_bytes(data)
    expected = DocumentInfo(pages=2, sizes=((200.0, 100.0), (200.0, 100.0)))
    assert probe_document(data) == expected
    assert probe_document(tmp_path / "a.pdf") == expected
    assert render_page(tmp_path / "a.pdf", 2, 200).size == (200, 100)


def test_a_file_with_an_odd_name_opens(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"~ \xff.txt")
    path.write_bytes(pdf(SQUARE))
    assert probe_document(path).pages == 1


def test_a_page_is_drawn_over_white() -> None:
    picture = render_page(pdf(SQUARE), 1, 200)
    assert (picture.mode, picture.size) == ("RGB", (200, 100))
    assert picture.getpixel((20, 80)) == RED
    assert picture.getpixel((20, 20)) == picture.getpixel((180, 80)) == WHITE


@pytest.mark.parametrize(
    ("turn", "size", "red", "white"),
    [
        (0, (200, 100), (10, 90), (10, 10)),
        (90, (100, 200), (10, 10), (90, 10)),
        (180, (200, 100), (190, 10), (10, 10)),
        (270, (100, 200), (90, 190), (10, 10)),
    ],
)
def test_rotation_is_applied(turn: int, size: tuple[int, int], red: tuple[int, int], white: tuple[int, int]) -> None:
    # The page is turned clockwise, and the square in its lower left corner with it.
    data = pdf(SQUARE + b" 0 g " + lines("upright"), page=b"/Rotate %d" % turn)
    assert probe_document(data).sizes == ((float(size[0]), float(size[1])),)
    picture = render_page(data, 1, 200)
    assert picture.size == size
    assert picture.getpixel(red) == RED
    assert picture.getpixel(white) == WHITE
    assert page_text(data, 1) == "upright"


@pytest.mark.parametrize("longest", [1, 2, 3, 99, 100, 333, 490, 980, 1001])
@pytest.mark.parametrize("box", ["200 100", "612 792", "595.276 841.89", "8.5 3.3", "14400 7", "0.3 0.1"])
def test_the_longer_side_is_exact(longest: int, box: str) -> None:
    data = pdf(SQUARE, box=f"[0 0 {box}]".encode())
    (width, height), picture = probe_document(data).sizes[0], render_page(data, 1, longest)
    assert max(picture.size) == longest
    assert min(picture.size) >= 1
    assert abs(min(picture.size) - longest * min(width, height) / max(width, height)) <= 1


@pytest.mark.parametrize("longest", [0, -5])
def test_a_picture_of_no_size_is_the_callers_mistake(longest: int) -> None:
    with pytest.raises(ValueError, match="longest_side"):
        render_page(pdf(SQUARE), 1, longest)


def test_the_text_of_pages() -> None:
    data = pdf(lines("First line", "second line"), SQUARE, lines("Last page"))
    assert page_text(data, 1) == "First line\nsecond line"
    assert page_text(data, 2) == ""
    assert page_text(data, 3) == "Last page"
    assert document_text(data) == "First line\nsecond line\n\nLast page"


def test_a_word_broken_at_the_end_of_a_line_stays_as_it_looks() -> None:
    assert page_text(pdf(lines("they are un-", "broken")), 1) == "they are un-\nbroken"


def test_characters_beyond_the_basic_plane() -> None:
    table = b"1 begincodespacerange <00> <FF> endcodespacerange 1 beginbfchar <41> <D83DDE00> endbfchar"
    named = b"<< /Length %d >> stream\n" % len(table) + table + b"\nendstream"
    data = pdf(lines("A"), extra=(named,), font=b"/ToUnicode 4 0 R")
    assert page_text(data, 1) == "\N{GRINNING FACE}"


def test_characters_that_only_steer_are_left_out() -> None:
    assert page_text(pdf(lines(r"a\000b\007c")), 1).isprintable()


def test_a_page_that_is_a_picture_alone_has_no_text() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (60, 40), BLUE).save(buffer, "PDF")
    data = buffer.getvalue()
    assert page_text(data, 1) == document_text(data) == ""
    picture = render_page(data, 1, 60)
    assert picture.size == (60, 40)
    assert picture.getpixel((30, 20))[2] > 240


def test_filled_in_forms_are_drawn() -> None:
    look = b"<< /Type /XObject /Subtype /Form /BBox [0 0 50 50] /Length 27 >> stream\n0 0 1 rg 0 0 50 50 re f    \nendstream"
    field = (
        b"<< /Type /Annot /Subtype /Widget /FT /Tx /T (name) /V (Ann) /F 4 /Rect [100 40 150 90] /AP << /N 4 0 R >> >>"
    )
    data = pdf(SQUARE, page=b"/Annots [5 0 R]", extra=(look, field), catalog=b"/AcroForm << /Fields [5 0 R] >>")
    assert render_page(data, 1, 200).getpixel((125, 35)) == BLUE


def test_a_document_that_needs_a_password_is_refused() -> None:
    data = pdf(lines("hidden"), cipher=Cipher(b"secret"))
    assert reason_of(data) == "media_unreadable: the document is encrypted and needs a password"


def test_a_document_with_an_empty_password_is_read() -> None:
    data = pdf(lines("open to all"), cipher=Cipher(b""))
    assert b"open" not in data
    assert page_text(data, 1) == "open to all"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "0 bytes"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
        (b"not found", "text file"),
        (b"<!DOCTYPE html><html></html>", "HTML"),
        (b"\x89PNG\r\n\x1a\n%%EOF", "PNG"),
        (b"%PDF-1.4\n%%EOF\n", "damaged"),
        (b"%PDF-1.4\n" + b"x" * 3000 + b"\n%%EOF\n", "damaged"),
        (b" " * 1024 + pdf(SQUARE), "not a PDF"),
    ],
)
def test_what_is_no_document_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "a.pdf"
    path.write_bytes(content)
    assert reason_of(path) == reason_of(content)
    assert reason_of(path).startswith("media_unreadable: ")
    assert words in reason_of(path)


def test_a_header_behind_a_little_else_is_found() -> None:
    assert probe_document(b"\n" * 100 + pdf(SQUARE)).pages == 1


def test_missing_files_folders_and_pipes(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pdf")
    assert reason_of(tmp_path / "nothing.pdf").startswith("media_missing")
    assert reason_of(tmp_path).startswith("media_unreadable")
    assert reason_of(tmp_path / "pipe.pdf").startswith("media_unreadable")


def test_a_cut_document_is_refused_wherever_it_ends() -> None:
    whole = pdf(*[lines("a page") for _ in range(20)])
    assert len(whole) > 4000
    for end in range(0, len(whole.rstrip()), 97):
        assert reason_of(whole[:end]).startswith("media_unreadable")


@pytest.mark.parametrize("page", [0, -1, 3, 10**9])
def test_a_page_that_is_not_there(page: int) -> None:
    for read in (lambda: page_text(pdf(SQUARE, SQUARE), page), lambda: render_page(pdf(SQUARE, SQUARE), page, 50)):
        with pytest.raises(MediaError, match="of 2") as caught:
            read()
        assert caught.value.reason == "media_missing"


def test_the_limit_of_pages() -> None:
    data = pdf(SQUARE, SQUARE, SQUARE)
    assert probe_document(data, DocumentLimits(max_pages=3)).pages == 3
    assert reason_of(data, DocumentLimits(max_pages=2)).startswith("media_too_large: 3 pages")


def test_a_document_that_promises_too_many_pages() -> None:
    assert reason_of(pdf(SQUARE, count=20_000)).startswith("media_too_large: 20000 pages")
    with pytest.raises(MediaError) as caught:
        probe_document(pdf(SQUARE, count=5))
    assert caught.value.reason == "media_unreadable"


def test_a_document_without_a_page() -> None:
    assert reason_of(pdf()).startswith("media_unreadable")


def test_the_limit_of_pixels_drawn() -> None:
    data = pdf(SQUARE)
    assert render_page(data, 1, 200, DocumentLimits(max_pixels=20_000)).size == (200, 100)
    with pytest.raises(MediaError) as caught:
        render_page(data, 1, 200, DocumentLimits(max_pixels=19_999))
    assert caught.value.reason == "media_too_large"
    with pytest.raises(MediaError, match="media_too_large"):
        render_page(data, 1, 10**9)


def test_a_huge_picture_on_a_page_is_refused_before_it_is_decoded() -> None:
    picture = (
        b"<< /Type /XObject /Subtype /Image /Width 60000 /Height 60000 /ColorSpace /DeviceGray /BitsPerComponent 8"
        b" /Length 1 >> stream\n\0\nendstream"
    )
    form = b"<< /Type /XObject /Subtype /Form /BBox [0 0 9 9] /Resources << /XObject << /I 4 0 R >> >> /Length 5 >>"
    extra = (picture, form + b" stream\n/I Do\nendstream")
    for name in (b"I", b"F"):
        data = pdf(b"/" + name + b" Do", extra=extra, resources=b"/XObject << /I 4 0 R /F 5 0 R >>")
        assert probe_document(data).pages == 1
        with pytest.raises(MediaError, match="picture on page 1 has 60000x60000") as caught:
            render_page(data, 1, 50)
        assert caught.value.reason == "media_too_large"


def test_threads_take_turns() -> None:
    documents = [pdf(lines(f"document {number}"), box=b"[0 0 %d 100]" % (200 + number)) for number in range(4)]
    wrong: list[str] = []

    def work(number: int) -> None:
        for _ in range(10):
            if page_text(documents[number], 1) != f"document {number}":
                wrong.append("text")
            if render_page(documents[number], 1, 200 + number).size != (200 + number, 100):
                wrong.append("size")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_damage_anywhere_ends_in_a_media_error_or_a_page() -> None:
    whole, chance = pdf(lines("some words"), SQUARE), random.Random(0)
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(chance.randint(1, 8)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        with suppress(MediaError):
            data = bytes(damaged)
            for page in range(1, probe_document(data).pages + 1):
                assert max(render_page(data, page, 40).size) == 40
            document_text(data)
