"""`chat`: lines in, answers out. What a line asks for, what Ctrl-C does, and that no error ends it.

Knows a conversation and a terminal or a pipe.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Self

from aria_finetune.data_formats.record import PartType
from aria_finetune.errors import UserError
from aria_finetune.speaking.conversation import Conversation

HELP = """\
/image FILE, /video FILE, /pdf FILE   show it with the next question
/system TEXT                          say this before all else; without a text, nothing
/reset                                begin anew
/save FOLDER                          write the conversation as a data set that train reads
/quit                                 end; so does the end of the input
Ctrl-C stops an answer. A line that ends in \\ goes on in the next."""
KINDS: dict[str, PartType] = {"/image": "image", "/video": "video", "/pdf": "document", "/document": "document"}


class Stopper:
    """Lets SIGINT stop an answer, and only that, inside a `with` block; at a prompt it is a KeyboardInterrupt."""

    def __init__(self) -> None:
        self.asked = self._answering = False

    @contextmanager
    def handling(self) -> Iterator[None]:
        """Within the block signals come here, as far as this is the thread that gets them."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = signal.signal(signal.SIGINT, self._handle)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, previous)

    @contextmanager
    def answering(self) -> Iterator[Callable[[], bool]]:
        """Within the block a signal is remembered; gives what says whether none came."""
        self.asked, self._answering = False, True
        try:
            yield lambda: not self.asked
        finally:
            self._answering = False

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        if not self._answering:
            raise KeyboardInterrupt
        self.asked = True


def talk(conversation: Conversation, lines: Iterable[str], write: Callable[[str], None]) -> None:
    """Hold a conversation until `/quit` or the last line.

    Args:
        conversation: with the model.
        lines: what is typed, with or without line ends; reading one may raise KeyboardInterrupt.
        write: takes what is to be shown.
    """
    stopper, typed = Stopper(), iter(lines)
    with stopper.handling():
        while True:
            try:
                line = _next(typed)
                if line is None or line.strip() == "/quit":
                    return
                if line.strip():
                    _try(line, conversation, stopper, write)
            except KeyboardInterrupt:
                write("\n(/quit ends the chat)\n")


def _try(line: str, conversation: Conversation, stopper: Stopper, write: Callable[[str], None]) -> None:
    """Do what a line asks for, and tell what can't be done. What can't be read or shown is not told here: it ends the chat."""
    try:
        _obey(line, conversation, stopper, write)
    except UserError as error:
        write(f"error: {error}\n")
    except OSError as error:
        write(f"error: {error}\n  fix: check the file, permissions and free space on the disk\n")


def _folder(name: str) -> Path:
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise UserError(str(error), where=name, fix="write the path in full") from error


def _next(typed: Iterator[str]) -> str | None:
    """The next line, with those that it goes on in; None at the end."""
    line = next(typed, None)
    while line is not None and line.rstrip("\n").endswith("\\"):
        line = line.rstrip("\n")[:-1] + "\n" + (next(typed, None) or "")
    return line if line is None else line.rstrip("\n")


def _obey(line: str, conversation: Conversation, stopper: Stopper, write: Callable[[str], None]) -> None:
    word, _, rest = line.strip().partition(" ")
    rest = rest.strip()
    if word in KINDS:
        if not rest:
            raise UserError(f"{word} needs a file", fix=f"{word} FILE")
        write(f"({rest}: {conversation.attach(KINDS[word], rest)}; shown with the next question)\n")
    elif word == "/system":
        conversation.system = rest or None
        write("(said before all else from now on)\n" if rest else "(nothing is said before all else any more)\n")
    elif word == "/reset":
        conversation.reset()
        write("(the conversation begins anew)\n")
    elif word == "/save":
        if not rest:
            raise UserError("/save needs a folder to make", fix="/save FOLDER")
        conversation.save(_folder(rest))
        write(f"(the conversation is in {rest}/; name it in data.train)\n")
    elif word == "/help":
        write(HELP + "\n")
    elif word.startswith("/") and word[1:].isalpha():
        raise UserError(f"there is no {word}", fix="/help lists what there is")
    else:
        _answer(line, conversation, stopper, write)


def _answer(line: str, conversation: Conversation, stopper: Stopper, write: Callable[[str], None]) -> None:
    with stopper.answering() as wanted:
        answer = conversation.say(line, write, wanted)
    write("\n")
    if answer.stop == "stopped":
        write("(stopped)\n" if answer.ids else "(stopped before the first token; the question is taken back)\n")
    elif not answer.ids:
        write("(no answer; the question is taken back)\n")
    elif answer.stop == "length":
        write("(cut at --max-new-tokens)\n")


class TypedLines:
    """Lines of standard input; on a terminal behind a prompt, with what was typed before within reach.

    No generator: one that raised KeyboardInterrupt would be at its end.
    """

    def __init__(self) -> None:
        self._on_terminal = sys.stdin.isatty()
        if self._on_terminal:
            import readline  # noqa: F401, PLC0415 (gives `input` its history)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        if self._on_terminal:
            try:
                return input("> ")
            except EOFError:
                raise StopIteration from None
        return next(sys.stdin)
