"""`aria-finetune convert` as a process of its own, with splits so small that there are many of them to kill between."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
SMALL_SPLITS = "from aria_finetune.conversion import plan; plan.SPLIT_BYTES.update(header={bytes}); "
CONVERT = "from aria_finetune.cli import app; app()"


@dataclass
class Ended:
    """A conversion that is over: its exit code, negative for the signal that killed it, and all it said."""

    code: int
    said: str


class Conversion:
    """A conversion under way, in a process group of its own.

    Args:
        arguments: what follows `aria-finetune convert`.
        folder: where what it says is kept.
        split_bytes: size of its splits.
        prefix: command line that it is started through.
    """

    def __init__(
        self, *arguments: str | Path, folder: Path, split_bytes: int = 5_000, prefix: Sequence[str] = ()
    ) -> None:
        self._mark = f"ARIA_TEST_MARK={uuid.uuid4().hex}"
        self._said = folder / f"{self._mark[-8:]}.txt"
        name, _, value = self._mark.partition("=")
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), name: value}
        code = SMALL_SPLITS.format(bytes=split_bytes) + CONVERT
        with self._said.open("wb") as said:
            self.process = subprocess.Popen(
                [*prefix, sys.executable, "-c", code, "convert", *map(str, arguments)],
                stdin=subprocess.DEVNULL, stdout=said, stderr=said, env=environment, start_new_session=True,
            )  # fmt: skip

    def wait(self, seconds: float = 120.0) -> Ended:
        """Wait for its end."""
        return Ended(self.process.wait(seconds), self._said.read_text())

    def living(self) -> list[int]:
        """The processes that it has started and that have not ended."""
        return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit() and self._is_ours(entry)]

    def _is_ours(self, entry: Path) -> bool:
        try:
            ended = (entry / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
            return not ended and self._mark.encode() in (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            return False


def wait_until_gone(conversion: Conversion, seconds: float) -> bool:
    """Whether all processes of a conversion end within that time."""
    end = time.monotonic() + seconds
    while conversion.living():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True
