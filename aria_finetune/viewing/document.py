"""One HTML file that fetches nothing and runs nothing.

A Content-Security-Policy allows pictures that are in the page and the one style sheet by its hash, nothing else.
"""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files

from aria_finetune.viewing.markup import Html, element

DOCTYPE = "<!DOCTYPE html>"


def mark_of(page: str) -> str:
    """How every page of a kind begins, by which one is known that may be replaced."""
    return f'{DOCTYPE}\n<html lang="en" data-page="aria-finetune {page}">'


def document(mark: str, title: str, styles: tuple[str, ...], *body: Html) -> str:
    """The whole page; `styles` are names of this room's style sheets."""
    style = Html("".join(files(__package__).joinpath(name).read_text(encoding="utf-8") for name in styles))
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_policy(style)),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", style),
    )
    return f"{mark}\n{head}\n{element('body', *body)}\n</html>\n"


def _policy(style: str) -> str:
    digest = base64.b64encode(hashlib.sha256(style.encode("utf-8")).digest()).decode("ascii")
    return f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
