"""The hidden folder of a conversion: whose it is, what is taken up again, and what a kill at any step of it costs."""

from __future__ import annotations

import base64
import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from conversion_sources import listing, llava, mixed_records, names, steady, write_source, written

from aria_finetune import staging
from aria_finetune.conversion import ConversionOptions, convert
from aria_finetune.conversion.media_store import INCOMING
from aria_finetune.conversion.plan import SPLIT_BYTES
from aria_finetune.conversion.work import SplitResult, Work, Worker
from aria_finetune.data_formats import plugins
from aria_finetune.errors import TooManyRejects, UserError

ANY_REJECTS = ConversionOptions(max_rejects=10_000)


@pytest.fixture(autouse=True)
def small_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    for verify in SPLIT_BYTES:
        monkeypatch.setitem(SPLIT_BYTES, verify, 2000)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_source(tmp_path / "in" / "data.jsonl", mixed_records(tmp_path / "in", 120))


@pytest.fixture
def converted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the splits that are converted."""
    seen: list[int] = []
    run = Worker.run

    def watched(self: Worker, work: Work, progress: Callable[[int, int], None]) -> SplitResult:
        seen.append(work.split.number)
        return run(self, work, progress)

    monkeypatch.setattr(Worker, "run", watched)
    return seen


def convert_and_interrupt(
    source: Path, output: Path, options: ConversionOptions, monkeypatch: pytest.MonkeyPatch, splits: int = 4
) -> None:
    """Have a conversion interrupted when it is about to begin another split than the first few."""
    run, left = Worker.run, [splits]

    def interrupted(self: Worker, work: Work, progress: Callable[[int, int], None]) -> SplitResult:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return run(self, work, progress)

    with monkeypatch.context() as patched:
        patched.setattr(Worker, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            convert(source, output, options)


@pytest.fixture
def interrupted(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hidden folder of a conversion that was interrupted after four splits."""
    convert_and_interrupt(source, tmp_path / "out", ANY_REJECTS, monkeypatch)
    assert not (tmp_path / "out").exists()
    return tmp_path / ".out.converting"


class TestTakingUp:
    def test_it_goes_on_with_what_is_not_done(
        self, source: Path, tmp_path: Path, interrupted: Path, converted: list[int]
    ) -> None:
        assert len(list((interrupted / "parts").glob("?????.json"))) == 4
        report = convert(source, tmp_path / "out", ANY_REJECTS)
        assert converted[0] == 4
        assert converted == list(range(4, len(converted) + 4))
        assert report.source_records == 120
        convert(source, tmp_path / "wanted", ANY_REJECTS)
        assert steady(tmp_path / "out") == steady(tmp_path / "wanted")
        assert names(tmp_path) == {"in", "out", "wanted"}

    @pytest.mark.parametrize(
        "options",
        [
            ConversionOptions(max_rejects=10_000, verify="stat"),
            ConversionOptions(max_rejects=10_000, format="llava", evaluation=True),
            ConversionOptions(max_rejects=10_000, pack="parquet"),
        ],
    )
    def test_other_options_begin_anew(
        self, source: Path, tmp_path: Path, interrupted: Path, converted: list[int], options: ConversionOptions
    ) -> None:
        (interrupted / "media" / "stray.png").write_text("of the other options")
        convert(source, tmp_path / "out", options)
        assert converted == list(range(len(converted)))
        assert not (tmp_path / "out" / "media" / "stray.png").exists()

    @pytest.mark.usefixtures("interrupted")
    def test_more_rejects_allowed_does_not(self, source: Path, tmp_path: Path, converted: list[int]) -> None:
        convert(source, tmp_path / "out", ConversionOptions(max_rejects=9_999))
        assert converted[0] == 4

    @pytest.mark.usefixtures("interrupted")
    def test_a_changed_source_begins_anew(self, source: Path, tmp_path: Path, converted: list[int]) -> None:
        text = source.read_text()
        source.write_text(text.replace("0?", "X?"))
        convert(source, tmp_path / "out", ANY_REJECTS)
        assert converted[0] == 0
        assert written(tmp_path / "out")[0]["messages"][0]["content"][0]["text"] == "X?"

    def test_a_changed_converter_begins_anew(
        self, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, converted: list[int]
    ) -> None:
        code = (
            "from dataclasses import replace\n"
            "from aria_finetune.data_formats.chat import llava\n"
            "def convert(record, context):\n"
            "    for draft in llava.convert(record, context):\n"
            "        yield replace(draft, meta={'version': VERSION})\n"
            "FORMAT = replace(llava.FORMAT, name='mine', convert=convert)\n"
        )
        converter = tmp_path / "mine.py"
        converter.write_text("VERSION = 1\n" + code)
        options = ConversionOptions(max_rejects=999, format="mine", converter=converter)
        convert_and_interrupt(source, tmp_path / "out", options, monkeypatch)
        converter.write_text("VERSION = 22\n" + code)
        plugins.of_file.cache_clear()  # as another process would have it
        converted.clear()
        convert(source, tmp_path / "out", options)
        assert converted[0] == 0
        assert {record["meta"] for record in written(tmp_path / "out")} == {'{"version":22}'}

    @pytest.mark.usefixtures("interrupted")
    def test_a_mistake_in_the_next_start_costs_nothing(
        self, source: Path, tmp_path: Path, converted: list[int]
    ) -> None:
        with pytest.raises(UserError, match="no format"):
            convert(source, tmp_path / "out", ConversionOptions(format="llavva"))
        convert(source, tmp_path / "out", ANY_REJECTS)
        assert converted[0] == 4

    def test_half_a_medium_of_a_killed_process_is_removed(
        self, source: Path, tmp_path: Path, interrupted: Path
    ) -> None:
        (interrupted / "media" / f"{INCOMING}123").write_text("half")
        convert(source, tmp_path / "out", ANY_REJECTS)
        assert not [name for name in listing(tmp_path / "out") if INCOMING in name]


