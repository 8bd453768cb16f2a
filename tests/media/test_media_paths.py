"""References are resolved inside the media roots or refused, whatever they try."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import pytest

from aria_finetune.errors import MediaError
from aria_finetune.media.paths import MediaRoots, decode_data_uri, is_data_uri, require_regular_file, resolve_media


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "images").mkdir(parents=True)
    (root / "a.jpg").write_bytes(b"a")
    (root / "images" / "b.jpg").write_bytes(b"b")
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    return root


def refused(reference: str, roots: list[Path]) -> MediaError:
    with pytest.raises(MediaError) as caught:
        resolve_media(reference, roots)
    return caught.value


@pytest.mark.parametrize("reference", ["images/b.jpg", "./images/b.jpg", "images/../images/b.jpg", "images//b.jpg"])
def test_a_relative_reference_is_found(root: Path, reference: str) -> None:
    assert resolve_media(reference, [root]) == root / "images" / "b.jpg"


def test_a_parent_step_inside_the_root_passes(root: Path) -> None:
    assert resolve_media("images/../a.jpg", [root]) == root / "a.jpg"


def test_the_first_root_that_has_the_file_wins(root: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "a.jpg").write_bytes(b"other")
    (other / "c.jpg").write_bytes(b"c")
    assert resolve_media("a.jpg", [root, other]) == root / "a.jpg"
    assert resolve_media("a.jpg", [other, root]) == other / "a.jpg"
    assert resolve_media("c.jpg", [root, other]) == other / "c.jpg"


def test_an_absolute_reference_must_lie_in_a_root(root: Path, tmp_path: Path) -> None:
    assert resolve_media(str(root / "a.jpg"), [root]) == root / "a.jpg"
    assert refused(str(tmp_path / "secret.jpg"), [root]).reason == "media_unsafe_path"
    assert refused("/etc/passwd", [root]).reason == "media_unsafe_path"
    assert refused("//etc/passwd", [root]).reason == "media_unsafe_path"


@pytest.mark.parametrize(
    "reference", ["../secret.jpg", "images/../../secret.jpg", "../../../../etc/passwd", "../nothing"]
)
def test_a_way_out_is_refused(root: Path, reference: str) -> None:
    assert refused(reference, [root]).reason == "media_unsafe_path"


def test_a_sibling_whose_name_begins_like_the_root_is_outside(root: Path, tmp_path: Path) -> None:
    (tmp_path / "root-2").mkdir()
    (tmp_path / "root-2" / "a.jpg").write_bytes(b"a")
    assert refused("../root-2/a.jpg", [root]).reason == "media_unsafe_path"


def test_a_way_from_one_root_into_another_passes(root: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    assert resolve_media("../root/a.jpg", [other, root]) == root / "a.jpg"


def test_symlinks_are_judged_by_where_they_lead(root: Path, tmp_path: Path) -> None:
    (root / "inside.jpg").symlink_to("images/b.jpg")
    (root / "outside.jpg").symlink_to(tmp_path / "secret.jpg")
    (root / "folder").symlink_to(tmp_path)
    (root / "loop.jpg").symlink_to("loop.jpg")
    assert resolve_media("inside.jpg", [root]) == root / "images" / "b.jpg"
    assert refused("outside.jpg", [root]).reason == "media_unsafe_path"
    assert refused("folder/secret.jpg", [root]).reason == "media_unsafe_path"
    assert refused("loop.jpg", [root]).reason == "media_unreadable"


def test_a_root_may_itself_be_a_symlink(root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(root)
    assert resolve_media("a.jpg", [tmp_path / "link"]) == root / "a.jpg"
    assert resolve_media(str(tmp_path / "link" / "a.jpg"), [tmp_path / "link"]) == root / "a.jpg"


@pytest.mark.parametrize(
    "reference",
    ["a\0.jpg", "file:///etc/passwd", "FILE://a.jpg", "x" * 300 + ".jpg", "x/" * 3000 + "a.jpg", "\ud800.jpg"],
)
def test_unusable_names_are_refused(root: Path, reference: str) -> None:
    error = refused(reference, [root])
    assert error.reason == "media_unsafe_path"
    assert len(error.detail) < 400
    assert error.detail.isascii()


@pytest.mark.parametrize(
    ("reference", "shown"),
    [
        ("https://user:password@example.org/a.jpg?token=hidden", "https://example.org"),
        ("HTTP://example.org:8080/a.jpg", "http://example.org"),
        (" http://example.org/a.jpg", "http://example.org"),
        ("s3://bucket/key.jpg", "s3://bucket"),
        ("gs://bucket/key.jpg?X-Signature=hidden", "gs://bucket"),
        ("hdfs://user:password@[broken/a.jpg", "hdfs://"),
    ],
)
def test_urls_are_remote_and_not_echoed(root: Path, reference: str, shown: str) -> None:
    error = refused(reference, [root])
    assert error.reason == "media_remote"
    assert error.detail.startswith(f"{shown} ")
    assert not {"hidden", "password"} & set(error.detail.replace("/", " ").replace(":", " ").split())
    assert "hidden" not in error.detail
    assert "password" not in error.detail


def test_a_missing_file_names_the_roots(root: Path, tmp_path: Path) -> None:
    error = refused("nothing.jpg", [root, tmp_path])
    assert error.reason == "media_missing"
    assert str(root) in error.detail
    assert str(tmp_path) in error.detail
    assert "nothing.jpg" in error.detail


@pytest.mark.parametrize("reference", ["", "  ", "a.jpg/b.jpg", "nowhere/../../root/nothing.jpg"])
def test_what_names_nothing_is_missing(root: Path, reference: str) -> None:
    assert refused(reference, [root]).reason == "media_missing"


def test_what_was_found_once_is_judged_anew(root: Path, tmp_path: Path) -> None:
    roots = MediaRoots([root])
    assert roots.find("images/b.jpg") == str(root / "images" / "b.jpg")
    (root / "images" / "b.jpg").unlink()
    with pytest.raises(MediaError, match="media_missing"):
        roots.find("images/b.jpg")
    (root / "images" / "b.jpg").symlink_to(tmp_path / "secret.jpg")
    with pytest.raises(MediaError, match="media_unsafe_path"):
        roots.find("images/b.jpg")
    (root / "images" / "b.jpg").unlink()
    (root / "images" / "b.jpg").symlink_to("../a.jpg")
    assert roots.find("images/b.jpg") == str(root / "a.jpg")


def test_a_folder_that_is_a_link_is_followed_every_time(root: Path, tmp_path: Path) -> None:
    (root / "inside").symlink_to("images")
    (root / "outside").symlink_to(tmp_path)
    roots = MediaRoots([root])
    for _ in range(2):
        assert roots.find("inside/b.jpg") == str(root / "images" / "b.jpg")
        assert roots.find("inside/../a.jpg") == str(root / "a.jpg")
        with pytest.raises(MediaError, match="media_unsafe_path"):
            roots.find("outside/secret.jpg")


def test_a_root_may_be_that_of_the_file_system(root: Path) -> None:
    assert resolve_media(str(root / "a.jpg"), [Path("/")]) == root / "a.jpg"
    assert resolve_media(str(root / "a.jpg")[1:], [Path("/")]) == root / "a.jpg"
    assert MediaRoots([Path("/")]).name("etc/passwd") == "/etc/passwd"


@pytest.mark.parametrize(
    ("reference", "named"),
    [("images/b.jpg", "images/b.jpg"), ("./x/../nothing.jpg", "nothing.jpg"), ("../root/a.jpg", "a.jpg")],
)
def test_a_name_is_made_without_looking(root: Path, reference: str, named: str) -> None:
    assert MediaRoots([root, root / "images"]).name(reference) == str(root / named)
    assert MediaRoots([root]).name(str(root / "images" / "nothing.jpg")) == str(root / "images" / "nothing.jpg")


@pytest.mark.parametrize(
    "reference", ["../secret.jpg", "../root-2/a.jpg", "/etc/passwd", "s3://bucket/a.jpg", "a\0.jpg", "", "x" * 300]
)
def test_what_names_no_file_of_a_root(root: Path, reference: str) -> None:
    assert MediaRoots([root]).name(reference) is None
    assert MediaRoots([]).name("a.jpg") is None


def test_without_roots_everything_is_missing() -> None:
    assert refused("a.jpg", []).reason == "media_missing"


def test_folders_and_pipes_are_not_opened(root: Path) -> None:
    os.mkfifo(root / "pipe.jpg")
    assert "folder" in refused("images", [root]).detail
    assert "folder" in refused(".", [root]).detail
    assert "regular" in refused("pipe.jpg", [root]).detail
    assert refused("pipe.jpg", [root]).reason == "media_unreadable"
    with pytest.raises(MediaError, match="regular"):
        require_regular_file(root / "pipe.jpg")
    with pytest.raises(MediaError, match="media_missing"):
        require_regular_file(root / "nothing.jpg")


def test_a_folder_in_one_root_does_not_hide_a_file_in_the_next(root: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    (other / "a.jpg").mkdir(parents=True)
    assert resolve_media("a.jpg", [other, root]) == root / "a.jpg"


@pytest.mark.parametrize("header", ["data:image/png;base64,", "DATA:;BASE64,", "data:image/png;charset=x;base64,"])
def test_a_data_uri_is_decoded_whatever_type_it_declares(header: str) -> None:
    data = bytes(range(256))
    reference = header + base64.b64encode(data).decode()
    assert is_data_uri(reference)
    assert decode_data_uri(reference) == data


@pytest.mark.parametrize(
    "reference",
    [
        "data:image/png;base64,",
        "data:image/png,abcd",
        "data:image/png;base64",
        "data:image/png;base64,AAA",
        "data:image/png;base64,AA AA",
        "data:image/png;base64,AAAA\n",
        "data:image/png;base64,AA-_",
        "data:image/png;base64,\u00e4AAA",
        "data:image/png;base64,AA%3D%3D",
        "image.png",
    ],
)
def test_a_bad_data_uri_is_unreadable(reference: str) -> None:
    with pytest.raises(MediaError) as caught:
        decode_data_uri(reference)
    assert caught.value.reason == "media_unreadable"


@pytest.mark.parametrize("length", [1, 2, 3, 10, 11, 12])
def test_the_size_of_a_data_uri_is_capped(length: int) -> None:
    reference = "data:;base64," + base64.b64encode(b"x" * length).decode()
    assert decode_data_uri(reference, max_bytes=length) == b"x" * length
    with pytest.raises(MediaError, match="limit"):
        decode_data_uri(reference, max_bytes=length - 1)


def test_a_long_data_uri_is_not_repeated_in_the_message() -> None:
    with pytest.raises(MediaError) as caught:
        decode_data_uri("data:image/png;base64," + "!" * 100_000)
    assert len(caught.value.detail) < 300
