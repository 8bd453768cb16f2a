"""The worked example of docs/converters.md: as a file, and as a package that is really installed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from aria_finetune.format_help import pages

ROOT = Path(__file__).parent.parent
DOC = (ROOT / "docs/converters.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    return re.findall(rf"^```{language}\n(.*?)^```$", DOC, re.MULTILINE | re.DOTALL)[0]


@pytest.fixture
def album(tmp_path: Path) -> Path:
    (tmp_path / "album.jsonl").write_text(block("json"))
    (tmp_path / "album_format.py").write_text(block("python"))
    for name in ("cat.png", "dog.png"):
        Image.new("RGB", (40, 30)).save(tmp_path / name)
    return tmp_path


def convert(folder: Path, words: list[str], paths: list[Path]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from aria_finetune.cli import app; app()", *words]
    environment = {"PYTHONPATH": ":".join(str(path) for path in [ROOT, *paths]), "PATH": "/usr/bin:/bin"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def written(folder: Path) -> list[tuple[str, str]]:
    records = [json.loads(line) for line in (folder / "album/data-00000.jsonl").read_text().splitlines()]
    return [(record["messages"][0]["content"][1]["text"], record["references"][0]) for record in records]


WANTED = [("What is it?", "A cat."), ("Where is it?", "On the wall."), ("What is it?", "A dog.")]


def test_a_file_of_ones_own(album: Path) -> None:
    words = block("bash").split()
    assert words[0] == "aria-finetune"
    done = convert(album, words[1:], [])
    assert done.returncode == 0, done.stderr
    assert "4 read, 3 written, 1 rejected" in done.stdout
    assert written(album) == WANTED


def test_an_installed_package(album: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    package, site = tmp_path_factory.mktemp("package"), tmp_path_factory.mktemp("site")
    (package / "pyproject.toml").write_text(block("toml"))
    (album / "album_format.py").rename(package / "album_format.py")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target"]
    subprocess.run([*install, str(site), str(package)], check=True)

    unknown = convert(album, ["convert", "album.jsonl", "album", "--max-rejects", "1"], [])
    assert unknown.returncode == 2
    assert "no known format fits" in unknown.stderr

    done = convert(album, ["convert", "album.jsonl", "album", "--max-rejects", "1"], [site])
    assert done.returncode == 0, done.stderr
    assert written(album) == WANTED
    listed = convert(album, ["formats", "album"], [site])
    assert "Photographs with questions" in listed.stdout


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("1/0\n", "can't be run: ZeroDivisionError"),
        ("X = 1\n", "neither FORMAT nor FORMATS"),
        ("FORMAT = 1\n", "no Format"),
        (block("python").replace('"album"', '"llava"'), "two formats called 'llava'"),
    ],
)
def test_a_file_that_is_none(album: Path, content: str, what: str) -> None:
    (album / "album_format.py").write_text(content)
    done = convert(album, ["convert", "album.jsonl", "album", "--converter", "album_format.py"], [])
    assert done.returncode == 2
    assert what in done.stderr
    assert "Traceback" not in done.stderr


def test_the_pages_of_formats_are_those_of_the_registry() -> None:
    folder = ROOT / "docs/formats"
    assert {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()} == pages(), "run `make docs`"
