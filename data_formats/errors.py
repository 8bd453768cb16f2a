"""Why a source can't be read as a whole, or one of its records can't be used."""

from __future__ import annotations


class FormatError(Exception):
    """The source as a whole can't be read: no format fits, two fit, or its bytes are not text.

    `fix` says what to do about it.
    """

    def __init__(self, message: str, *, where: str | None = None, fix: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.fix = fix

    def __reduce__(self) -> tuple[object, ...]:
        # Errors come back from other processes.
        return _format_error, (self.message, self.where, self.fix)


def _format_error(message: str, where: str | None, fix: str | None) -> FormatError:
    return FormatError(message, where=where, fix=fix)


class RecordError(Exception):
    """One candidate can't be used. `reason` is one of `REASONS`, `detail` a short sentence for people."""

    def __init__(self, reason: str, detail: str) -> None:
        if reason not in REASONS:
            raise ValueError(f"unknown reason code {reason!r}")
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[object, ...]:
        return RecordError, (self.reason, self.detail)


REASONS: dict[str, str] = {
    "bad_json": "the line or record is not valid JSON, or holds NaN, Infinity or a duplicate key",
    "bad_archive": "the archive is cut or damaged there",
    "bad_text": "the text holds a lone surrogate or another character that strict JSON can't carry",
    "bad_schema": "a field is missing or has the wrong type",
    "bad_roles": "unknown role, a system turn that is not first, or no user and assistant turns in order",
    "empty_answer": "an assistant turn has no text, or there is no assistant turn at all",
    "placeholder_mismatch": "the number of placeholders differs from the number of media",
    "unsupported_modality": "audio, or another kind of part that Aria can't see",
    "media_missing": "the file does not exist",
    "media_unsafe_path": "the path leaves the media root",
    "media_remote": "the media is a URL and nothing is fetched from the network",
    "media_unreadable": "the file is damaged or is not what its name says",
    "media_too_large": "more pixels than the limit",
    "media_too_small": "a side below the minimum, or a ratio of sides above the maximum",
    "no_video_stream": "the file has no video stream",
    "zero_frames": "the video stream has no frame",
    "too_long": "more tokens than data.max_tokens",
    "no_label": "no token of the row is in the loss",
    "not_joined": "it can't be a part of a longer row (`lengthen`)",
}
"""Reason codes of rejected records and what each means."""
