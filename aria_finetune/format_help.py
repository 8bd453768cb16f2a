"""What `aria-finetune formats` prints: the list of formats, or one of them with schema, example and traps.

Knows the registry; reads no data.
"""

from __future__ import annotations

import json

from aria_finetune.data_formats.errors import FormatError
from aria_finetune.data_formats.registry import FORMATS, get
from aria_finetune.errors import UserError


def describe(name: str | None = None) -> str:
    """The list of formats, or the page of one.

    Raises:
        UserError: there is no format of that name.
    """
    if name is None:
        width = max(len(known.name) for known in FORMATS)
        lines = [f"{known.name:{width}}  {known.title}" for known in FORMATS]
        return "\n".join([*lines, "", "A page on one: aria-finetune formats NAME"])
    try:
        known = get(name)
    except FormatError as error:
        raise UserError(error.message, fix=error.fix) from error
    traps = "\n".join(f"  - {trap}" for trap in known.traps)
    example = json.dumps(known.example, indent=2, ensure_ascii=False)
    return (
        f"{known.name}: {known.title}\n\nschema\n{_indented(known.schema)}\n\n"
        f"example, one record\n{_indented(example)}\n\ntraps\n{traps}"
    )


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.strip().splitlines())
