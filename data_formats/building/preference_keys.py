"""What gives away records of preferences, which no format for instruction data may take for its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CHOSEN_KEYS = ("chosen", "preferred_output")
REJECTED_KEYS = (
    "rejected",
    "rejected_response",
    "rejected_messages",
    "rejected_images",
    "non_preferred_output",
)
LABEL_KEYS = ("label", "kto_tag")


def is_pair(record: Mapping[str, Any]) -> bool:
    """Whether the record holds an answer to prefer or one to avoid; a key with null does not say so."""
    return any(record.get(key) is not None for key in (*CHOSEN_KEYS, *REJECTED_KEYS))


def is_labelled(record: Mapping[str, Any]) -> bool:
    """Whether the record says that its answer is wanted or not; any other `label` is the class of something."""
    if record.get("kto_tag") is not None or isinstance(record.get("label"), bool):
        return True
    return "completion" in record and record.get("label") is not None


def is_preference(record: Mapping[str, Any]) -> bool:
    """Whether the record is one of preferences, in pairs or labelled."""
    return is_pair(record) or is_labelled(record)
