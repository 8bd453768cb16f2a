"""A row in a terminal: a line for each span, its kind by a word and a colour. Knows no markup."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from aria_finetune.conversion import SHOWN_REJECTS, Reject
from aria_finetune.redaction import redact
from aria_finetune.viewing.pieces import visible
from aria_finetune.viewing.rows import ShownRow
from aria_finetune.viewing.spans import PictureSpan, Span

STYLES = {"role": "dim", "text": "", "LOSS": "green underline", "image": "cyan", "frame": "magenta"}
FAULT = "bold white on red"
LONGEST = 2000
"""Characters of a span that are shown; of longer ones the beginning and the end."""

_TAIL = 300
_JOINT = 16
_INDENT = " " * 15


def show_legend(console: Console) -> None:
    """Say what the columns and colours mean."""
    _print(console, Text("tokens  kind   what the model reads"))
    for kind, meaning in (
        ("role", "opens or closes a turn"),
        ("text", "is read, and not in the loss"),
        ("LOSS", "is in the loss"),
        ("image", "is a picture"),
        ("frame", "is a frame of a video"),
    ):
        _print(console, Text.assemble(" " * 8, (f"{kind:5}", STYLES[kind]), f"  {meaning}"))


def show_row(row: ShownRow, console: Console) -> None:
    """Print a row: where it is from, how many tokens it has, what is wrong with it, and its spans."""
    place = row.place
    _print(console, Text(""))
    head = f"row {place.number:,} of {place.total:,}: {place.where}  {place.id}"
    _print(console, Text(_line(head, console), "bold"))
    _print(console, Text(_line(f"  from {place.origin}", console)))
    if row.bad is not None:
        told = f"  not shown: {row.bad.media}: {row.bad.reason}: {row.bad.detail}"
        _print(console, Text(_line(told, console), FAULT))
        return
    counts = f"  {row.tokens:,} tokens, {row.in_loss:,} in the loss, {row.image_tokens:,} image tokens"
    _print(console, Text(counts))
    for fault in row.faults:
        _print(console, Text(_line(f"  WRONG: {fault}", console), FAULT))
    for turn in row.turns:
        for span in turn.spans:
            _print(console, _span(span, console))


def show_rejects(kind: str, rejects: Sequence[Reject], console: Console) -> None:
    """Print the first rejected rows with their reasons, and how many more there are."""
    if not rejects:
        return
    _print(console, Text(f"\n{len(rejects):,} rejected of {kind}", "bold"))
    for reject in rejects[:SHOWN_REJECTS]:
        _print(console, Text(_line(f"  {reject.describe()}", console)))
    if len(rejects) > SHOWN_REJECTS:
        _print(console, Text(f"  and {len(rejects) - SHOWN_REJECTS:,} more"))


def _span(span: Span, console: Console) -> Text:
    kind = span_word(span)
    style = FAULT if isinstance(span, PictureSpan) and span.in_loss else STYLES[kind]
    line = Text.assemble(f"{span.tokens:6,}  ", (f"{kind:5}", STYLES[kind]), "  ")
    for number, shown in enumerate(_shown(span, console).split("\n")):
        line.append(f"\n{_INDENT}" if number else "")
        line.append(shown, style)
    return line


def span_word(span: Span) -> str:
    """The word for the kind of a span; text in the loss is that first of all."""
    return span.kind if isinstance(span, PictureSpan) or not span.in_loss else "LOSS"


def _shown(span: Span, console: Console) -> str:
    if isinstance(span, PictureSpan):
        return _line(f"{span.before}{span.label}{span.after}", console)
    text = redact(span.text)
    if len(text) > LONGEST:
        left_out = len(text) - LONGEST
        text = f"{text[: LONGEST - _TAIL]} [... {left_out:,} more characters ...] {text[-_TAIL:]}"
    text, mark = _safe(text, console), _safe("↵", console)
    if len(text) <= _JOINT:  # such as the time of a frame with the line break before it
        return text.replace("\n", mark)
    return text.replace("\n", f"{mark}\n").removesuffix("\n")


def _line(text: str, console: Console) -> str:
    """The same in one line."""
    return _safe(text, console).replace("\n", "\\n")


def _safe(text: str, console: Console) -> str:
    """Text without secrets, without what would steer the terminal, and in characters that it has."""
    encoding = console.encoding
    return visible(redact(text)).encode(encoding, "backslashreplace").decode(encoding)


def _print(console: Console, text: Text) -> None:
    # One line each, however long: a secret that went over two would not be known as one.
    console.print(text, soft_wrap=True, highlight=False)
