"""The errors a person can mend, each with a place and a remedy. Knows nothing of any other module."""

from __future__ import annotations


class UserError(Exception):
    """Something in the recipe, the data or the machine that the user can mend; exit code 2.

    `message` says what is wrong, `where` the place (`file:row:key` as far as known), `fix` what to do.
    """

    exit_code = 2

    def __init__(self, message: str, *, where: str | None = None, fix: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.fix = fix

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        remedy = f"\n  fix: {self.fix}" if self.fix else ""
        return f"{place}{self.message}{remedy}"


class TooManyRejects(UserError):
    """More rows were rejected than the user allowed; exit code 3."""

    exit_code = 3


class MediaError(Exception):
    """One image, video or document can't be used; `reason` is a reason code of docs/data.md.

    Not a `UserError`: whoever reads the row decides whether it is rejected or ends the run.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
