"""Whole runs that are killed, stopped, starved and lied to: recipes that train in seconds."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from fault_runs import DATA, RECIPE, SAVE_STEPS, STEPS
from forking import Forkery


@pytest.fixture(scope="session")
def forkery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forkery]:
    with Forkery(tmp_path_factory.mktemp("said")) as forkery:
        yield forkery


MOUNT = 'mount -t tmpfs -o size="$1" tmpfs "$0" && shift && exec "$@"'


@pytest.fixture(scope="module")
def mount_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[int], tuple[Forkery, Path, Path]]]:
    """A process that sees a real disk of some bytes, the folder where it sees it, and the same folder as we see it."""
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine lets us mount nothing")
    with ExitStack() as stack:

        def mount(size: int) -> tuple[Forkery, Path, Path]:
            disk = tmp_path_factory.mktemp("disk")
            prefix = ["unshare", "-rm", "sh", "-c", MOUNT, str(disk), str(size)]
            forkery = stack.enter_context(Forkery(tmp_path_factory.mktemp("said"), prefix))
            return forkery, disk, Path(f"/proc/{forkery.pid}/root") / disk.relative_to("/")

        yield mount


@pytest.fixture(scope="session")
def write_recipe() -> Callable[..., Path]:
    """Write a recipe whose run lies in `folder/run`."""

    def write(
        folder: Path, *, steps: int = STEPS, save_steps: int = SAVE_STEPS, workers: int = 0, output: Path | None = None
    ) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "recipe.yaml"
        output = output or folder / "runs" / "run"
        file.write_text(RECIPE.format(data=DATA, steps=steps, save_steps=save_steps, workers=workers, output=output))
        return file

    return write


@pytest.fixture(scope="session")
def undisturbed(forkery: Forkery, write_recipe: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing happened to."""
    folder = tmp_path_factory.mktemp("undisturbed")
    ended = forkery.run("train", str(write_recipe(folder)))
    assert ended.code == 0, ended.said
    return folder / "runs" / "run"
