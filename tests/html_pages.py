"""A page as a browser would take it apart: elements with their attributes, texts and children. Refuses what is not closed."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser

from PIL import Image

VOID = {"br", "img", "input", "meta", "rect"}


@dataclass
class Element:
    """An element; `children` are elements and texts in their order."""

    tag: str
    attributes: dict[str, str]
    children: list[Element | str] = field(default_factory=list)

    @property
    def classes(self) -> set[str]:
        return set(self.attributes.get("class", "").split())

    @property
    def text(self) -> str:
        return "".join(child if isinstance(child, str) else child.text for child in self.children)

    def all(self, tag: str = "", of: str = "") -> list[Element]:
        """Elements below this one with a tag and a class, in the order of the page."""
        return [one for one in self._below() if tag in {"", one.tag} and (not of or of in one.classes)]

    def one(self, tag: str = "", of: str = "") -> Element:
        (found,) = self.all(tag, of)
        return found

    def _below(self) -> Iterator[Element]:
        for child in self.children:
            if isinstance(child, Element):
                yield child
                yield from child._below()


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open = [Element("", {})]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"<{tag}> has an attribute twice"
        made = Element(tag, {name: value or "" for name, value in attrs})
        self.open[-1].children.append(made)
        if tag not in VOID:
            self.open.append(made)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in VOID, f"<{tag}/> is closed for XML alone"
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1].tag == tag, f"</{tag}> closes <{self.open[-1].tag}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


def read_page(text: str) -> Element:
    """The page's `html` element."""
    reader = _Reader()
    reader.feed(text)
    reader.close()
    assert [one.tag for one in reader.open] == [""], "elements are left open"
    return reader.open[0].one("html")


def row_text(row: Element) -> str:
    """What the page says stands in a row: its texts, and its pictures in the words of their captions."""
    parts = []
    for tokens in row.all("div", "tokens"):
        parts += [run.text.replace("↵", "\n") for run in tokens.all("span", "run")]
    return "".join(parts)


def picture(image: Element) -> Image.Image:
    """The picture of an `img`."""
    head, _, data = image.attributes["src"].partition(",")
    assert head == "data:image/jpeg;base64"
    opened = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
    opened.load()
    return opened
