"""HTML that can't be broken by what it shows: whatever is not markup of ours is redacted, made visible and escaped.

Elements are closed as XML wants it, which HTML takes as well, so a page can be checked by a strict parser.
"""

from __future__ import annotations

import html

from aria_finetune.redaction import redact
from aria_finetune.viewing.pieces import visible

VOID = frozenset({"br", "img", "input", "meta", "rect"})


class Html(str):
    """Markup, which is written as it is. Made by the functions of this module alone."""

    __slots__ = ()


def text(value: str) -> Html:
    """Text as markup that shows it, without the secrets in it."""
    return escaped(redact(value))


def escaped(value: str) -> Html:
    """Text that holds no secret, or a part of one that does not, as markup that shows it."""
    return Html(html.escape(visible(value), quote=True))


def element(name: str, /, *children: str | None, **attributes: str | int | None) -> Html:
    """An element; children and attributes that are not `Html` are text, those that are None are left out.

    In names of attributes `_` stands for `-`, and one at the end for nothing: `class_`.
    """
    written = "".join(
        f' {key.removesuffix("_").replace("_", "-")}="{_markup(str(value) if isinstance(value, int) else value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in VOID:
        return Html(f"<{name}{written}/>")
    return Html(f"<{name}{written}>{joined(*children)}</{name}>")


def joined(*children: str | None) -> Html:
    """One after the other."""
    return Html("".join(_markup(child) for child in children if child is not None))


def _markup(value: str) -> str:
    return value if isinstance(value, Html) else text(value)
