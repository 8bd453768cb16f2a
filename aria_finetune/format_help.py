"""What `aria-finetune formats` prints, and the pages of `docs/formats`: formats with schema, example and traps.

    python -m aria_finetune.format_help docs/formats

writes the pages. Knows the registry; reads no data.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from aria_finetune.data_formats import plugins
from aria_finetune.data_formats.errors import FormatError
from aria_finetune.data_formats.format import Format
from aria_finetune.data_formats.registry import FAMILIES, FORMATS, formats, get
from aria_finetune.errors import UserError


def describe(name: str | None = None) -> str:
    """The list of formats, or the page of one.

    Raises:
        UserError: there is no format of that name.
    """
    if name is None:
        width = max(len(known.name) for known in formats())
        listed = FAMILIES | ({"installed": plugins.installed()} if plugins.installed() else {})
        families = (
            f"{family}\n" + "\n".join(f"  {known.name:{width}}  {known.title}" for known in members)
            for family, members in listed.items()
        )
        return "\n\n".join([*families, "A page on one: aria-finetune formats NAME"])
    try:
        known = get(name, formats())
    except FormatError as error:
        raise UserError(error.message, fix=error.fix) from error
    sections = [f"{known.name}: {known.title}"]
    if known.refused:
        sections.append(f"not converted\n  {known.refused}")
    sections.append(f"schema\n{_indented(known.schema)}")
    sections.append(f"example\n{_indented(_example(known))}")
    if known.companions:
        sections.append("files beside it\n" + "\n".join(f"  - {line}" for line in _companions(known)))
    sections.append("traps\n" + "\n".join(f"  - {trap}" for trap in known.traps))
    return "\n\n".join(sections)


def pages() -> dict[str, str]:
    """The pages of `docs/formats` by file name: one for each format, and the list of all."""
    lists = []
    made: dict[str, str] = {}
    for family, members in FAMILIES.items():
        lines = [f"- [{known.name}]({known.name}.md): {known.title}" for known in members]
        lists.append(f"## {family.capitalize()}\n\n" + "\n".join(lines))
        made |= {f"{known.name}.md": _page(known) for known in members}
    head = (
        f"# Formats\n\n{len(FORMATS)} formats are read. `aria-finetune formats NAME` shows these pages in the terminal."
    )
    return made | {"README.md": "\n\n".join([head, *lists]) + "\n"}


def _page(known: Format) -> str:
    sections = [f"# {known.name}\n\n{known.title}."]
    if known.refused:
        sections.append(f"Told by name and not converted: {known.refused}")
    sections.append(f"## Schema\n\n```text\n{known.schema.strip()}\n```")
    sections.append(f"## Example\n\n```text\n{_example(known)}\n```")
    if known.companions:
        sections.append("## Files beside it\n\n" + "\n".join(f"- {line}" for line in _companions(known)))
    sections.append("## Traps\n\n" + "\n".join(f"- {trap}" for trap in known.traps))
    return "\n\n".join(sections) + "\n"


def _example(known: Format) -> str:
    if isinstance(known.example, str):
        return known.example
    return json.dumps(known.example, indent=2, ensure_ascii=False, default=_shown)


def _companions(known: Format) -> list[str]:
    needed = {True: " (needed)", False: ""}
    return [f"{file.name}{needed[file.required]}: {file.beside}" for file in known.companions]


def _write_pages(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (folder / name).write_text(text, encoding="utf-8")


def _shown(value: object) -> str:
    return f"<{len(value)} bytes>" if isinstance(value, bytes) else str(value)


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.strip().splitlines())


if __name__ == "__main__":
    _write_pages(Path(sys.argv[1]))
