"""`aria-finetune` for the shell, each command a process of its own, forked from one that has imported everything already.

A fresh interpreter takes seconds to import the libraries, a fork none. `command_in` is the side of the tests, and writes the
script that the shell finds; run as a script, this file is the process that forks.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parent.parent

CLIENT = """#!{python} -S
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    asked = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(server, [len(asked).to_bytes(4, "big")], [0, 1, 2])
    server.sendall(asked)
    said = server.recv(1)
    sys.exit(said[0] if said else "the process did not come to its end")
"""


@contextmanager
def command_in(folder: Path) -> Iterator[Path]:
    """A script `aria-finetune` in a folder, which works until the block ends."""
    address = folder / "server"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    server = subprocess.Popen(
        [sys.executable, str(Path(__file__)), str(address)], stdout=subprocess.PIPE, env=environment
    )
    try:
        assert server.stdout
        assert server.stdout.readline() == b"ready\n"
        script = folder / "aria-finetune"
        script.write_text(CLIENT.format(python=sys.executable, address=str(address)))
        script.chmod(0o755)
        yield script
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
    arguments, folder, environment = json.loads(asked)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    code = run_command(arguments)
    connection.sendall(bytes([code]))
    os._exit(code)


def run_command(arguments: Sequence[str]) -> int:
    """The exit code of `aria-finetune ARGUMENTS` in this process."""
    code = 1
    try:
        from aria_finetune.cli import app

        app(list(arguments), prog_name="aria-finetune")
        code = 0
    except SystemExit as stopped:
        code = stopped.code if isinstance(stopped.code, int) else int(stopped.code is not None)
    except BaseException:  # noqa: BLE001 (the end of a process)
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    return code


if __name__ == "__main__":
    serve(sys.argv[1])
