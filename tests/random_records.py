"""Records of any format that are nearly right, and JSON that is nothing of the kind, drawn from a seed.

The same seed gives the same records. For tests that need thousands of them: `mutated_records` draws by hypothesis,
which shrinks what it finds and is slower.
"""

from __future__ import annotations

import copy
import random
import re
from collections.abc import Iterator, Sequence
from typing import Any

_NUMBER = re.compile(r"\d+")

TEXTS = (
    "", " ", "\n", "a.jpg", "b.png", "../a.jpg", "clip.mp4", "sound.wav", "a.pdf", "https://host/a.jpg", "data:,",
    "data:image/png;base64,iVBORw0KGgo=", "data:image/png;base64,!", "user", "assistant", "human", "gpt", "system",
    "tool", "function", "text", "image", "image_url", "video", "audio", "document", "<image>", "<video>", "<audio>",
    "<image><image>", "<image>\n", "Picture 1: <img>a.jpg</img>", "<|im_end|>", "<ref>x</ref><box>(1,2),(3,4)</box>",
    "A", "B. two", "(C)", "yes", "[1, 2]", "{}", "[]", "null", "nan", "0", "-1", "3.5", "1:02", "00:00:01.5", "1e999",
    '{"a": 1}', "['a']", "a\tb", "a.jpg#0\tc", "a,b", "\0", "\x7f", "\u2028", "\ufeff", "\ufffd", "grün", "\U0001f40b",
    "\ud800", "\udcff.jpg", "٣", "x" * 300, "x" * 5000,
)  # fmt: skip
NUMBERS = (
    0, 1, -1, 2, 7, 100, 255, 2**31 - 1, 2**31, 2**53, 2**53 + 1, 2**63, -(2**63) - 1, 2**64, 10**30, 10**400, 0.0, -0.0, 0.5, -0.5,
    1.0, 1.5, 3.999999, 1e-320, 1e15, 1e22, 1.7e308, -1.7e308,
)  # fmt: skip
KEYS = (
    "id", "other", "", "role", "from", "value", "content", "type", "text", "image", "images", "video", "videos", "audio",
    "path", "url", "image_url", "base64", "bytes", "messages", "conversations", "conversation", "question", "questions",
    "answer", "answers", "options", "choices", "caption", "annotations", "data", "tools", "tool_calls", "system", "train",
    "weight", "loss", "start", "end", "num_frames", "page", "\ud800", "a\0b", "__key__", "__class__",
)  # fmt: skip


class RandomRecords:
    """Draws records; `random` is its source of chance, and `words` mean something to the format in question."""

    def __init__(self, seed: object, words: Sequence[str] = ()) -> None:
        self.random = random.Random(repr(seed))
        self._words = words

    def record(self, examples: Sequence[object], others: Sequence[object] = ()) -> object:
        """An example with something changed in it, now and then with a piece of one of the `others`, or any JSON."""
        chance = self.random.random()
        example = copy.deepcopy(self.random.choice(examples))
        if chance < 0.05:
            return example
        if chance < 0.12:
            return self.any_json(keys_of(example))
        for _ in range(self.random.choice((1, 1, 1, 2, 3, 6))):
            example = self._changed(example, others)
        return example

    def any_json(self, keys: Sequence[str] = (), depth: int = 4) -> object:
        """Any JSON value; the keys of its objects are often those given."""
        chance = self.random.random()
        if depth == 0 or chance < 0.35:
            return self.random.choice((None, True, False, self.random.choice(NUMBERS), self.text(), self.text()))
        if chance < 0.6:
            return [self.any_json(keys, depth - 1) for _ in range(self.random.choice((0, 1, 1, 2, 3)))]
        return {self._key(keys): self.any_json(keys, depth - 1) for _ in range(self.random.choice((0, 1, 2, 3, 4)))}

    def text(self) -> str:
        """A text that means something to some format, or a few characters."""
        if self._words and self.random.random() < 0.3:
            return self.random.choice(self._words)
        if self.random.random() < 0.8:
            return self.random.choice(TEXTS)
        return "".join(chr(self.random.choice((9, 32, 65, 60, 62, 44, 233, 0x4F60))) for _ in range(5))

    def _key(self, keys: Sequence[str]) -> str:
        known = self._words if self._words and self.random.random() < 0.5 else KEYS
        return self.random.choice(keys if keys and self.random.random() < 0.5 else known)

    def _changed(self, root: object, others: Sequence[object]) -> object:  # noqa: C901 (a table of changes)
        """The value with one change somewhere in it."""
        holder: list[object] = [root]
        spots = list(places(holder))
        inside, key = self.random.choice(spots)
        keys = keys_of(root)
        value = inside[key]
        match self.random.randrange(12):
            case 0 | 1 | 2:
                inside[key] = self._other(value)
            case 3:
                inside[key] = self.any_json(keys)
            case 4 if inside is not holder:
                del inside[key]
            case 5 if isinstance(inside, dict):
                inside[self._renumbered(key) or self._key(keys)] = inside.pop(key)
            case 6:
                inside[key] = [value] if self.random.random() < 0.5 else {self._key(keys): value}
            case 7 if isinstance(value, list | dict) and value:
                inside[key] = self.random.choice(list(value.values()) if isinstance(value, dict) else value)
            case 8 if isinstance(inside, list) and inside is not holder:
                inside[key:key] = [copy.deepcopy(value) for _ in range(self.random.choice((1, 1, 2, 20)))]
            case 9 if isinstance(value, list):
                self.random.shuffle(value)
            case 10:
                there, place = self.random.choice(list(places([self.random.choice(others or [root])])))
                inside[key] = copy.deepcopy(there[place])
            case _ if isinstance(value, dict):
                value[self._key(keys)] = self.any_json(keys)
            case _:
                inside[key] = self._other(value)
        return holder[0]

    def _other(self, value: object) -> object:
        """Something near to the value: another number, the text with more in it, the number as text."""
        if isinstance(value, str) and self.random.random() < 0.2:
            return self._renumbered(value)
        if isinstance(value, str) and self.random.random() < 0.6:
            place = self.random.randint(0, len(value))
            return self.random.choice((value[:place] + self.text() + value[place:], value[:place], value * 2, [value]))
        if isinstance(value, bool | int | float):
            return self.random.choice((str(value), self.random.choice(NUMBERS), -value, None, value + 1))
        return self.random.choice((None, "", [], {}, True, 0, self.random.choice(NUMBERS), self.text()))

    def _renumbered(self, text: str) -> str:
        """The text with its numbers replaced; empty if there are none."""
        number = self.random.choice(("0", "007", "99", "-1", "1.5", "9" * 25, "9" * 400, "9" * 5000, "٣", "²", "1_0"))
        return _NUMBER.sub(number, text) if _NUMBER.search(text) else ""


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every object or list inside of `value`, itself included, with each of its keys or indices."""
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from places(value[key])


def keys_of(value: object) -> list[str]:
    """The keys of all objects in a value."""
    if isinstance(value, dict):
        return [*value, *(key for inner in value.values() for key in keys_of(inner))]
    return [key for inner in value for key in keys_of(inner)] if isinstance(value, list) else []
