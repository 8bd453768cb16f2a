"""Pictures come out upright, 8-bit and RGB, or are refused with the right reason."""

from __future__ import annotations

import io
import os
import struct
import threading
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from aria_finetune.errors import MediaError
from aria_finetune.media.images import ImageInfo, ImageLimits, flatten, open_image, probe_image

LIMITS = ImageLimits()
TINY = ImageLimits(min_side=1)
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(width: int = 40, height: int = 24) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return PNG_MAGIC + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def refusal(source: Path | bytes, limits: ImageLimits = LIMITS) -> MediaError:
    """The error of both ways of reading, which must agree."""
    with pytest.raises(MediaError) as probed:
        probe_image(source, limits)
    with pytest.raises(MediaError) as opened:
        open_image(source, limits)
    assert probed.value.reason == opened.value.reason
    return opened.value


UPRIGHT = {
    1: lambda pixels: pixels,
    2: np.fliplr,
    3: lambda pixels: np.rot90(pixels, 2),
    4: np.flipud,
    5: lambda pixels: pixels.transpose(1, 0, 2),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: np.rot90(pixels, 2).transpose(1, 0, 2),
    8: np.rot90,
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})])
def test_exif_orientation_is_applied(kind: str, options: dict[str, Any], orientation: int) -> None:
    stored = noise()
    data = encoded(stored, kind, exif=exif(orientation), **options)
    expected = UPRIGHT[orientation](np.asarray(stored))
    picture = open_image(data, LIMITS)
    np.testing.assert_array_equal(np.asarray(picture), expected)
    info = probe_image(data, LIMITS)
    assert (info.width, info.height) == picture.size == expected.shape[1::-1]
    assert picture.getexif().get(0x0112) is None
    assert not picture.info


@pytest.mark.parametrize("kind", ["JPEG", "AVIF"])
def test_exif_orientation_of_lossy_kinds(kind: str) -> None:
    stored = Image.new("RGB", (60, 40), "red")
    stored.paste("blue", (0, 0, 60, 20))
    data = encoded(stored, kind, exif=exif(6), quality=95)
    picture = open_image(data, LIMITS)
    # Turned clockwise: what lay on top is on the right.
    assert picture.size == (40, 60)
    assert picture.getpixel((35, 30))[2] > 200
    assert picture.getpixel((5, 30))[0] > 200
    assert probe_image(data, LIMITS).width == 40


def test_an_exif_chunk_behind_the_pixels_counts() -> None:
    plain = encoded(noise(), "PNG")
    late = plain[:-12] + chunk(b"eXIf", exif(6).tobytes().removeprefix(b"Exif\0\0")) + plain[-12:]
    assert open_image(late, LIMITS).size == (24, 40)
    assert (probe_image(late, LIMITS).width, probe_image(late, LIMITS).height) == (24, 40)


@pytest.mark.parametrize("orientation", [0, 9, 77])
def test_an_orientation_out_of_range_is_ignored(orientation: int) -> None:
    data = encoded(noise(), "PNG", exif=exif(orientation))
    assert open_image(data, LIMITS).size == (40, 24)
    assert probe_image(data, LIMITS).width == 40


@pytest.mark.filterwarnings("ignore:.*EXIF")
def test_broken_exif_does_not_cost_the_picture() -> None:
    data = encoded(noise(), "PNG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x09garbage")
    assert open_image(data, LIMITS).size == probe_size(data) == (40, 24)


def probe_size(data: bytes) -> tuple[int, int]:
    info = probe_image(data, LIMITS)
    return info.width, info.height


GRADIENT = np.linspace(0, 65535, 32 * 20).astype(np.uint16).reshape(20, 32)


def gradient_as(kind: str) -> bytes:
    if kind == "PPM":
        return b"P5 32 20 65535\n" + GRADIENT.astype(">u2").tobytes()
    if kind == "TIFF big-endian":
        return encoded(Image.frombytes("I;16B", (32, 20), GRADIENT.astype(">u2").tobytes()), "TIFF")
    if kind == "TIFF 32 bits":
        return encoded(Image.fromarray(GRADIENT.astype(np.int32)), "TIFF")
    return encoded(Image.fromarray(GRADIENT), kind)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG2000", "PPM", "TIFF big-endian", "TIFF 32 bits"])
