"""Keeps secrets out of text that leaves the process: what is printed, and what a run, a report or a checkpoint says.

Knows environment variables by the look of their names, URLs, and the shapes of well-known tokens. Does not know what
a text is for: data come here to be shown, never on their way to a model.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any, TextIO, cast
from urllib.parse import quote

MASK = "***"
MIN_SECRET_LENGTH = 8
"""Shorter values, such as `1` or `true`, would be found everywhere."""

_SECRET_NAME = re.compile(
    r"(?:^|_)(?:TOKENS?|SECRETS?|PASS|PASSWORDS?|PASSWD|PASSPHRASE|CREDENTIALS?|CREDS|AUTH|AUTHORIZATION|JWT|COOKIE"
    r"|API_?KEYS?|ACCESS_?KEYS?|PRIVATE_?KEYS?|SECRET_?KEYS?)(?:_|$)|_KEY$",
    re.IGNORECASE,
)
# No pattern may look far ahead from many places: a line can be a megabyte long.
#
# Of `scheme://user:password@host` what stands before the last @ of the host. One slash is enough for schemes of the
# web: a path made of a URL has lost the other. Browsers also take backslashes, and no scheme at all.
_USER_INFO = re.compile(
    r"""((?:\b(?:https?|ftps?|ssh|git|s3|gs):[/\\]|://|(?<![\w:/])//))[^\s/?#"'<>]*@""", re.IGNORECASE
)
_PARAMETER = re.compile(
    r"((?:[?&#]|&amp;)(?:[\w.~-]{0,40}?(?:token|secret|passwo?r?d|passwd|passphrase|signature|credentials?|api_?key"
    r"|access_?key(?:_?id)?|accessid|authorization|policy|jwt)|(?:[\w.~-]{0,40}[._-])?(?:key|sig|auth|pwd|code))=)"
    r"""[^\s&#"'<>]+""",
    re.IGNORECASE,
)
_AUTHORIZATION = re.compile(
    r"""(\bauthorization\b["']?\s*[:=]\s*["']?(?:(?:bearer|basic|token)\s+)?)[^\s"',;]{8,}""", re.IGNORECASE
)
_TOKEN_SHAPE = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    r"(?:hf|api_org)_[A-Za-z0-9]{20,}"  # Hugging Face
    r"|(?<![_-])sk-(?=[\w-]*[0-9])(?=[\w-]*[A-Z])[\w-]{20,}"  # OpenAI, Anthropic
    r"|gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{22,}|glpat-[\w-]{20,}"  # GitHub, GitLab
    r"|(?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Za-z0-9])"  # AWS
    r"|AIza[\w-]{35}"  # Google
    r"|xox[abeoprs]-[A-Za-z0-9-]{10,}"  # Slack
    r"|wandb_v1_\w{20,}"  # Weights & Biases; its older 40 hex digits look like a hash of git
    r"|(?<![_-])eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]*"  # JSON Web Token, RFC 7519
    r")"
)
_PRIVATE_KEY = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL)


class Redactor:
    """Replaces secrets by `MASK`; those of `environment` wherever they occur.

    Args:
        environment: variables and their values, such as `os.environ`; read once.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        values = {spelling for secret in _secrets(environment) for spelling in _spellings(secret)}
        # The longest first, so that a secret that starts like another is not left with its end showing.
        ordered = sorted(values, key=lambda value: (-len(value), value))
        self._values = re.compile("|".join(map(re.escape, ordered))) if ordered else None

    def __call__(self, text: str) -> str:
        """The text without secrets. Doing it twice changes nothing more."""
        if self._values is not None:
            text = self._values.sub(MASK, text)
        text = _PRIVATE_KEY.sub(MASK, text)
        text = _USER_INFO.sub(rf"\1{MASK}@", text)
        text = _PARAMETER.sub(rf"\1{MASK}", text)
        text = _AUTHORIZATION.sub(rf"\1{MASK}", text)
        return _TOKEN_SHAPE.sub(MASK, text)


@cache
def _of_this_process() -> Redactor:
    return Redactor(os.environ)


def redact(text: str) -> str:
    """The text without the secrets of this process's environment, of URLs, and tokens of well-known shapes."""
    return _of_this_process()(text)


def redact_values(value: Any) -> Any:
    """A copy of a JSON-like value in which every string has passed `redact`; keys stay as they are."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {key: redact_values(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [redact_values(inner) for inner in value]
    return value


def redact_streams() -> None:
    """Have everything that is printed from now on pass `redact`: ours, libraries', warnings, logs, tracebacks.

    To be called before libraries are imported, because their log handlers keep the stream they find.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, RedactingStream):
            setattr(sys, name, cast("TextIO", RedactingStream(stream)))


class RedactingStream:
    """A text stream that redacts what is written to it; for the rest it is the stream it was made of."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write the text without its secrets; returns the length of the whole text, as callers expect."""
        self._stream.write(redact(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write each."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        if name == "buffer":  # bytes would pass by unread
            raise AttributeError(name)
        return getattr(self._stream, name)


def _secrets(environment: Mapping[str, str]) -> Iterator[str]:
    for name, value in environment.items():
        if not _SECRET_NAME.search(name) or (os.path.isabs(value) and os.path.exists(value)):  # noqa: PTH110, PTH117
            continue  # a variable such as HF_TOKEN_PATH says where a secret lies
        yield from (line.strip() for line in value.splitlines() if len(line.strip()) >= MIN_SECRET_LENGTH)


def _spellings(secret: str) -> tuple[str, ...]:
    """A secret as it is, in JSON, in a Python literal and in a URL."""
    return (secret, json.dumps(secret)[1:-1], repr(secret)[1:-1], quote(secret), quote(secret, safe=""))
