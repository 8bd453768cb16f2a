"""`aria-finetune` and `python` for the shell, each command a process of its own, forked from one that has imported everything.

A fresh interpreter takes seconds to import the libraries, a fork none. `commands_in` is the side of the tests, and writes the
scripts that the shell finds; run as a script, this file is the process that forks.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parent.parent

CLIENT = """#!{python} -S
import json, os, socket, sys
if {kind!r} == "python" and not sys.argv[1].endswith(".py"):
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    asked = json.dumps([{kind!r}, sys.argv, os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(server, [len(asked).to_bytes(4, "big")], [0, 1, 2])
    server.sendall(asked)
    said = server.recv(1)
    sys.exit(said[0] if said else "the process did not come to its end")
"""


@contextmanager
def commands_in(folder: Path) -> Iterator[Path]:
    """Scripts `aria-finetune` and `python` in a folder, which work until the block ends.

    `python FILE.py` is forked too, and what it starts as `sys.executable`; anything else that it is asked for is a fresh one.
    """
    address = folder / "server"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    server = subprocess.Popen(
        [sys.executable, str(Path(__file__)), str(address)], stdout=subprocess.PIPE, env=environment
    )
    try:
        assert server.stdout
        assert server.stdout.readline() == b"ready\n"
        for kind in ("aria-finetune", "python"):
            script = folder / kind
            script.write_text(CLIENT.format(python=sys.executable, kind=kind, address=str(address)))
            script.chmod(0o755)
        yield folder
    finally:
        server.kill()
        server.communicate()


def serve(address: str) -> None:
    """Take one connection after the other: standard streams, arguments, folder and environment in, the exit code out."""
    import_everything()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the commands here
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(address)
        listening.listen()
        print("ready", flush=True)
        while True:
            connection, _ = listening.accept()
            if os.fork() == 0:
                become(connection)
            connection.close()


def import_everything() -> None:
    """Import what a run needs, before any fork. No tensor is computed, so that no thread is started."""
    from aria_finetune.libraries import prepare_libraries, quick_imports

    with quick_imports():
        prepare_libraries()
        import aria_finetune.training  # noqa: F401


def become(connection: socket.socket) -> None:
    """Turn a forked process into the command that a connection asks for; does not return."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    length, streams, _, _ = socket.recv_fds(connection, 4, 3)
    asked = connection.makefile("rb").read(int.from_bytes(length, "big"))
    kind, (itself, *arguments), folder, environment = json.loads(asked)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    if kind == "python":
        sys.executable = itself
        code = run_script(arguments)
    else:
        code = run_command(arguments)
    connection.sendall(bytes([code]))
    os._exit(code)


def run_script(arguments: Sequence[str]) -> int:
    """The exit code of `python ARGUMENTS`, of which the first is a file, in this process."""
    sys.argv = list(arguments)
    sys.path[0] = str(Path(arguments[0]).parent.absolute())
    return _code_of(lambda: runpy.run_path(arguments[0], run_name="__main__"))


def run_command(arguments: Sequence[str]) -> int:
    """The exit code of `aria-finetune ARGUMENTS` in this process."""
    from aria_finetune.cli import app

    return _code_of(lambda: app(list(arguments), prog_name="aria-finetune"))


def _code_of(program: Callable[[], object]) -> int:
    code = 1
    try:
        program()
        code = 0
    except SystemExit as stopped:
        code = stopped.code if isinstance(stopped.code, int) else int(stopped.code is not None)
        if isinstance(stopped.code, str):
            print(stopped.code, file=sys.stderr)
    except BaseException:  # noqa: BLE001 (the end of a process)
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    return code


if __name__ == "__main__":
    serve(sys.argv[1])
