"""Frames are found, chosen and decoded by presentation time; every frame's colour says which one it is."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from aria_finetune.errors import MediaError
from aria_finetune.media.videos import VideoLimits, choose_times, probe_video, read_frames, timestamp

LIMITS = VideoLimits()
SIZE = (64, 48)
STEP = 8
"""Brightness from one frame to the next, far above what any codec here loses."""


def grey(index: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    return np.full((size[1], size[0], 3), index * STEP, np.uint8)


def index_of(picture: Image.Image) -> int:
    return round(float(np.asarray(picture).mean()) / STEP)


def encode(
    path: Path,
    frames: Iterable[np.ndarray],
    *,
    codec: str = "libx264",
    rate: int = 10,
    milliseconds: Sequence[int] | None = None,
    pixels: str = "yuv420p",
    container: str | None = None,
    options: dict[str, str] | None = None,
    codec_options: dict[str, str] | None = None,
    metadata: dict[str, str] | None = None,
) -> Path:
    frames = list(frames)
    with av.open(str(path), "w", format=container, options=options or {}) as output:
        output.metadata.update(metadata or {})
        stream = output.add_stream(codec, rate=rate, options=codec_options or {})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pixels
        if milliseconds is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for index, array in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(array)
            if milliseconds is not None:
                frame.pts, frame.time_base = milliseconds[index], Fraction(1, 1000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return path


def greys(count: int, size: tuple[int, int] = SIZE) -> list[np.ndarray]:
    return [grey(index, size) for index in range(count)]


def moving(count: int, size: tuple[int, int] = (160, 120)) -> list[np.ndarray]:
    """Frames that don't compress well, so that every packet has some bytes."""
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8) for _ in range(count)]


def packets_of(path: Path) -> list[tuple[int, int]]:
    with av.open(str(path)) as container:
        return [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]


