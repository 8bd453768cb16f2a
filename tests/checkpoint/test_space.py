"""Disk space: figures in the messages, and full disks as every library calls them."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import pytest
from safetensors import SafetensorError

from aria_finetune.checkpoint.space import (
    explain_full_disk,
    folder_bytes,
    free_bytes,
    is_disk_full,
    require_space,
)
from aria_finetune.errors import UserError


def test_free_bytes_are_those_of_the_disk_also_where_the_folder_is_still_to_be_made(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "not" / "yet"):
        assert abs(free_bytes(folder) - shutil.disk_usage(tmp_path).free) < 2**30


def test_a_shortage_names_both_figures_the_place_and_the_remedy(tmp_path: Path) -> None:
    require_space(tmp_path, 1, "a checkpoint", "free some")
    needed = free_bytes(tmp_path) + 2**40
    with pytest.raises(
        UserError, match=r"a checkpoint needs [\d,.]+ MiB \([\d,]+ bytes\), and [\d,.]+ MiB .* are free"
    ) as raised:
        require_space(tmp_path, needed, "a checkpoint", "free some")
    assert raised.value.where == str(tmp_path)
    assert raised.value.fix == "free some"
    assert f"{needed:,} bytes" in raised.value.message


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        SafetensorError("Error while serializing: I/O error: IoError(Os { code: 28, kind: StorageFull })"),
        Exception("No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_known_by_every_name(tmp_path: Path, error: Exception) -> None:
    assert is_disk_full(error)
    with (
        pytest.raises(UserError, match=r"ran full while checkpoint-3 was written: it needs 0\.1 MiB \(100,000 bytes\)"),
        explain_full_disk(tmp_path, 100_000, "checkpoint-3", "free some"),
    ):
        raise error


@pytest.mark.parametrize("error", [OSError(errno.EACCES, "Permission denied"), ValueError("code: 281"), KeyError("28")])
def test_other_errors_pass_as_they_are(tmp_path: Path, error: Exception) -> None:
    if isinstance(error, OSError | KeyError):
        with pytest.raises(type(error)), explain_full_disk(tmp_path, 1, "it", ""):
            raise error


def test_folder_bytes_are_those_of_files_with_the_endings_named(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"0" * 100)
    (tmp_path / "config.json").write_bytes(b"0" * 7)
    (tmp_path / "inner.json").mkdir()
    assert folder_bytes(tmp_path, (".json", ".txt")) == 7
