"""Strict YAML: one document of text to plain values, each with the line it was written on.

Numbers, booleans and null follow the core schema of YAML 1.2.2 (section 10.3), so `1e-4` is a number and `no`
a string. Nothing here can make an object of any other type: the composer has no constructor. What cannot be
read in one way only is refused: duplicate keys, tags, several documents, `012`, and aliases that multiply.
Does not know what a recipe is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yaml import MarkedYAMLError, YAMLError
from yaml.composer import Composer
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from yaml.parser import Parser
from yaml.reader import Reader, ReaderError
from yaml.resolver import BaseResolver
from yaml.scanner import Scanner

from aria_finetune.errors import UserError

KeyPath = tuple[str | int, ...]
"""Keys and list positions from the root of the document, e.g. `("data", "train", 0, "path")`."""

MAX_BYTES = 1_000_000
MAX_DEPTH = 32
MAX_NODES = 10_000
MAX_INTEGER_CHARACTERS = 19

_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_BOOLEANS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INTEGER = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_LEADING_ZERO = re.compile(r"[-+]?0[0-9]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_SURROGATE = re.compile(r"[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Document:
    """The values of a document and the line, counted from 1, of every key and list entry."""

    data: Any
    lines: Mapping[KeyPath, int]

    def line_of(self, path: KeyPath) -> int:
        """The line of `path` or of its nearest written ancestor.

        A position in a list that was written as a single value counts as that value.
        """
        known: KeyPath = ()
        for key in path:
            if (*known, key) in self.lines:
                known = (*known, key)
            elif not isinstance(key, int):
                break
        return self.lines.get(known, 1)


def read_yaml(path: Path) -> Document:
    """Read a file of UTF-8 text.

    Raises:
        UserError: the file can't be read, is not UTF-8, or is not YAML as `parse_yaml` wants it.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"can't be read: {error.strerror}", where=str(path)) from error
    if len(content) > MAX_BYTES:
        raise UserError(f"is larger than {MAX_BYTES:,} bytes, so it is hardly a recipe", where=str(path))
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = _line_after(content[: error.start].decode())
        raise UserError("is not UTF-8 text", where=f"{path}:{line}", fix="save the file as UTF-8") from error
    return parse_yaml(text, str(path))


def parse_yaml(text: str, name: str) -> Document:
    """Parse one document; an empty one is None. `name` stands for the text in messages.

    Raises:
        UserError: with `name:line`, for anything that is not one strict document.
    """
    root = _compose(text, name)
    builder = _Builder(name)
    data = None if root is None else builder.build(root, (), depth=0)
    return Document(data=data, lines=builder.lines)


class _StrictComposer(Reader, Scanner, Parser, Composer, BaseResolver):
    """PyYAML from text to nodes. Plain scalars stay text: `BaseResolver` has no rules of its own."""

    def __init__(self, text: str, name: str) -> None:
        Reader.__init__(self, text)
        Scanner.__init__(self)
        Parser.__init__(self)
        Composer.__init__(self)
        BaseResolver.__init__(self)
        self._name = name
        self._depth = 0

    def next_line(self) -> int:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        line: int = event.start_mark.line
        return line + 1

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        where = f"{self._name}:{self.next_line()}"
        tag = getattr(self.current_event, "tag", None)
        if tag is not None:
            raise UserError(f"the tag {tag!r} is not allowed", where=where, fix="write a plain value without `!`")
        # Composing is recursive, so depth is bounded here and not only when values are built.
        if self._depth > MAX_DEPTH:
            raise UserError(f"nested deeper than {MAX_DEPTH} levels", where=where)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


def _compose(text: str, name: str) -> Node | None:
    try:
        composer = _StrictComposer(text, name)
    except ReaderError as error:
        line = _line_after(text[: error.position])
        raise UserError(
            f"holds the character U+{ord(text[error.position]):04X}, which YAML text can't hold", where=f"{name}:{line}"
        ) from error
    try:
        root = composer.get_node() if composer.check_node() else None
        more = composer.check_node()
    except MarkedYAMLError as error:
        raise _syntax_error(error, text, name) from error
    except (YAMLError, ValueError, OverflowError) as error:
        # PyYAML passes `"\UFFFFFFFF"` and an endless `%YAML` version straight to chr() and int().
        raise UserError(f"not valid YAML: {error}", where=f"{name}:{composer.line + 1}") from error
    if more:
        where = f"{name}:{composer.next_line()}"
        raise UserError("a second document begins here", where=where, fix="keep one document and no `---`")
    return root