def set_display_matrix(path: Path, a: int, b: int, c: int, d: int) -> None:
    """Write the matrix of ISO 14496-12, section 8.3.2, into the track header of an MP4."""
    data = bytearray(path.read_bytes())
    header = data.index(b"tkhd")
    matrix = header + 4 + 40
    one = 1 << 16
    data[matrix : matrix + 36] = struct.pack(">9i", a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


def refusal(path: Path, limits: VideoLimits = LIMITS) -> MediaError:
    """The error of both ways of reading, which must agree."""
    with pytest.raises(MediaError) as probed:
        probe_video(path, limits)
    with pytest.raises(MediaError):
        read_frames(path, [0.0, 1e6], limits)
    return probed.value


CLIPS: list[tuple[str, dict[str, Any], str]] = [
    ("clip.mp4", {}, "video/mp4"),
    ("clip.mov", {}, "video/quicktime"),
    ("clip.mkv", {}, "video/x-matroska"),
    ("clip.ts", {}, "video/mp2t"),
    ("clip.avi", {}, "video/x-msvideo"),
    ("part2.avi", {"codec": "mpeg4", "codec_options": {"qmax": "2", "bf": "2"}}, "video/x-msvideo"),
    ("part2.mp4", {"codec": "mpeg4", "codec_options": {"qmax": "2", "bf": "2"}}, "video/mp4"),
    ("clip.mpg", {"codec": "mpeg2video", "rate": 25}, "video/mpeg"),
    ("raw.h264", {"container": "h264", "rate": 25}, "video/h264"),
    ("clip.gif", {"codec": "gif", "pixels": "gray"}, "image/gif"),
    ("clip.png", {"codec": "apng", "pixels": "rgb24", "container": "apng"}, "image/apng"),
]


@pytest.mark.parametrize(("name", "options", "mime"), CLIPS, ids=[name for name, _, _ in CLIPS])
def test_every_frame_is_found_and_read(tmp_path: Path, name: str, options: dict[str, Any], mime: str) -> None:
    path = encode(tmp_path / name, greys(30), **options)
    rate = options.get("rate", 10)
    info = probe_video(path, LIMITS)
    assert (info.width, info.height, info.rotation, info.frames, info.mime) == (64, 48, 0, 30, mime)
    assert info.times == pytest.approx([index / rate for index in range(30)], abs=2e-3)
    assert info.duration == pytest.approx(30 / rate, abs=0.05)
    pictures = read_frames(path, info.times, LIMITS)
    assert [index_of(picture) for picture in pictures] == list(range(30))
    assert {(picture.mode, picture.size) for picture in pictures} == {("RGB", SIZE)}


@pytest.mark.parametrize(
    ("name", "codec", "pixels"),
    [
        ("clip.webm", "libvpx", "yuv420p"),
        ("clip9.webm", "libvpx-vp9", "yuv420p"),
        ("clip10.mp4", "libx265", "yuv420p10le"),
        ("clip10.mkv", "libx264", "yuv420p10le"),
        ("av1.mp4", "libsvtav1", "yuv420p"),
    ],
)
def test_other_codecs(tmp_path: Path, name: str, codec: str, pixels: str) -> None:
    if codec not in av.codecs_available:
        pytest.skip(f"FFmpeg without {codec}")
    # Alternate reference frames are packets that show nothing.
    codec_options = {"auto-alt-ref": "1", "lag-in-frames": "16"} if codec.startswith("libvpx") else {}
    path = encode(tmp_path / name, greys(30), codec=codec, pixels=pixels, codec_options=codec_options)
    info = probe_video(path, LIMITS)
    assert info.frames == 30
    assert [index_of(picture) for picture in read_frames(path, info.times, LIMITS)] == list(range(30))
    assert info.mime == ("video/webm" if name.endswith("webm") else info.mime)


def test_variable_rate_goes_by_presentation_time(tmp_path: Path) -> None:
    milliseconds = [0, 100, 200, 1000, 5000, 9000]
    path = encode(tmp_path / "clip.mkv", greys(6), milliseconds=milliseconds)
    info = probe_video(path, LIMITS)
    assert info.times == pytest.approx([value / 1000 for value in milliseconds], abs=2e-3)
    # The clip ends at 10.8 s, so the middles of three stretches are 1.8, 5.4 and 9.0 s.
    chosen = choose_times(info.times, 3)
    assert [index_of(picture) for picture in read_frames(path, chosen, LIMITS)] == [3, 4, 5]


def test_reading_keeps_the_order_that_was_asked(tmp_path: Path) -> None:
    path = encode(tmp_path / "clip.mp4", greys(20))
    pictures = read_frames(path, [1.9, 0.0, 0.7, 0.7], LIMITS)
    assert [index_of(picture) for picture in pictures] == [19, 0, 7, 7]
    assert read_frames(path, [], LIMITS) == []


def test_times_count_from_the_first_frame(tmp_path: Path) -> None:
    path = encode(tmp_path / "late.mkv", greys(5), milliseconds=[7000, 7100, 7200, 7300, 7400])
    info = probe_video(path, LIMITS)
    assert info.times == pytest.approx([0, 0.1, 0.2, 0.3, 0.4], abs=2e-3)
    assert index_of(read_frames(path, [info.times[3]], LIMITS)[0]) == 3


def test_a_time_without_a_frame_is_refused(tmp_path: Path) -> None:
    path = encode(tmp_path / "clip.mp4", greys(5))
    for time in (0.05, 99.0):
        with pytest.raises(MediaError, match="no frame at") as caught:
            read_frames(path, [0.0, time], LIMITS)
        assert caught.value.reason == "media_unreadable"


# The matrix shows the stored point (p, q) at (a p + c q, b p + d q). A phone held upright writes (0, 1, -1, 0):
# what is stored at the top is shown on the right.
MATRICES = {
    (1, 0, 0, 1): (0, lambda pixels: pixels),
    (0, 1, -1, 0): (270, lambda pixels: np.rot90(pixels, -1)),
    (-1, 0, 0, -1): (180, lambda pixels: np.rot90(pixels, 2)),
    (0, -1, 1, 0): (90, np.rot90),
    (-1, 0, 0, 1): (0, np.fliplr),
    (1, 0, 0, -1): (0, np.flipud),
    (0, 1, 1, 0): (0, lambda pixels: pixels.transpose(1, 0, 2)),
    (0, -1, -1, 0): (0, lambda pixels: np.rot90(pixels, 2).transpose(1, 0, 2)),
}


@pytest.mark.parametrize("matrix", MATRICES, ids=str)
def test_the_display_matrix_is_applied(tmp_path: Path, matrix: tuple[int, int, int, int]) -> None:
    stored = np.zeros((48, 64, 3), np.uint8)
    stored[:16] = (255, 0, 0)
    stored[16:, :20] = (0, 0, 255)
    path = encode(tmp_path / "clip.mp4", [stored] * 3)
    plain = np.asarray(read_frames(path, [0.0], LIMITS)[0])
    assert np.abs(plain.astype(int) - stored).mean() < 8
    set_display_matrix(path, *matrix)
    rotation, turned = MATRICES[matrix]
    expected = turned(plain)
    info = probe_video(path, LIMITS)
    assert info.rotation == rotation
    assert (info.width, info.height) == expected.shape[1::-1]
    np.testing.assert_array_equal(np.asarray(read_frames(path, [0.0], LIMITS)[0]), expected)
    a, b, c, d = matrix
    assert ("the stream is mirrored" in info.notes) == (a * d - b * c < 0)


def test_a_slanted_matrix_is_noted_and_left(tmp_path: Path) -> None:
    path = encode(tmp_path / "clip.mp4", greys(3))
    set_display_matrix(path, 1, 1, -1, 1)
    info = probe_video(path, LIMITS)
    assert (info.width, info.height, info.rotation) == (64, 48, 0)
    assert any("quarter turns" in note for note in info.notes)


def test_transparent_parts_of_a_gif_are_white(tmp_path: Path) -> None:
    image = Image.new("P", (32, 32), 0)
    image.putpalette([9, 9, 9, 200, 0, 0])
    image.paste(1, (0, 0, 16, 32))
    path = tmp_path / "clip.gif"
    image.save(path, transparency=0, save_all=True, append_images=[image.rotate(90)], duration=100)
    picture = read_frames(path, [0.0], LIMITS)[0]
    assert picture.getpixel((24, 16)) == (255, 255, 255)
    assert picture.getpixel((8, 16)) == (200, 0, 0)


def test_a_colour_matrix_is_honoured(tmp_path: Path) -> None:
    path = tmp_path / "hd.mp4"
    colour = (200, 30, 90)
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.colorspace = 1
        frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), colour, np.uint8))
        output.mux(stream.encode(frame.reformat(format="yuv420p", dst_colorspace="itu709")))
        output.mux(stream.encode())
    pixel = read_frames(path, [0.0], LIMITS)[0].getpixel((30, 20))
    assert np.abs(np.subtract(pixel, colour)).max() <= 3