class TestTheOutput:
    @pytest.mark.parametrize("kind", ["file", "folder", "link", "link to nothing", "data set"])
    def test_something_there_is_refused_before_anything_is_done(
        self, source: Path, tmp_path: Path, converted: list[int], kind: str
    ) -> None:
        output = tmp_path / "out"
        match kind:
            case "file":
                output.write_text("keep")
            case "folder":
                output.mkdir()
                (output / "mine.txt").write_text("keep")
            case "link":
                (tmp_path / "empty").mkdir()
                output.symlink_to(tmp_path / "empty")
            case "link to nothing":
                output.symlink_to(tmp_path / "nowhere")
            case "data set":
                convert(source, output, ANY_REJECTS)
                converted.clear()
        before = names(tmp_path), listing(tmp_path)
        with pytest.raises(UserError, match="something at the output already") as caught:
            convert(source, output, ConversionOptions())
        assert caught.value.fix == "name a new folder, or remove it"
        assert (names(tmp_path), listing(tmp_path)) == before
        assert not converted

    def test_what_comes_there_meanwhile_is_not_replaced(
        self, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, converted: list[int]
    ) -> None:
        output, run = tmp_path / "out", Worker.run

        def meanwhile(self: Worker, work: Work, progress: Callable[[int, int], None]) -> SplitResult:
            output.mkdir(exist_ok=True)
            (output / "mine.txt").write_text("keep")
            return run(self, work, progress)

        with monkeypatch.context() as patched:
            patched.setattr(Worker, "run", meanwhile)
            with pytest.raises(UserError, match="something at the output already"):
                convert(source, output, ANY_REJECTS)
        assert listing(output) == {"mine.txt": b"keep"}
        shutil.move(output, tmp_path / "mine")
        converted.clear()
        assert convert(source, output, ANY_REJECTS).source_records == 120
        assert not converted, "all was done already"

    def test_an_empty_folder_and_a_set_over_the_limit_are_replaced(self, source: Path, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        for _ in range(2):
            with pytest.raises(TooManyRejects):
                convert(source, tmp_path / "out", ConversionOptions(max_rejects=3))
        convert(source, tmp_path / "out", ANY_REJECTS)
        assert names(tmp_path) == {"in", "out"}


class TestOneProcess:
    def test_a_second_one_is_refused(self, source: Path, tmp_path: Path) -> None:
        code = (
            "import sys; from pathlib import Path; from aria_finetune.conversion.workplace import working_folder\n"
            f"with working_folder(Path({str(tmp_path / 'out')!r})):\n"
            "    print('mine', flush=True); sys.stdin.read()\n"
        )
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        other = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        with other:
            assert other.stdout
            assert other.stdout.readline() == "mine\n"
            with pytest.raises(UserError, match="another process is converting to it") as caught:
                convert(source, tmp_path / "out", ANY_REJECTS)
            assert caught.value.where == str(tmp_path / "out")
            assert names(tmp_path / ".out.converting") == {".lock"}
            convert(source, tmp_path / "another", ANY_REJECTS)
            assert other.stdin
            other.stdin.close()
        convert(source, tmp_path / "out", ANY_REJECTS)
        assert steady(tmp_path / "out") == steady(tmp_path / "another")

    def test_a_file_system_without_locks(self, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def unsupported(*_: object) -> None:
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(staging.fcntl, "lockf", unsupported)
        assert convert(source, tmp_path / "out", ANY_REJECTS).source_records == 120


REMOVALS = frozenset({"os.remove", "os.rmdir"})
CHANGES = REMOVALS | {"os.rename", "os.mkdir", "os.link", "open"}


def convert_until(change: int, source: Path, output: Path, options: ConversionOptions) -> bool:
    """Convert in a process that ends, as if killed, when it is about to change the disk for that many-th time; whether
    it comes to its end before.
    """
    pid = os.fork()
    if pid == 0:
        left = [change]

        def strike(event: str, arguments: tuple[object, ...]) -> None:
            place = str(arguments[0])
            # Whoever removes a tree names its files by where they lie in their folder.
            inside = place.startswith(str(output.parent)) or (event in REMOVALS and "/" not in place)
            if event not in CHANGES or not inside or (event == "open" and "w" not in str(arguments[1])):
                return
            left[0] -= 1
            if left[0] < 0:
                os._exit(9)

        sys.addaudithook(strike)
        code = 1
        try:
            convert(source, output, options)
            code = 0
        except TooManyRejects:
            code = 0
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in {0, 9}
    return code == 0


def converted_set(source: Path, output: Path, options: ConversionOptions) -> dict[str, object]:
    with suppress(TooManyRejects):
        convert(source, output, options)
    return dict(steady(output))


@pytest.mark.parametrize(
    ("options", "over_the_limit"),
    [
        (ANY_REJECTS, False),
        (ConversionOptions(max_rejects=99, pack="parquet"), False),
        (ConversionOptions(max_rejects=99, media="reference"), False),
        (ConversionOptions(max_rejects=0), True),
    ],
    ids=["lines", "packed", "left in place", "replacing a set with too many rejects"],
)
def test_a_kill_at_any_change_to_the_disk_costs_nothing(
    tmp_path: Path, soak: bool, options: ConversionOptions, over_the_limit: bool
) -> None:
    records = mixed_records(tmp_path / "in", 24 if soak else 6)
    records.append(llava("data:;base64," + base64.b64encode((tmp_path / "in/images/0.png").read_bytes()).decode()))
    source = write_source(tmp_path / "in" / "data.jsonl", records)
    wanted = converted_set(source, tmp_path / "wanted", options)
    kills, done = 0, False
    while not done:
        folder = tmp_path / str(kills)
        folder.mkdir()
        if over_the_limit:
            shutil.copytree(tmp_path / "wanted", folder / "out")
        done = convert_until(kills, source, folder / "out", options)
        if not done and (over_the_limit or not (folder / "out").exists()):
            assert converted_set(source, folder / "out", options) == wanted, f"after a kill at change {kills}"
            assert names(folder) == {"out"}, f"after a kill at change {kills}"
        assert steady(folder / "out") == wanted, f"after a kill at change {kills}"
        shutil.rmtree(folder)
        kills += not done
    print(f"{kills} kills")
    assert kills > 15


def test_what_is_left_of_work_that_was_given_up_is_not_taken_up(
    source: Path, tmp_path: Path, interrupted: Path, soak: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start with other options is killed while it clears the folder; then the first options come again."""
    listed = os.listdir
    monkeypatch.setattr(os, "listdir", lambda folder: sorted(listed(folder)))  # the plan comes last
    wanted = converted_set(source, tmp_path / "wanted", ANY_REJECTS)
    for change in range(25) if soak else (2, 15, 17):
        folder = tmp_path / str(change)
        shutil.copytree(interrupted, folder / ".out.converting")
        assert not convert_until(change, source, folder / "out", ConversionOptions(max_rejects=99, verify="stat"))
        assert converted_set(source, folder / "out", ANY_REJECTS) == wanted, f"after a kill at change {change}"
