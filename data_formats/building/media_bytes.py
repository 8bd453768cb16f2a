"""Rows that hold their media as bytes, as those of Parquet files do: which they are, and what is left of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from aria_finetune.data_formats.building import fields
from aria_finetune.data_formats.building.media_fields import without_bytes


def is_embedded(value: object) -> bool:
    """Whether a value is bytes, an object with room for them, or a list with one of these in it."""
    if isinstance(value, list):
        return any(not isinstance(item, list) and is_embedded(item) for item in value)
    return isinstance(value, bytes) or (isinstance(value, dict) and "bytes" in value)


def rest(record: Mapping[str, Any], known: Collection[str]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The fields beside the known ones, for the metadata, and `bytes_dropped` if bytes in them had to go."""
    return without_bytes(fields.rest(record, known))