def test_frames_cut_off_by_an_edit_list_do_not_count(tmp_path: Path) -> None:
    path = encode(tmp_path / "clip.mp4", greys(30), codec_options={"bf": "0"})
    data = bytearray(path.read_bytes())
    entry = data.index(b"elst") + 12
    # Show from the sixth frame on, though the first five stay in the file.
    media_time = struct.unpack(">i", data[entry + 4 : entry + 8])[0] + 5 * 1024
    data[entry + 4 : entry + 8] = struct.pack(">i", media_time)
    path.write_bytes(data)
    info = probe_video(path, LIMITS)
    assert info.frames == 25
    assert any("promises 30" in note for note in info.notes)
    assert [index_of(picture) for picture in read_frames(path, info.times, LIMITS)] == list(range(5, 30))


def test_a_stream_joined_in_the_middle_starts_at_its_first_key_frame(tmp_path: Path) -> None:
    options = {"g": "10", "keyint_min": "10", "sc_threshold": "0", "bf": "2"}
    path = encode(tmp_path / "clip.ts", greys(30), codec_options=options)
    data = path.read_bytes()
    # Transport packets are 188 bytes; keep the tables in front and drop the first key frame with what follows.
    drop_to = packets_of(path)[4][0] // 188 * 188
    path.write_bytes(data[: 188 * 3] + data[drop_to:])
    info = probe_video(path, LIMITS)
    indices = [index_of(picture) for picture in read_frames(path, info.times, LIMITS)]
    assert indices == list(range(30 - len(indices), 30))
    assert 18 <= len(indices) <= 20


