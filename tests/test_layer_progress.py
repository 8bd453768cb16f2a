"""Progress by layers: a line now and then where there is no terminal, a bar where there is one."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from aria_finetune import layer_progress
from aria_finetune.layer_progress import LayerProgress


def shown(*, terminal: bool) -> str:
    stream = io.StringIO()
    with LayerProgress("loading", Console(file=stream, force_terminal=terminal, width=80)) as progress:
        for done in range(4):
            progress(done, 3)
        progress.say("a word")
    return stream.getvalue()


def test_what_takes_no_time_is_not_told() -> None:
    assert shown(terminal=False) == "a word\n"


def test_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer_progress, "PLAIN_SECONDS", 0.0)
    assert shown(terminal=False) == "".join(f"loading: {done} of 3 layers\n" for done in range(4)) + "a word\n"


def test_a_bar() -> None:
    said = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown(terminal=True))
    assert "3/3 layers" in said
