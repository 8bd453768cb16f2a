"""From a reference in the data to a file that may be opened: inside a media root, on this machine, regular.

Knows nothing of what is in the file and opens none; nothing is ever fetched.
"""

from __future__ import annotations

import base64
import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from aria_finetune.errors import MediaError
from aria_finetune.redaction import redact

MAX_PATH_BYTES = 4096
MAX_NAME_BYTES = 255
MAX_DATA_URI_BYTES = 64 * 1024 * 1024

_SCHEME = re.compile(r"\s*([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
_DATA_URI = re.compile(r"data:[^,]*;base64,", re.IGNORECASE)


def resolve_media(reference: str, roots: Sequence[Path]) -> Path:
    """Find the regular file that `reference` names under the first of `roots` that has it.

    A relative reference is tried under each root in turn; an absolute one is accepted when it lies inside a
    root. Symlinks and `..` are followed before that is judged, so a link out of every root is refused and a
    `..` that stays inside one passes.

    Returns:
        The real path of the file, free of links and `..`.

    Raises:
        MediaError: `media_remote` for a URL; `media_unsafe_path` for `file://`, NUL bytes, names too long for a
            file system and paths that leave the roots; `media_unreadable` for a folder, a device, a pipe or a
            loop of links; `media_missing` when no root has it.
    """
    _refuse_url(reference)
    _refuse_unusable_name(reference)
    real_roots = [Path(os.path.realpath(root)) for root in roots]
    outside = False
    unreadable: str | None = None
    for root in real_roots:
        candidate = Path(os.path.realpath(root / reference))
        if not any(candidate.is_relative_to(allowed) for allowed in real_roots):
            outside = True
            continue
        found, problem = _regular_file(candidate)
        if found:
            return candidate
        unreadable = unreadable or problem
    if unreadable is not None:
        raise MediaError("media_unreadable", f"{_shown(reference)} {unreadable}")
    if outside:
        raise MediaError("media_unsafe_path", f"{_shown(reference)} leads outside the media roots ({_listed(roots)})")
    raise MediaError("media_missing", f"{_shown(reference)} is not under the media roots ({_listed(roots)})")


def is_data_uri(reference: str) -> bool:
    """Whether the reference carries its bytes itself."""
    return reference[:5].lower() == "data:"


def decode_data_uri(reference: str, max_bytes: int = MAX_DATA_URI_BYTES) -> bytes:
    """The bytes of `data:<type>;base64,<data>`; the declared type is not looked at.

    Raises:
        MediaError: `media_unreadable` when it is no base64 data URI, holds a character outside the base64
            alphabet, lacks its padding, is empty, or would be more than `max_bytes` bytes.
    """
    header = _DATA_URI.match(reference)
    if header is None:
        raise MediaError("media_unreadable", f"{_shown(reference)} is not a base64 data URI")
    encoded_length = len(reference) - header.end()
    # Padding shortens what comes out by at most two bytes, so an exact fit is not refused.
    if encoded_length // 4 * 3 - 2 > max_bytes:
        raise MediaError("media_unreadable", f"a data URI of over {max_bytes} bytes, the limit")
    try:
        data = base64.b64decode(reference[header.end() :], validate=True)
    except ValueError as error:
        raise MediaError("media_unreadable", f"{_shown(reference)} is not valid base64: {error}") from None
    if not data:
        raise MediaError("media_unreadable", "a data URI without data")
    if len(data) > max_bytes:
        raise MediaError("media_unreadable", f"a data URI of {len(data)} bytes; the limit is {max_bytes}")
    return data


def require_regular_file(path: Path) -> None:
    """Refuse what must not be opened, before it is: opening a pipe would wait for a writer forever.

    Raises:
        MediaError: `media_missing`, or `media_unreadable` for a folder, a device, a pipe or a loop of links.
    """
    found, problem = _regular_file(path)
    if problem is not None:
        raise MediaError("media_unreadable", f"{path.name} {problem}")
    if not found:
        raise MediaError("media_missing", f"{path} does not exist")


def _refuse_url(reference: str) -> None:
    match = _SCHEME.match(reference)
    if match is None:
        return
    scheme = match[1].lower()
    if scheme == "file":
        raise MediaError("media_unsafe_path", "a file:// URL; give a path relative to the media root")
    try:
        host = urlsplit(reference.strip()).hostname or ""
    except ValueError:
        host = ""
    # Only scheme and host: the rest of a URL may carry a password or a signed token.
    raise MediaError("media_remote", f"{scheme}://{host} is not on this machine; download it first")


def _refuse_unusable_name(reference: str) -> None:
    if not reference.strip():
        raise MediaError("media_missing", "the reference is empty")
    if "\0" in reference:
        raise MediaError("media_unsafe_path", f"{_shown(reference)} holds a NUL character")
    try:
        encoded = os.fsencode(reference)
    except UnicodeEncodeError:
        raise MediaError("media_unsafe_path", f"{_shown(reference)} can't be a file name") from None
    if len(encoded) > MAX_PATH_BYTES or max(map(len, encoded.split(b"/"))) > MAX_NAME_BYTES:
        raise MediaError("media_unsafe_path", f"{_shown(reference)} is too long for a file name")


def _regular_file(path: Path) -> tuple[bool, str | None]:
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return False, None
    except OSError as error:
        return False, f"can't be read: {error.strerror}"
    if stat.S_ISREG(mode):
        return True, None
    return False, "is a folder" if stat.S_ISDIR(mode) else "is not a regular file"


def _shown(reference: str) -> str:
    shown = redact(reference)  # before it is cut: the start of a secret would not be known as one
    return ascii(shown if len(shown) <= 120 else f"{shown[:117]}...")


def _listed(roots: Sequence[Path]) -> str:
    return ", ".join(str(root) for root in roots) or "none given"