def _syntax_error(error: MarkedYAMLError, text: str, name: str) -> UserError:
    mark = error.problem_mark or error.context_mark
    index = mark.line if mark else 0
    lines = text.splitlines()
    line = lines[index] if index < len(lines) else ""
    indent = line[: len(line) - len(line.lstrip())]
    if "\t" in indent:
        fix = "indent with spaces; YAML allows no tabs there"
    else:
        fix = "check the indentation, and put quotes around text with : # @ % ` [ ] { } * & ! in it"
    context = f" ({error.context})" if error.context else ""
    return UserError(f"not valid YAML: {error.problem}{context}", where=f"{name}:{index + 1}", fix=fix)


class _Builder:
    """Makes plain values of nodes, every alias and merge expanded and paid for from one budget."""

    def __init__(self, name: str) -> None:
        self.lines: dict[KeyPath, int] = {}
        self._name = name
        self._nodes = 0

    def build(self, node: Node, path: KeyPath, *, depth: int) -> Any:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise self._error(f"more than {MAX_NODES:,} values once the aliases are written out", node)
        if depth > MAX_DEPTH:
            raise self._error(f"nested deeper than {MAX_DEPTH} levels once the aliases are written out", node)
        if isinstance(node, MappingNode):
            value: Any = self._mapping(node, path, depth)
        elif isinstance(node, SequenceNode):
            value = [self.build(item, (*path, index), depth=depth + 1) for index, item in enumerate(node.value)]
        else:
            value = self._scalar(node)
        self.lines[path] = _line(node)
        return value

    def _mapping(self, node: MappingNode, path: KeyPath, depth: int) -> dict[str, Any]:
        entries = self._entries(node)
        data: dict[str, Any] = {}
        for key_node, value_node in entries.values():
            if _is_merge(key_node):
                # The first of several merged mappings wins, and the mapping's own keys win over all of them.
                for merged in reversed(self._merged_nodes(value_node)):
                    data.update(self.build(merged, path, depth=depth + 1))
        for key, (key_node, value_node) in entries.items():
            if not _is_merge(key_node):
                data[key] = self.build(value_node, (*path, key), depth=depth + 1)
                self.lines[(*path, key)] = _line(key_node)
        return data

    def _entries(self, node: MappingNode) -> dict[str, tuple[ScalarNode, Node]]:
        entries: dict[str, tuple[ScalarNode, Node]] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, ScalarNode):
                raise self._error("a key must be a name, not a list or a mapping", key_node)
            key = self._text(key_node)
            if key in entries:
                first, second = _line(entries[key][0]), _line(key_node)
                raise self._error(
                    f"the key {key!r} is written twice, on lines {first} and {second}",
                    key_node,
                    fix="keep one of them",
                )
            entries[key] = (key_node, value_node)
        return entries

    def _merged_nodes(self, node: Node) -> list[Node]:
        nodes: list[Node] = list(node.value) if isinstance(node, SequenceNode) else [node]
        for merged in nodes:
            if not isinstance(merged, MappingNode):
                raise self._error("`<<` merges mappings only", merged, fix="write `<<: *name` of an anchored mapping")
        return nodes

    def _scalar(self, node: Node) -> str | int | float | bool | None:
        text = self._text(node)
        # A style means quotes or a block, which always hold text.
        if not isinstance(node, ScalarNode) or node.style is not None:
            return text
        try:
            return plain_value(text)
        except ValueError as error:
            raise self._error(str(error), node, fix=f'write "{text[:40]}" in quotes if it is text') from error

    def _text(self, node: Node) -> str:
        text: str = node.value
        if _SURROGATE.search(text):
            raise self._error("holds half of a surrogate pair, which is no character", node)
        return text

    def _error(self, message: str, node: Node, *, fix: str | None = None) -> UserError:
        return UserError(message, where=f"{self._name}:{_line(node)}", fix=fix)


def plain_value(text: str) -> str | int | float | bool | None:
    """What an unquoted scalar means.

    Raises:
        ValueError: `012` and its like, octal in YAML 1.1 and decimal in 1.2, or more digits than any key needs.
    """
    if text in _NULL:
        return None
    if text in _BOOLEANS:
        return _BOOLEANS[text]
    if _LEADING_ZERO.fullmatch(text):
        raise ValueError(f"the number {text[:40]} begins with a zero, so it could be octal or decimal")
    if _INTEGER.fullmatch(text):
        if len(text) > MAX_INTEGER_CHARACTERS:
            raise ValueError(f"the number {text[:40]} has more than {MAX_INTEGER_CHARACTERS} digits")
        return int(text, _base(text))
    if _FLOAT.fullmatch(text):
        return float(text.replace(".", "") if text[-1].isalpha() else text)
    return text


def _base(text: str) -> int:
    return {"0o": 8, "0x": 16}.get(text[:2], 10)


def _line_after(text: str) -> int:
    """The line that whatever follows `text` stands on."""
    return len(f"{text}.".splitlines())


def _is_merge(node: ScalarNode) -> bool:
    return node.style is None and node.value == "<<"


def _line(node: Node) -> int:
    line: int = node.start_mark.line
    return line + 1
