"""Seals: every file absent, empty, cut, grown or flipped is found; a full disk leaves nothing half-written."""

from __future__ import annotations

import errno
import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from aria_finetune.checkpoint.sealing import (
    MANIFEST_FILE,
    BrokenSeal,
    check_seal,
    is_sealed,
    read_manifest,
    sealed_bytes,
    sealed_folder,
)
from aria_finetune.errors import UserError


def write_parts(folder: Path) -> None:
    """Files as a checkpoint has them: tensors, JSON, a file in a folder, an empty one."""
    save_file({"weight": torch.arange(64, dtype=torch.float32)}, folder / "adapter.safetensors")
    (folder / "state.json").write_text('{"step": 3}\n')
    (folder / "inner").mkdir()
    (folder / "inner" / "notes.txt").write_text("notes")
    (folder / "empty.txt").touch()


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    path = tmp_path / "checkpoint-3"
    with sealed_folder(path) as folder:
        write_parts(folder)
    return path


def test_a_sealed_folder_is_sound_and_counted(sealed: Path) -> None:
    check_seal(sealed)
    assert is_sealed(sealed)
    files = read_manifest(sealed)
    assert set(files) == {"adapter.safetensors", "state.json", "inner/notes.txt", "empty.txt"}
    assert sealed_bytes(sealed) == sum((sealed / name).stat().st_size for name in files)
    assert [path.name for path in sealed.parent.iterdir()] == ["checkpoint-3"]


def test_a_file_that_was_added_later_is_not_the_seals_business(sealed: Path) -> None:
    (sealed / "optimizer.pt").write_bytes(b"\x80\x04.")
    check_seal(sealed)


def test_a_file_that_can_not_be_read_is_named(sealed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (sealed / "state.json").unlink()
    (sealed / "state.json").symlink_to(sealed / "state.json")
    with pytest.raises(BrokenSeal, match=r"state\.json"):
        check_seal(sealed)
    (sealed / "state.json").unlink()
    (sealed / "state.json").write_text('{"step": 3}\n')

    def unreadable(path: Path) -> str:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("aria_finetune.checkpoint.sealing.hash_file", unreadable)
    with pytest.raises(BrokenSeal, match=r"adapter\.safetensors can't be read: Input/output error"):
        check_seal(sealed)


def test_what_a_process_of_our_own_number_left_does_not_stand_in_the_way(tmp_path: Path) -> None:
    """In a container every start has the same process number."""
    left = tmp_path / f".checkpoint-1.partial-{os.getpid()}"
    left.mkdir()
    (left / "half.txt").touch()
    with sealed_folder(tmp_path / "checkpoint-1") as folder:
        (folder / "whole.txt").touch()
    assert set(read_manifest(tmp_path / "checkpoint-1")) == {"whole.txt"}


NAMES = ["adapter.safetensors", "state.json", "inner/notes.txt", MANIFEST_FILE]


@pytest.mark.parametrize("name", [*NAMES, "empty.txt"])
def test_a_missing_file_is_named(sealed: Path, name: str) -> None:
    (sealed / name).unlink()
    with pytest.raises(BrokenSeal, match=name):
        check_seal(sealed)
    assert not is_sealed(sealed)


@pytest.mark.parametrize("name", NAMES)
def test_an_emptied_file_is_named(sealed: Path, name: str) -> None:
    (sealed / name).write_bytes(b"")
    with pytest.raises(BrokenSeal, match=name):
        check_seal(sealed)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("tenth", range(10))
def test_a_cut_file_is_named(sealed: Path, name: str, tenth: int) -> None:
    size = (sealed / name).stat().st_size
    os.truncate(sealed / name, max(size * tenth // 10, 0) if tenth else size - 1)
    with pytest.raises(BrokenSeal, match=name):
        check_seal(sealed)


@pytest.mark.parametrize("name", NAMES)
def test_every_flipped_bit_is_found(sealed: Path, name: str) -> None:
    sound = (sealed / name).read_bytes()
    for position in range(len(sound)):
        flipped = bytearray(sound)
        flipped[position] ^= 1 << (position % 8)
        (sealed / name).write_bytes(flipped)
        with pytest.raises(BrokenSeal):
            check_seal(sealed)
    (sealed / name).write_bytes(sound)
    check_seal(sealed)


def test_a_manifest_of_another_shape_is_broken(sealed: Path) -> None:
    for text in ("[]", "null", "{}", '{"files": 3}', "[" * 100_000, '{"files": {"a": {}}}'):
        (sealed / MANIFEST_FILE).write_text(text)
        with pytest.raises(BrokenSeal, match=MANIFEST_FILE):
            read_manifest(sealed)


def test_an_error_while_writing_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        write_parts(folder)
        raise KeyError

    with pytest.raises(KeyError), sealed_folder(tmp_path / "checkpoint-1") as folder:
        fail(folder)
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_already_is_not_overwritten(sealed: Path) -> None:
    with pytest.raises(UserError, match="something at the output already"), sealed_folder(sealed) as folder:
        write_parts(folder)
    check_seal(sealed)


def test_a_disk_that_is_full_at_any_write_leaves_the_older_folder_whole(
    sealed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer = sealed.with_name("checkpoint-6")
    refused, numbers = 0, set()
    while True:
        with full_after(refused, monkeypatch) as calls:
            try:
                with sealed_folder(newer) as folder:
                    write_parts(folder)
                break
            except OSError as error:
                numbers.add(error.errno)
        if newer.exists():  # its name is there, only the sync of that name failed: then it is whole
            check_seal(newer)
            shutil.rmtree(newer)
        assert [path.name for path in sealed.parent.iterdir()] == ["checkpoint-3"], f"call {refused}: {calls[-1]}"
        check_seal(sealed)
        refused += 1
    assert numbers == {errno.ENOSPC}
    assert refused > 10, "the fault was not injected at every write"
    check_seal(newer)
    shutil.rmtree(newer)


@contextmanager
def full_after(allowed: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Let the call after `allowed` ones that write, sync or name a file fail as a full disk makes it."""
    calls: list[str] = []

    def limited(name: str, original: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            calls.append(name)
            if len(calls) > allowed:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return original(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        for owner, name in ((Path, "write_text"), (Path, "write_bytes"), (Path, "mkdir"), (Path, "touch"),
                            (Path, "replace"), (os, "fsync")):  # fmt: skip
            patch.setattr(owner, name, limited(name, getattr(owner, name)))
        patch.setitem(globals(), "save_file", limited("save_file", save_file))
        yield calls


def test_the_order_of_files_does_not_matter(tmp_path: Path) -> None:
    manifests = []
    for seed in (1, 2):
        names = [f"{letter}.txt" for letter in "abcdef"]
        random.Random(seed).shuffle(names)
        with sealed_folder(tmp_path / str(seed)) as folder:
            for name in names:
                (folder / name).write_text(name)
        manifests.append((tmp_path / str(seed) / MANIFEST_FILE).read_bytes())
    assert manifests[0] == manifests[1]
