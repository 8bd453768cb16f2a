"""How long something takes, as people read it. Knows nothing else."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """Seconds as `1:02:03` or `2:03`."""
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"