def test_several_video_streams(tmp_path: Path) -> None:
    path = tmp_path / "two.mkv"
    with av.open(str(path), "w") as output:
        streams = [output.add_stream("libx264", rate=10) for _ in range(2)]
        for stream, size in zip(streams, [(64, 48), (32, 32)], strict=True):
            stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for index in range(5):
            for stream in streams:
                output.mux(stream.encode(av.VideoFrame.from_ndarray(grey(index, (stream.width, stream.height)))))
        for stream in streams:
            output.mux(stream.encode())
    info = probe_video(path, LIMITS)
    assert (info.width, info.height, info.frames) == (64, 48, 5)
    assert info.notes == ("2 video streams, the first is used",)


def test_a_stream_that_appears_in_mid_file_does_no_harm(tmp_path: Path) -> None:
    path = encode(tmp_path / "clip.ts", greys(10))
    with_sound = tmp_path / "sound.ts"
    with av.open(str(with_sound), "w") as output:
        picture, sound = output.add_stream("libx264", rate=10), output.add_stream("aac", rate=8000)
        picture.width, picture.height, picture.pix_fmt = 64, 48, "yuv420p"
        for index in range(10, 30):
            frame = av.VideoFrame.from_ndarray(grey(index))
            # Well behind the first part, whose clock the muxer starts elsewhere.
            frame.pts, frame.time_base = index + 10, Fraction(1, 10)
            output.mux(picture.encode(frame))
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 8000
        output.mux(sound.encode(silence))
        output.mux([*picture.encode(), *sound.encode()])
    path.write_bytes(path.read_bytes() + with_sound.read_bytes())
    info = probe_video(path, LIMITS)
    assert info.frames == 30
    assert [index_of(picture) for picture in read_frames(path, info.times, LIMITS)] == list(range(30))


def test_pixels_that_are_not_square_are_noted(tmp_path: Path) -> None:
    path = tmp_path / "wide.mp4"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.sample_aspect_ratio = Fraction(4, 3)
        output.mux(stream.encode(av.VideoFrame.from_ndarray(grey(1))))
        output.mux(stream.encode())
    info = probe_video(path, LIMITS)
    assert (info.width, info.height) == SIZE
    assert any("4:3" in note for note in info.notes)


def test_metadata_in_an_old_encoding_does_no_harm(tmp_path: Path) -> None:
    path = encode(tmp_path / "clip.mp4", greys(5), metadata={"title": "Abcdef"})
    data = path.read_bytes()
    assert data.count(b"Abcdef") == 1
    path.write_bytes(data.replace(b"Abcdef", b"\xc4\xe4\xff\xfeef"))
    assert probe_video(path, LIMITS).frames == 5


def test_names_that_mean_something_to_ffmpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("clip%03d.mp4", "concat:clip.mp4", "http:clip.mp4", "a b'#?.mp4", "\u00e4.mp4"):
        path = tmp_path / name
        encode(tmp_path / "plain.mp4", greys(3)).rename(path)
        assert probe_video(path, LIMITS).frames == 3
    monkeypatch.chdir(tmp_path)
    assert probe_video(Path("concat:clip.mp4"), LIMITS).frames == 3


def test_audio_only(tmp_path: Path) -> None:
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        output.mux(stream.encode(frame))
        output.mux(stream.encode())
    error = refusal(path)
    assert (error.reason, error.detail) == ("no_video_stream", "no moving pictures, only audio")


def test_a_video_without_frames(tmp_path: Path) -> None:
    path = tmp_path / "none.avi"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        output.start_encoding()
    assert refusal(path).reason == "zero_frames"


