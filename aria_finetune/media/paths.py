"""From a reference in the data to a file that may be opened: inside a media root, on this machine, regular.

Knows nothing of what is in the file and opens none; nothing is ever fetched.
"""

from __future__ import annotations

import base64
import os
import re
import stat
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from urllib.parse import urlsplit

from aria_finetune.errors import MediaError
from aria_finetune.redaction import redact

MAX_PATH_BYTES = 4096
MAX_NAME_BYTES = 255
MAX_DATA_URI_BYTES = 64 * 1024 * 1024
REMEMBERED_FOLDERS = 4096

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(?:/[A-Za-z0-9_][A-Za-z0-9_.-]*)*")
_SCHEME = re.compile(r"\s*([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
_NO_NAMES = frozenset({"", ".", ".."})
_DATA_URI = re.compile(r"data:[^,]*;base64,", re.IGNORECASE)


class MediaRoots:
    """Folders in which media lie. Where the folders below them really are is found out once and remembered."""

    def __init__(self, roots: Sequence[Path]) -> None:
        self._roots = tuple(roots)
        self._real_roots = [os.path.realpath(root) for root in roots]
        self._named_roots = [os.path.abspath(root) for root in roots]  # noqa: PTH100 (links stay)
        self._below = _joined(self._named_roots[0], "") if roots else ""
        self._real_folder = lru_cache(REMEMBERED_FOLDERS)(os.path.realpath)

    def find(self, reference: str) -> str:
        """Find the regular file that `reference` names under the first of the roots that has it.

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
        outside = False
        unreadable: str | None = None
        for root in self._real_roots:
            candidate = self._real(_joined(root, reference))
            if not self._is_inside(candidate, self._real_roots):
                outside = True
                continue
            found, problem = _regular_file(candidate)
            if found:
                return candidate
            unreadable = unreadable or problem
        if unreadable is not None:
            raise MediaError("media_unreadable", f"{_shown(reference)} {unreadable}")
        roots = _listed(self._roots)
        if outside:
            raise MediaError("media_unsafe_path", f"{_shown(reference)} leads outside the media roots ({roots})")
        raise MediaError("media_missing", f"{_shown(reference)} is not under the media roots ({roots})")

    def name(self, reference: str) -> str | None:
        """The path that `reference` names under the first root, made without a look at the disk.

        Returns:
            An absolute path without `..`; None for a URL, what can't be the name of a file, and what leaves the roots.
        """
        # Most names are plain, and there may be a hundred million of them.
        if self._below and len(reference) <= MAX_NAME_BYTES and _PLAIN_NAME.fullmatch(reference):
            return self._below + reference
        roots = self._named_roots
        try:
            _refuse_url(reference)
            _refuse_unusable_name(reference)
        except MediaError:
            return None
        path = os.path.normpath(_joined(roots[0], reference)) if roots else ""
        return path if self._is_inside(path, roots) else None

    def _real(self, path: str) -> str:
        folder, name = os.path.split(path)
        if name in _NO_NAMES:
            return os.path.realpath(path)
        path = _joined(self._real_folder(folder), name)
        return os.path.realpath(path) if os.path.islink(path) else path  # noqa: PTH114 (a Path takes longer)

    @staticmethod
    def _is_inside(path: str, roots: Sequence[str]) -> bool:
        return any(path == root or path.startswith(_joined(root, "")) for root in roots)


def resolve_media(reference: str, roots: Sequence[Path]) -> Path:
    """Find a file as `MediaRoots.find` does.

    Raises:
        MediaError: as `MediaRoots.find`.
    """
    return Path(MediaRoots(roots).find(reference))


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


def _joined(folder: str, reference: str) -> str:
    return reference if reference.startswith("/") else f"{folder.rstrip('/')}/{reference}"


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


def _regular_file(path: str | Path) -> tuple[bool, str | None]:
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116 (a Path takes longer)
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