def test_sixteen_bit_grey_is_scaled_not_clipped(kind: str) -> None:
    pixels = np.asarray(open_image(gradient_as(kind), LIMITS))
    expected = np.array([[round(int(value) / 257) for value in row] for row in GRADIENT], np.uint8)
    for channel in range(3):
        np.testing.assert_array_equal(pixels[..., channel], expected)


def test_sixteen_bit_colour_and_alpha_keep_their_scale() -> None:
    colour = struct.pack(">3H", 65535, 32896, 0)
    row = b"\0" + colour * 16
    assert open_image(png(16, 16, 16, 2, row * 16), LIMITS).getpixel((3, 3)) == (255, 128, 0)
    grey_alpha = b"\0" + struct.pack(">2H", 0, 0) * 16
    assert open_image(png(16, 16, 16, 4, grey_alpha * 16), LIMITS).getpixel((3, 3)) == (255, 255, 255)


def test_sixteen_bit_transparency_becomes_white() -> None:
    image = Image.fromarray(np.full((16, 16), 300, np.uint16))
    image.putpixel((0, 0), 2570)
    data = encoded(image, "PNG", transparency=300)
    assert open_image(data, LIMITS).getpixel((5, 5)) == (255, 255, 255)
    assert open_image(data, LIMITS).getpixel((0, 0)) == (10, 10, 10)


@pytest.mark.parametrize("value", [-1, 65536])
def test_wide_integers_are_refused(value: int) -> None:
    data = encoded(Image.fromarray(np.full((16, 16), value, np.int32)), "TIFF")
    with pytest.raises(MediaError, match="media_unreadable"):
        open_image(data, LIMITS)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.0, 1.0, (0, 255)), (0.2, 0.6, (51, 153)), (0.0, 255.0, (0, 255)), (10.4, 20.6, (10, 21))],
)
def test_floats_are_0_to_1_or_0_to_255(low: float, high: float, expected: tuple[int, int]) -> None:
    values = np.full((16, 16), low, np.float32)
    values[0, 0] = high
    picture = open_image(encoded(Image.fromarray(values), "TIFF"), LIMITS)
    assert (picture.getpixel((5, 5))[0], picture.getpixel((0, 0))[0]) == expected


@pytest.mark.parametrize("value", [-0.1, 256.0, float("nan"), float("inf")])
def test_other_floats_are_refused(value: float) -> None:
    values = np.zeros((16, 16), np.float32)
    values[3, 3] = value
    with pytest.raises(MediaError, match="floating-point"):
        open_image(encoded(Image.fromarray(values), "TIFF"), LIMITS)


@pytest.mark.parametrize(
    ("colour", "expected"),
    [
        # white + (colour - white) * alpha / 255, by hand
        ((0, 0, 0, 128), (127, 127, 127)),
        ((200, 100, 0, 51), (244, 224, 204)),
        ((10, 20, 30, 0), (255, 255, 255)),
        ((10, 20, 30, 255), (10, 20, 30)),
    ],
)
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_alpha_lies_over_white(kind: str, colour: tuple[int, ...], expected: tuple[int, ...]) -> None:
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    picture = open_image(encoded(Image.new("RGBA", (16, 16), colour), kind, **options), LIMITS)
    assert picture.mode == "RGB"
    assert picture.getpixel((4, 4)) == expected