def test_cut_files_are_refused(tmp_path: Path) -> None:
    variants: list[tuple[str, dict[str, Any]]] = [
        ("front.mp4", {"options": {"movflags": "faststart"}}),
        ("back.mp4", {}),
        ("clip.mkv", {}),
        ("clip.avi", {"codec": "mpeg4"}),
    ]
    for name, options in variants:
        path = encode(tmp_path / name, moving(60), **options)
        data = path.read_bytes()
        assert probe_video(path, LIMITS).frames == 60
        for share in (0.5, 0.7):
            path.write_bytes(data[: int(len(data) * share)])
            assert refusal(path).reason == "media_unreadable", (name, share)


def test_an_mp4_cut_between_two_frames_is_refused(tmp_path: Path) -> None:
    path = encode(tmp_path / "clip.mp4", moving(20), options={"movflags": "faststart"})
    position, _ = packets_of(path)[10]
    path.write_bytes(path.read_bytes()[:position])
    assert "cut" in refusal(path).detail


def test_damage_spoils_only_what_builds_on_it(tmp_path: Path) -> None:
    options = {"g": "10", "keyint_min": "10", "sc_threshold": "0", "bf": "0"}
    path = encode(tmp_path / "clip.mp4", moving(30), codec_options=options)
    position, size = packets_of(path)[13]
    data = bytearray(path.read_bytes())
    data[position + 5 : position + size] = np.random.default_rng(0).bytes(size - 5)
    path.write_bytes(data)
    info = probe_video(path, LIMITS)
    assert len(read_frames(path, [*info.times[:13], *info.times[20:]], LIMITS)) == 23
    for index in (13, 14, 19):
        with pytest.raises(MediaError, match="media_unreadable"):
            read_frames(path, [info.times[index]], LIMITS)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "0 bytes"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"just text\n" * 50, "text file"),
        (b"%PDF-1.7", "PDF"),
        (b"\x89PNG\r\n\x1a\nbroken", "PNG"),
    ],
)
def test_what_is_no_video_is_named(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(data)
    error = refusal(path)
    assert error.reason == "media_unreadable"
    assert words in error.detail


def test_a_playlist_opens_nothing(tmp_path: Path) -> None:
    clip = encode(tmp_path / "clip.ts", greys(5))
    head = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n"
    for name, text in {
        "list.m3u8": f"{head}{clip}\n#EXT-X-ENDLIST\n",
        "list.mp4": f"{head}{clip}\n#EXT-X-ENDLIST\n",
        "list.txt": f"ffconcat version 1.0\nfile {clip}\n",
    }.items():
        path = tmp_path / name
        path.write_text(text)
        assert refusal(path).reason == "media_unreadable"


def test_a_still_image_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "still.mp4"
    Image.new("RGB", (32, 32)).save(path, "JPEG")
    assert "JPEG" in refusal(path).detail


def test_an_unknown_codec(tmp_path: Path) -> None:
    path = encode(tmp_path / "clip.mp4", greys(3))
    path.write_bytes(path.read_bytes().replace(b"avc1", b"zzzz"))
    assert "decoder" in refusal(path).detail


def test_missing_files_and_folders(tmp_path: Path) -> None:
    assert refusal(tmp_path / "nothing.mp4").reason == "media_missing"
    assert refusal(tmp_path).reason == "media_unreadable"


def test_limits(tmp_path: Path) -> None:
    path = encode(tmp_path / "clip.mp4", greys(5))
    assert refusal(path, VideoLimits(max_pixels=64 * 48 - 1)).reason == "media_too_large"
    assert probe_video(path, VideoLimits(max_pixels=64 * 48, max_frames=5)).frames == 5
    with pytest.raises(MediaError, match="media_too_large"):
        probe_video(path, VideoLimits(max_frames=4))


def seconds(count: int) -> list[float]:
    return [float(index) for index in range(count)]


@pytest.mark.parametrize(
    ("frames", "asked", "chosen"),
    [
        # 15 s in eight stretches of 1.875 s; their middles are 0.94, 2.81, 4.69, ... 14.06
        (15, 8, [0, 2, 4, 6, 8, 10, 12, 14]),
        # middles 6.25, 18.75, ... 93.75
        (100, 8, [6, 18, 31, 43, 56, 68, 81, 93]),
        (16, 8, [1, 3, 5, 7, 9, 11, 13, 15]),
        (10, 1, [5]),
        (10, 3, [1, 5, 8]),
        (8, 8, [0, 1, 2, 3, 4, 5, 6, 7]),
        (3, 8, [0, 1, 2]),
        (1, 8, [0]),
        (9, 8, [0, 1, 2, 3, 5, 6, 7, 8]),
    ],
)
def test_choice_spans_the_clip(frames: int, asked: int, chosen: list[int]) -> None:
    assert choose_times(seconds(frames), asked) == [float(index) for index in chosen]


@pytest.mark.parametrize(
    ("start", "end", "asked", "chosen"),
    [
        (10, 20, 5, [11, 13, 15, 17, 19]),
        (10, None, 2, [32, 77]),
        (None, 10, 2, [2, 7]),
        (90, 1000, 2, [92, 97]),
        (-5, 10, 2, [2, 7]),
        (10.5, 12.5, 8, [10, 11, 12]),
        (10, 12, 8, [10, 11]),
        (10.2, 10.4, 8, [10]),
        (99.5, None, 8, [99]),
    ],
)
def test_choice_within_a_clip(start: float | None, end: float | None, asked: int, chosen: list[int]) -> None:
    assert choose_times(seconds(100), asked, start, end) == [float(index) for index in chosen]


@pytest.mark.parametrize(
    ("start", "end"), [(100, None), (500, 600), (20, 10), (10, 10), (None, 0), (None, -1), (float("nan"), None)]
)
def test_an_empty_clip_is_refused(start: float | None, end: float | None) -> None:
    with pytest.raises(MediaError, match="zero_frames"):
        choose_times(seconds(100), 4, start, end)


def test_no_frames_and_no_wish() -> None:
    with pytest.raises(MediaError, match="zero_frames"):
        choose_times([], 4)
    with pytest.raises(ValueError, match="at least 1"):
        choose_times([0.0], 0)


def test_choice_by_time_not_by_index() -> None:
    # Fifty frames in the first five seconds, then one every ten; the clip ends at 91.6 s,
    # a mean gap after the last. The middles are 11.4, 34.3, 57.2 and 80.1 s.
    times = [index / 10 for index in range(50)] + [10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0]
    chosen = choose_times(times, 4)
    assert chosen == [10.0, 30.0, 50.0, 80.0]


def test_one_long_frame_does_not_come_twice() -> None:
    times = [0.0, 60.0, 60.1, 60.2, 60.3, 60.4, 60.5, 60.6, 60.7, 60.8]
    chosen = choose_times(times, 4)
    assert len(set(chosen)) == 4
    assert chosen == sorted(chosen)
    assert chosen[0] == 0.0


@pytest.mark.parametrize("count", [1, 2, 3, 7, 15, 16, 30, 97])
@pytest.mark.parametrize("asked", [1, 2, 8, 16, 64])
def test_choice_has_as_many_different_frames_as_there_can_be(count: int, asked: int) -> None:
    generator = np.random.default_rng(count * 1000 + asked)
    times = np.cumsum(generator.exponential(1.0, count)).tolist()
    for start, end in ((None, None), (times[0], times[-1] + 9), (None, times[-1])):
        if end == times[0]:
            continue
        chosen = choose_times(times, asked, start, end)
        inside = [time for time in times if end is None or time < end]
        assert len(chosen) == len(set(chosen)) == min(asked, len(inside))
        assert chosen == sorted(chosen)
        assert set(chosen) <= set(inside)


def test_rounding_does_not_make_the_steps_uneven() -> None:
    # At 30 frames a second the middles fall exactly on frames, whose times are not exact.
    for count in (16, 60, 300):
        times = [float(Fraction(index, 30)) for index in range(count)]
        chosen = choose_times(times, count // 2)
        assert chosen == times[1::2]


@pytest.mark.parametrize(
    ("moment", "shown"),
    [(0, "[00:00]"), (0.99, "[00:00]"), (61.5, "[01:01]"), (3599.999, "[59:59]"), (6000, "[100:00]")],
)
def test_timestamp(moment: float, shown: str) -> None:
    assert timestamp(moment) == shown
