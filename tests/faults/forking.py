"""Runs of the command line as processes of their own, forked from one that has imported everything already.

A fresh interpreter takes ten seconds to import the libraries; a fork takes none, and is as real a process to kill.
`Forkery` is the side of the tests; run as a script, this file is the process that forks. A run can be told to
strike itself at a named moment: to send itself a signal, to fill the disk or to break its media, there and then.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from command_server import import_everything, run_command
from poisoning import poison
from witness import record

ROOT = Path(__file__).parents[2]


@dataclass
class Ended:
    """A run that is over: its exit code (negative for the signal that killed it) and all it printed."""

    code: int
    said: str


class Forked:
    """A run under way."""

    def __init__(self, forkery: Forkery, pid: int, output: Path) -> None:
        self._forkery = forkery
        self.pid = pid
        self.output = output

    def wait(self) -> Ended:
        """Wait for its end."""
        return Ended(self._forkery.ask({"wait": self.pid})["code"], self.output.read_text(errors="replace"))


class Forkery:
    """Starts runs; use as a context manager.

    Args:
        folder: where the runs' output is kept.
        prefix: command line that the process is started through.
    """

    def __init__(self, folder: Path, prefix: Sequence[str] = ()) -> None:
        self._folder = folder
        self._count = 0
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        }
        self._process = subprocess.Popen(
            [*prefix, sys.executable, str(Path(__file__)), "serve"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        self.pid = self.ask({"hello": True})["pid"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(timeout=60)

    def start(self, *arguments: str, strike: dict[str, Any] | None = None) -> Forked:
        """Start `aria-finetune ARGUMENTS`."""
        self._count += 1
        output = self._folder / f"said-{self._count}.txt"
        answer = self.ask({"start": list(arguments), "output": str(output), "strike": strike})
        return Forked(self, answer["pid"], output)

    def run(self, *arguments: str, strike: dict[str, Any] | None = None) -> Ended:
        """Start and wait."""
        return self.start(*arguments, strike=strike).wait()

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """Send one command to the forking process."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer


def serve() -> None:
    """The forking process: one JSON command a line in, one JSON answer a line out."""
    answers = os.fdopen(os.dup(1), "w")
    import_everything()
    for line in sys.stdin:
        question = json.loads(line)
        if "start" in question:
            pid = os.fork()
            if pid == 0:
                become(question)
            answer = {"pid": pid}
        elif "wait" in question:
            answer = {"code": os.waitstatus_to_exitcode(os.waitpid(question["wait"], 0)[1])}
        else:
            answer = {"pid": os.getpid()}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def become(question: dict[str, Any]) -> None:
    """Turn a forked process into `aria-finetune`; does not return."""
    os.setsid()  # a group of its own, as a shell gives a command
    output = os.open(question["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    try:
        if question["strike"]:
            arrange(question["strike"])
    except BaseException:  # noqa: BLE001 (the end of a process)
        traceback.print_exc()
        os._exit(1)
    os._exit(run_command(question["start"]))


def arrange(strike: dict[str, Any]) -> None:
    """Prepare what a strike names: spoilt numbers, a record of the run, modules for the decoder, moments."""
    if "poison" in strike:
        poison(**strike["poison"])
    if "record" in strike:
        record(Path(strike["record"]))
    if "modules" in strike:
        sys.path.insert(0, strike["modules"])
    for moments in (strike, *strike.get("then", ())):
        if "at" in moments:
            arrange_moment(moments)


def arrange_moment(strike: dict[str, Any]) -> None:
    """Have the `count`-th passing of a moment strike: `signals` are sent to this process, `fill` names a folder
    whose disk is filled up, `break` says how media files are broken.
    """
    owner, name = moment(strike["at"])
    original = getattr(owner, name)
    left = [strike.get("count", 1)]

    def struck(*args: Any, **kwargs: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            send(strike.get("signals", ()), group=strike.get("group", False))
            if "fill" in strike:
                fill(Path(strike["fill"]), strike.get("leave", 0))
            for way, file in strike.get("break", ()):
                break_media(Path(file), way)
        return original(*args, **kwargs)

    setattr(owner, name, struck)


def moment(name: str) -> tuple[Any, str]:
    """The function whose call is a moment of a run."""
    from aria_finetune import training
    from aria_finetune.checkpoint import sealing
    from aria_finetune.checkpoint.state import TrainingState
    from aria_finetune.features import store
    from aria_finetune.trainer import AriaTrainer

    return {
        "reading rows": (training, "show_rows"),
        "storing features": (store.FeatureStore, "write"),
        "syncing features": (store, "sync"),
        "loading": (training, "build_model"),
        "accumulation": (AriaTrainer, "training_step"),
        "update": (AriaTrainer, "_get_grad_norm"),
        "evaluation": (AriaTrainer, "prediction_step"),
        "save": (TrainingState, "save"),
        "seal": (sealing, "_write_manifest"),
        "space was enough": (AriaTrainer, "_write"),
        "adapter": (training, "write_adapter"),
    }[name]


def send(numbers: Iterable[int], *, group: bool) -> None:
    for number in numbers:
        if group:
            os.killpg(os.getpgid(0), number)
        else:
            os.kill(os.getpid(), number)


def break_media(file: Path, way: str) -> None:
    from media_files import break_file

    break_file(file, way)


def fill(folder: Path, leave: int) -> None:
    """Use up the disk of `folder`, but for `leave` bytes."""
    import shutil

    free = shutil.disk_usage(folder).free - leave
    with (folder / "filler").open("ab", buffering=0) as file:
        while free > 0:
            try:
                free -= file.write(b"\0" * min(free, 4096))
            except OSError:
                return


if __name__ == "__main__":
    serve()