def test_grey_with_alpha_lies_over_white() -> None:
    assert open_image(encoded(Image.new("LA", (16, 16), (0, 128)), "PNG"), LIMITS).getpixel((1, 1)) == (127, 127, 127)
    assert flatten(Image.new("LA", (2, 2), (0, 0))).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("image", "transparency"),
    [
        (Image.new("L", (16, 16), 7), 7),
        (Image.new("RGB", (16, 16), (1, 2, 3)), (1, 2, 3)),
        (Image.new("1", (16, 16), 0), 0),
        (Image.new("P", (16, 16), 0), 0),
        (Image.new("P", (16, 16), 0), b"\0"),
    ],
    ids=["grey", "colour", "1-bit", "palette index", "palette alphas"],
)
def test_a_transparent_colour_becomes_white(image: Image.Image, transparency: Any) -> None:
    if image.mode == "P":
        image.putpalette([9, 9, 9] * 256)
    data = encoded(image, "PNG", transparency=transparency)
    assert open_image(data, LIMITS).getpixel((3, 3)) == (255, 255, 255)


def test_palette_alphas_are_blended() -> None:
    image = Image.new("P", (16, 16), 1)
    image.putpalette([255, 0, 0, 0, 0, 0])
    assert open_image(encoded(image, "PNG", transparency=b"\xff\x80"), LIMITS).getpixel((0, 0)) == (127, 127, 127)


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_goes_through_pillow(kind: str) -> None:
    options = {"quality": 100} if kind == "JPEG" else {}
    picture = open_image(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), kind, **options), LIMITS)
    assert np.abs(np.asarray(picture)[8, 8].astype(int) - (255, 0, 0)).max() <= 2


PLAIN = [(mode, kind) for mode in ("1", "L", "P", "RGB") for kind in ("PNG", "GIF", "BMP", "TIFF", "PPM")]
PLAIN.remove(("P", "PPM"))


@pytest.mark.parametrize(("mode", "kind"), PLAIN)
def test_plain_modes_keep_their_pixels(mode: str, kind: str) -> None:
    if mode == "P":
        image = Image.new("P", (20, 20), 1)
        image.putpalette([0, 0, 0, 20, 200, 90])
        expected = (20, 200, 90)
    else:
        image = Image.new("RGB", (20, 20), "white").convert(mode)
        expected = (255, 255, 255)
    picture = open_image(encoded(image, kind), LIMITS)
    assert picture.mode == "RGB"
    assert picture.getpixel((10, 10)) == expected


@pytest.mark.parametrize(
    ("kind", "mime"),
    [
        ("PNG", "image/png"),
        ("JPEG", "image/jpeg"),
        ("WEBP", "image/webp"),
        ("GIF", "image/gif"),
        ("BMP", "image/bmp"),
        ("TIFF", "image/tiff"),
        ("JPEG2000", "image/jp2"),
        ("PPM", "image/x-portable-anymap"),
        ("AVIF", "image/avif"),
    ],
)
def test_the_type_comes_from_the_bytes(tmp_path: Path, kind: str, mime: str) -> None:
    path = tmp_path / "picture.txt"
    path.write_bytes(encoded(noise(), kind))
    assert probe_image(path, LIMITS) == ImageInfo(width=40, height=24, mime=mime, frames=1)
    assert open_image(path, LIMITS).size == (40, 24)


