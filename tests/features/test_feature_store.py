"""What is read is what was written, bit for bit, or is refused; room is made without taking anything that is needed."""

from __future__ import annotations

import multiprocessing
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from aria_finetune.errors import UserError
from aria_finetune.features.store import HEADER_BYTES, BrokenFeatures, FeatureStore, Form, UsedStore, use_store

SHAPE = (2, 3, 8)
KEYS = [f"{number:02x}" * 32 for number in range(6)]


def features(dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> torch.Tensor:
    """Any bits: rounding anywhere would change some."""
    words = torch.randint(-(2**15), 2**15, SHAPE, dtype=torch.int16, generator=torch.Generator().manual_seed(seed))
    return words.view(torch.bfloat16) if dtype == torch.bfloat16 else torch.randn(SHAPE) * words


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and bits(one) == bits(other)


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


FORM = Form(SHAPE, torch.bfloat16)


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    made = FeatureStore(tmp_path / "features")
    made.write(KEYS[0], features())
    return made


class TestFiles:
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
    def test_what_is_read_is_what_was_written(self, store: FeatureStore, dtype: torch.dtype) -> None:
        written, form = features(dtype, 1), Form(SHAPE, dtype)
        assert not store.holds(KEYS[1], form)
        store.write(KEYS[1], written.transpose(0, 1).contiguous().transpose(0, 1))
        assert store.holds(KEYS[1], form)
        assert same_bits(store.read(KEYS[1], form), written)
        assert form.bytes == len(bits(written))
        assert form.bytes < store.path_of(KEYS[1]).stat().st_size <= form.bytes + HEADER_BYTES

    def test_a_file_is_plain_safetensors(self, store: FeatureStore) -> None:
        with safe_open(store.path_of(KEYS[0]), "pt") as opened:
            assert list(opened.keys()) == ["features"]
            assert same_bits(opened.get_tensor("features"), features())
            assert opened.metadata()["key"] == KEYS[0]

    def test_a_header_of_the_largest_picture_has_its_room(self, store: FeatureStore) -> None:
        """Nine tiles of 256 tokens in the real width."""
        store.write(KEYS[1], torch.zeros(9, 256, 2560))
        form = Form((9, 256, 2560), torch.float32)
        assert store.holds(KEYS[1], form)
        assert store.path_of(KEYS[1]).stat().st_size <= form.bytes + HEADER_BYTES

    def test_a_file_cut_anywhere_is_not_held_and_not_read(self, store: FeatureStore) -> None:
        path = store.path_of(KEYS[0])
        whole = path.read_bytes()
        for length in range(len(whole)):
            path.write_bytes(whole[:length])
            assert not store.holds(KEYS[0], FORM), length
            with pytest.raises(BrokenFeatures):
                store.read(KEYS[0], FORM)
        path.write_bytes(whole + b"\0")
        assert not store.holds(KEYS[0], FORM)
        with pytest.raises(BrokenFeatures):
            store.read(KEYS[0], FORM)

    @pytest.mark.parametrize("mask", [0x01, 0x20, 0x80])
    def test_a_byte_changed_anywhere_is_not_read(self, store: FeatureStore, mask: int) -> None:
        path = store.path_of(KEYS[0])
        whole = path.read_bytes()
        (length,) = struct.unpack_from("<Q", whole)
        for place in range(len(whole)):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ mask]) + whole[place + 1 :])
            with pytest.raises(BrokenFeatures):
                store.read(KEYS[0], FORM)
            if place < 8 + length and b"sha256" not in whole[max(place - 80, 0) : place]:
                assert not store.holds(KEYS[0], FORM), place

    def test_features_of_another_key_or_form_are_refused(self, store: FeatureStore) -> None:
        store.path_of(KEYS[1]).parent.mkdir()
        store.path_of(KEYS[1]).write_bytes(store.path_of(KEYS[0]).read_bytes())
        others = [
            (KEYS[1], FORM),
            (KEYS[0], Form((3, 2, 8), torch.bfloat16)),
            (KEYS[0], Form((2, 3, 4), torch.float32)),
        ]
        for key, form in [*others, (KEYS[2], FORM)]:
            assert not store.holds(key, form)
            with pytest.raises(BrokenFeatures):
                store.read(key, form)

    def test_a_pickle_in_its_place_is_not_opened(self, store: FeatureStore) -> None:
        torch.save({"features": features()}, store.path_of(KEYS[0]))
        with pytest.raises(BrokenFeatures, match="header"):
            store.read(KEYS[0], FORM)

    def test_a_write_that_fails_leaves_nothing(self, store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(_: Path) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("aria_finetune.features.store.sync", full)
        with pytest.raises(OSError, match="No space"):
            store.write(KEYS[1], features())
        assert [path.name for path in store.folder.rglob("*") if path.is_file()] == [store.path_of(KEYS[0]).name]


@pytest.fixture
def filled(tmp_path: Path) -> Iterator[UsedStore]:
    """Four features, used longer and longer ago, of 1000 bytes."""
    with use_store(tmp_path / "features") as store:
        for age, key in enumerate(KEYS[:4]):
            store.path_of(key).parent.mkdir()
            store.path_of(key).write_bytes(bytes(1000))
            os.utime(store.path_of(key), (10_000 - age, 10_000 - age))
        yield store


class TestRoom:
    def test_nothing_goes_while_there_is_room(self, filled: UsedStore) -> None:
        assert filled.make_room({KEYS[0]: 1000, KEYS[5]: 1000}, 5000) == 1000
        assert set(filled.entries()) == set(KEYS[:4])

    def test_what_was_not_used_for_longest_goes_first(self, filled: UsedStore) -> None:
        filled.mark_used([KEYS[3], KEYS[5]])
        assert filled.make_room({KEYS[4]: 1000}, 3000) == 1000
        assert set(filled.entries()) == {KEYS[0], KEYS[3]}

    def test_what_is_needed_never_goes(self, filled: UsedStore) -> None:
        assert filled.make_room(dict.fromkeys([KEYS[3], KEYS[2], KEYS[5]], 1000), 3000) == 1000
        assert set(filled.entries()) == {KEYS[2], KEYS[3]}

    def test_more_than_the_limit_is_refused_and_nothing_goes(self, filled: UsedStore) -> None:
        with pytest.raises(UserError) as refused:
            filled.make_room(dict.fromkeys(KEYS[2:], 1000), 3999)
        said = str(refused.value)
        assert "(4,000 bytes)" in said
        assert "(3,999 bytes)" in said
        assert "data.cache_limit_gib" in said
        assert set(filled.entries()) == set(KEYS[:4])

    def test_more_than_the_disk_has_is_refused(self, filled: UsedStore) -> None:
        with pytest.raises(UserError, match=r"needs .*\(1,000,000,000,000,000 bytes\), and .* are free"):
            filled.make_room({KEYS[5]: 10**15}, 10**16)

    def test_other_files_are_left_alone(self, filled: UsedStore) -> None:
        mine = filled.folder / "aa" / "notes.txt"
        mine.parent.mkdir()
        mine.write_text("mine")
        filled.make_room({KEYS[5]: 1000}, 1000)
        assert filled.entries() == {}
        assert mine.read_text() == "mine"

    def test_parts_of_killed_processes_go(self, filled: UsedStore) -> None:
        part = filled.path_of(KEYS[0]).with_name(f".{KEYS[0]}-1.part")
        part.write_bytes(b"half")
        filled.make_room({}, 4000)
        assert not part.exists()


def other(folder: Path, told: Connection, fills: bool) -> None:
    with use_store(folder) as store:
        if fills:
            with store.filling(lambda _: None):
                told.send("in")
                told.recv()
        else:
            told.send("in")
            told.recv()


@contextmanager
def another_process(folder: Path, *, fills: bool) -> Iterator[Connection]:
    """One that uses, or fills, the folder until it is told to end."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=other, args=(folder, theirs, fills))
    process.start()
    assert ours.poll(20)
    assert ours.recv() == "in"
    try:
        yield ours
    finally:
        process.kill()
        process.join()


class TestSeveralProcesses:
    def test_nothing_goes_while_another_uses_the_folder(self, filled: UsedStore) -> None:
        part = filled.path_of(KEYS[0]).with_name(f".{KEYS[0]}-1.part")
        part.write_bytes(b"half")
        with another_process(filled.folder, fills=False):
            assert filled.make_room({KEYS[5]: 1000}, 5000) == 1000
            with pytest.raises(UserError, match="another run uses the folder"):
                filled.make_room({KEYS[5]: 1000}, 4999)
            assert part.exists()
        assert set(filled.entries()) == set(KEYS[:4])
        filled.make_room({KEYS[5]: 1000}, 4999)
        assert len(filled.entries()) == 3

    def test_others_may_use_the_folder_after_room_was_made(self, filled: UsedStore) -> None:
        filled.make_room({KEYS[5]: 1000}, 3000)
        with another_process(filled.folder, fills=False), pytest.raises(UserError, match="another run"):
            filled.make_room({KEYS[5]: 1000}, 1000)

    def test_one_fills_at_a_time(self, filled: UsedStore) -> None:
        said: list[str] = []
        with another_process(filled.folder, fills=True) as told:

            def let_go(line: str) -> None:
                said.append(line)
                told.send("go")

            with filled.filling(let_go):
                assert said == [f"waiting for another run that computes image features into {filled.folder}/"]
        with filled.filling(said.append):
            assert len(said) == 1

    def test_a_killed_process_holds_nothing(self, filled: UsedStore) -> None:
        with another_process(filled.folder, fills=True):
            pass
        with filled.filling(lambda _: pytest.fail("waits for the dead")):
            assert filled.make_room({KEYS[5]: 1000}, 1000) == 1000


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="can't be written to"), use_store(tmp_path / "file" / "features"):
        pass
