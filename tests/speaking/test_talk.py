"""A chat: what each line does, what Ctrl-C stops, and that what was said can be trained on."""

from __future__ import annotations

import io
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from rich.console import Console

from aria_finetune.conversion import read_dataset
from aria_finetune.recipe import load_recipe
from aria_finetune.speaking.answering import Asking
from aria_finetune.speaking.conversation import Conversation
from aria_finetune.speaking.speaker import Speaker
from aria_finetune.speaking.talk import talk
from aria_finetune.training import dry_run

DATA = Path(__file__).parents[2] / "recipes" / "data" / "tiny"


@pytest.fixture
def hold(speaker: Speaker) -> Callable[..., str]:
    """Hold a conversation; returns all that is shown."""

    def hold(*typed: str, limit: int = 12) -> str:
        shown: list[str] = []
        with closing(Conversation(speaker, Asking(limit))) as conversation:
            talk(conversation, typed, shown.append)
        return "".join(shown)

    return hold


def test_a_conversation_from_beginning_to_end(
    hold: Callable[..., str], make_pdf: Callable[..., Path], tmp_path: Path
) -> None:
    saved = tmp_path / "saved"
    shown = hold(
        "What is a ring?\n",
        f"/image {DATA}/photos/cat.jpg\n",
        f"/video {DATA}/ball.mp4",
        f"/pdf {make_pdf('two pages.pdf', 2)}",
        "/system You answer in one word.",
        "What is\\",
        "all this?",
        f"/save {saved}",
        f"/save {saved}",
        "/reset",
        "/save elsewhere",
        "/quit",
        "never read",
    )
    assert shown.startswith("A circle with a hole.\n")
    for words in ("320 x 213 pixels", "frames of", "2 page(s)", "something at the output", "nothing was said yet"):
        assert words in shown
    (record,) = read_dataset(saved, verify=True)
    assert [message.role for message in record.messages] == ["system", "user", "assistant", "user", "assistant"]
    assert [media.kind for media in record.media] == ["image", "video", "document"]
    assert record.messages[3].content[-1].text == "What is\nall this?"
    assert all(str(media.path).startswith(str(saved)) for media in record.media)

    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"model: {{path: tiny, device: cpu}}\ndata: {{train: {saved}}}\noutput: {{dir: {tmp_path}/run}}\n"
    )
    batch = dry_run(load_recipe(recipe), Console(file=io.StringIO()))
    assert (batch["labels"] >= 0).any()


def test_errors_don_t_end_it(hold: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.4 and then nothing")
    shown = hold(
        "/nothing",
        "/image",
        f"/image {tmp_path}/nowhere.png",
        f"/pdf {tmp_path}/broken.pdf",
        f"/video {DATA}/photos/cat.jpg",
        "",
        "word " * 70_000,
        "What is a ring?",
    )
    assert shown.count("error: ") == 6
    for words in ("/help lists", "/image FILE", "media_missing", "media_unreadable", "65472 at most"):
        assert words in shown
    assert shown.endswith("A circle with a hole.\n")
    assert "/save FOLDER" in hold("/help")


def test_paths_that_lead_nowhere_don_t_end_it(speaker: Speaker, tmp_path: Path) -> None:
    """Neither a user that does not exist, nor folders in which nobody can make one; the conversation is still there to save."""
    shown: list[str] = []
    typed = [
        "What is a ring?",
        "/image ~no-such-user/x.png",
        "/save ~no-such-user/y",
        "/save /dev/null/x",
        "/save /proc/x",
        f"/save {'long' * 100}",
        f"/save {tmp_path}/kept",
    ]
    with closing(Conversation(speaker, Asking(12))) as conversation:
        talk(conversation, typed, shown.append)
        assert len(conversation) == 1
    said = "".join(shown)
    assert said.count("error: ") == 5
    for words in ("media_unreadable", "~no-such-user/y", "Not a directory", "/proc/", "name too long"):
        assert words in said
    (record,) = read_dataset(tmp_path / "kept", verify=True)
    assert [message.role for message in record.messages] == ["user", "assistant"]


def test_what_can_t_be_shown_any_more_ends_it(speaker: Speaker) -> None:
    """A pipe that nobody reads is no error of a line: telling it would fail again, for ever."""
    pipe, end = os.pipe()
    os.close(pipe)
    with (
        closing(Conversation(speaker, Asking(12))) as conversation,
        pytest.raises(BrokenPipeError),
        open(end, "wb", buffering=0) as nobody,  # noqa: PTH123 (a descriptor)
    ):
        talk(conversation, ["/help", "/help"], lambda text: nobody.write(text.encode()) and None)


def test_a_file_that_is_gone_takes_the_question_with_it(speaker: Speaker, tmp_path: Path) -> None:
    file = tmp_path / "cat.jpg"
    file.write_bytes((DATA / "photos" / "cat.jpg").read_bytes())
    shown: list[str] = []

    def typed() -> Iterator[str]:
        yield f"/image {file}"
        file.unlink()
        yield "What is this?"
        yield "What is a ring?"

    with closing(Conversation(speaker, Asking(12))) as conversation:
        talk(conversation, typed(), shown.append)
        assert len(conversation) == 1
    assert "media_missing" in "".join(shown)
    assert "".join(shown).endswith("A circle with a hole.\n")


def test_an_answer_is_cut_where_it_is_too_long(hold: Callable[..., str]) -> None:
    assert "(cut at --max-new-tokens)" in hold("What is a ring?", limit=2)


def test_a_signal_stops_the_answer_and_not_the_chat(speaker: Speaker) -> None:
    """A real SIGINT, sent at the first word; the next question is answered on what was said until then."""
    shown: list[str] = []

    def show(text: str) -> None:
        if not shown:
            os.kill(os.getpid(), signal.SIGINT)
        shown.append(text)

    before = signal.getsignal(signal.SIGINT)
    with closing(Conversation(speaker, Asking(12))) as conversation:
        talk(conversation, ["What is a ring?", "What is a ring?"], show)
        assert len(conversation) == 2
    first, _, second = "".join(shown).partition("(stopped)\n")
    assert "A circle with a hole.".startswith(first.strip())
    assert first.strip() != "A circle with a hole."
    assert second
    assert signal.getsignal(signal.SIGINT) is before


def test_a_signal_at_a_prompt_only_says_how_to_end(speaker: Speaker) -> None:
    class Typed:
        """As a terminal gives lines: an interrupted one is none, and the next one comes."""

        left = iter(["interrupted", "What is a ring?"])

        def __iter__(self) -> Typed:
            return self

        def __next__(self) -> str:
            line = next(self.left)
            if line == "interrupted":
                os.kill(os.getpid(), signal.SIGINT)
            return line

    shown: list[str] = []
    with closing(Conversation(speaker, Asking(12))) as conversation:
        talk(conversation, Typed(), shown.append)
    assert "".join(shown) == "\n(/quit ends the chat)\nA circle with a hole.\n"