@pytest.mark.parametrize(("kind", "saved_as"), [("GIF", "GIF"), ("WEBP", "WEBP"), ("PNG", "PNG"), ("JPEG", "MPO")])
def test_of_several_frames_the_first_is_taken(kind: str, saved_as: str) -> None:
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "lime", "blue")]
    data = encoded(frames[0], saved_as, save_all=True, append_images=frames[1:])
    assert probe_image(data, LIMITS).frames == 3
    red, green, blue = open_image(data, LIMITS).getpixel((16, 16))
    assert red > 240
    assert max(green, blue) < 15


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000"])
@pytest.mark.parametrize("tolerant", [False, True])
@pytest.mark.filterwarnings("ignore:Truncated File Read")
def test_a_cut_picture_is_refused_whatever_pillow_is_set_to(
    kind: str, tolerant: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", tolerant)
    whole = encoded(noise(120, 90), kind)
    for share in (0.97, 0.6, 0.1):
        with pytest.raises(MediaError) as caught:
            open_image(whole[: int(len(whole) * share)], LIMITS)
        assert caught.value.reason == "media_unreadable"
    assert tolerant is ImageFile.LOAD_TRUNCATED_IMAGES


def test_threads_do_not_disturb_each_others_strictness(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    whole = encoded(noise(200, 200), "JPEG")
    cut = whole[: len(whole) // 2]
    accepted: list[int] = []

    def work() -> None:
        for _ in range(20):
            open_image(whole, LIMITS)
            try:
                open_image(cut, LIMITS)
            except MediaError:
                continue
            accepted.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not accepted
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


def test_flipped_bytes_in_a_png_are_noticed() -> None:
    data = bytearray(encoded(noise(), "PNG"))
    data[len(data) // 2] ^= 0xFF
    with pytest.raises(MediaError, match="media_unreadable"):
        open_image(bytes(data), LIMITS)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "0 bytes"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
        (b"not found", "text file"),
        (b"\xef\xbb\xbfnicht da \xc3\xa4", "text file"),
        (b"<!DOCTYPE html><html></html>", "HTML"),
        (b"  <html>", "HTML"),
        (b"%PDF-1.7\n%\xe2\xe3", "PDF"),
        (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (b"<svg/>", "SVG"),
        (b"PK\x03\x04rest", "ZIP"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "PostScript"),
        (b"8BPS\0\x01", "Photoshop"),
        (b"\0\0\x01\0\x01\0", "icon"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x18ftypisom\0\0\0\0isommp42", "MP4"),
        (b"\x00\x9f\x92\x96", "unknown"),
    ],
)
def test_what_is_no_image_is_named(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(data)
    error = refusal(path)
    assert error.reason == "media_unreadable"
    assert words in error.detail
    assert refusal(data).detail == error.detail


def test_missing_files_folders_and_pipes(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    assert refusal(tmp_path / "nothing.png").reason == "media_missing"
    assert refusal(tmp_path).reason == "media_unreadable"
    assert refusal(tmp_path / "pipe.png").reason == "media_unreadable"


@pytest.mark.parametrize("size", [(1, 1), (13, 100), (100, 13), (15, 3001), (7000, 14)])
def test_small_and_narrow_pictures_are_refused(size: tuple[int, int]) -> None:
    assert refusal(encoded(Image.new("RGB", size), "PNG")).reason == "media_too_small"


@pytest.mark.parametrize("size", [(14, 14), (15, 3000), (2800, 14)])
def test_the_limits_themselves_pass(size: tuple[int, int]) -> None:
    assert open_image(encoded(Image.new("RGB", size), "PNG"), LIMITS).size == size
    assert open_image(encoded(Image.new("RGB", (1, 1)), "PNG"), TINY).size == (1, 1)


@pytest.mark.parametrize("size", [(8001, 8000), (30_000, 30_000), (2_000_000_000, 2)])
def test_a_bomb_is_refused_from_its_header(size: tuple[int, int]) -> None:
    begin = time.monotonic()
    # There is not one pixel behind the header: had it been decoded, the file would be unreadable instead.
    assert refusal(png(*size, 8, 2, b"")).reason == "media_too_large"
    assert time.monotonic() - begin < 1


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "JPEG", "WEBP", "PPM"])
def test_the_pixel_limit_holds_for_every_kind(kind: str) -> None:
    data = encoded(noise(), kind)
    assert refusal(data, ImageLimits(max_pixels=959)).reason == "media_too_large"
    assert open_image(data, ImageLimits(max_pixels=960)).size == (40, 24)


def test_a_picture_beyond_pillows_own_limit_opens_if_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    data = encoded(noise(), "PNG")
    assert open_image(data, LIMITS).size == (40, 24)
    assert probe_image(data, LIMITS).width == 40
    assert Image.MAX_IMAGE_PIXELS == 100


def test_a_90_megapixel_picture_opens_if_asked() -> None:
    side = 9500
    data = png(side, side, 1, 0, (b"\0" + b"\xff" * ((side + 7) // 8)) * side)
    assert refusal(data).reason == "media_too_large"
    assert probe_image(data, ImageLimits(max_pixels=100_000_000)).width == side


def test_probing_reads_no_pixels() -> None:
    whole = encoded(noise(400, 300), "PNG")
    assert probe_image(whole[:100], LIMITS).width == 400
