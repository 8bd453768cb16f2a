"""One prompt, and files of them: nothing lost, nothing doubled, whatever is wrong and whenever it is cut short."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from aria_finetune.errors import TooManyRejects, UserError
from aria_finetune.generation.sampling import Sampling
from aria_finetune.speaking import answering
from aria_finetune.speaking.answering import (
    Asking,
    FileJob,
    answer_file,
    answer_one,
    check_job,
    nothing_left,
    settings_of,
)
from aria_finetune.speaking.attaching import message
from aria_finetune.speaking.speaker import Speaker

DATA = Path(__file__).parents[2] / "recipes" / "data" / "tiny"


def quiet() -> Console:
    return Console(file=io.StringIO())


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_one_prompt_with_everything_in_it(speaker: Speaker, make_pdf: Callable[..., Path]) -> None:
    images = [str(DATA / "photos" / name) for name in ("cat.jpg", "coffee.jpg")]
    said = message("What is there?", images, [str(DATA / "ball.mp4")], [str(make_pdf("pages.pdf", 3))])
    pieces: list[str] = []
    told = answer_one(speaker, [("system", ["Be brief."]), ("user", said)], Asking(12), pieces.append)
    # Two images and three pages of a tile each; eight frames, each with a time and a line end around it.
    pictures = (2 + 3 + 8) * (128 + 2)
    assert pictures < told["prompt_tokens"] < pictures + 8 * 8 + 40
    assert told["stop"] == "end"
    assert len("".join(pieces).split()) >= 1


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (message("?", ["nowhere.png"]), "media_missing"),
        (message("?", documents=["broken.pdf"]), "media_unreadable"),
        (message("?", videos=[str(DATA / "photos" / "cat.jpg")]), "the prompt: "),
        (message("?", ["https://example.org/cat.png"]), "media_"),
        (message("  "), "it says nothing"),
        (message("word " * 66_000), "tokens, and the model reads 65472 at most"),
    ],
)
def test_what_can_t_be_asked(
    speaker: Speaker, said: list[object], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.4 and then nothing")
    with pytest.raises(UserError, match=words):
        answer_one(speaker, [("user", said)], Asking(12), lambda _: None)  # type: ignore[list-item]


@pytest.fixture
def mixed(tmp_path: Path, make_pdf: Callable[..., Path]) -> Path:
    """Eleven prompts of many lengths and kinds, three of which can't be answered."""
    shutil.copy(DATA / "photos" / "cat.jpg", tmp_path / "cat.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cat.jpg").read_bytes()[:3000])  # its header is whole
    make_pdf("page.pdf", 1)
    rows: list[object] = [
        "What is a ring?",
        {"prompt": "What is this?", "images": "cat.jpg", "id": "cat"},
        "Say hello.",
        {"prompt": "What is this?", "images": "cut.jpg", "id": "cut"},
        {"prompt": "This?", "images": ["nowhere.jpg"]},
        {"prompt": "Read it.", "documents": ["page.pdf"]},
        "Why? " * 30,
        "long " * 70_000,
        "What is the colour of the sky?",
        {"prompt": "And of grass?", "system": "You answer in one word."},
        "Count to ten.",
    ]
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_every_row_has_its_line_in_order(speaker: Speaker, mixed: Path, tmp_path: Path) -> None:
    asking = Asking(12, batch_size=2, max_rejects=3)
    console = quiet()
    answer_file(speaker, FileJob(mixed, tmp_path / "together.jsonl"), asking, console)
    found = lines(tmp_path / "together.jsonl")
    assert [line["row"] for line in found] == list(range(11))
    assert {line["row"]: line["refused"] for line in found if "refused" in line} == {
        3: "media_unreadable",
        4: "media_missing",
        7: "too_long",
    }
    assert found[1]["id"] == "cat"
    assert found[0]["answer"] == "A circle with a hole."
    said = console.file.getvalue()  # type: ignore[attr-defined]
    for where in ("prompts.jsonl:3: media_unreadable", "prompts.jsonl:4: media_missing", "prompts.jsonl:7: too_long"):
        assert where in said
    assert "11 rows: 8 answered" in said
    assert "3 refused" in said

    alone = tmp_path / "alone.jsonl"
    with pytest.raises(TooManyRejects, match="3 prompt"):
        answer_file(speaker, FileJob(mixed, alone), replace(asking, batch_size=1, max_rejects=2), quiet())
    assert lines(alone) == found
    for row in (0, 6, 9):
        turns = [("user", message(str(found[row]["prompt"])))]
        turns = [("system", ["You answer in one word."]), *turns] if row == 9 else turns
        pieces: list[str] = []
        answer_one(speaker, turns, asking, pieces.append)  # type: ignore[arg-type]
        assert "".join(pieces).strip() == found[row]["answer"]


def test_work_that_is_cut_short_anywhere_ends_the_same(
    speaker: Speaker, mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sampled; the file is cut where a kill may have left it: at a line end, within a line, within a window of batches."""
    mixed.write_text("".join(line for line in mixed.read_text().splitlines(keepends=True) if len(line) < 1000))
    monkeypatch.setattr(answering, "WINDOW", 2)
    asking = Asking(8, Sampling(1.0, top_k=20, seed=7), batch_size=2, max_rejects=3)
    output = tmp_path / "answers.jsonl"
    answer_file(speaker, FileJob(mixed, output), asking, quiet())
    whole = output.read_bytes()
    ends = [place + 1 for place, byte in enumerate(whole) if byte == ord("\n")]
    for length in (0, 5, ends[3], ends[5] - 3, ends[-1]):
        output.write_bytes(whole[:length])
        console = quiet()
        answer_file(speaker, FileJob(mixed, output, resume=True), asking, console)
        assert output.read_bytes() == whole
        torn = length and whole[length - 1] != ord("\n")
        assert ("the last line was torn" in console.file.getvalue()) == bool(torn)  # type: ignore[attr-defined]
    other = replace(asking, sampling=Sampling(1.0, top_k=20, seed=8))
    with pytest.raises(UserError, match=r"sampling\.seed was 7 and is 8"):
        answer_file(speaker, FileJob(mixed, output, resume=True), other, quiet())
    with mixed.open("a") as file:
        file.write('"One more."\n')
    with pytest.raises(UserError, match="prompts was"):
        answer_file(speaker, FileJob(mixed, output, resume=True), asking, quiet())
    assert output.read_bytes() == whole


def test_known_answers_stand_beside_those_given(speaker: Speaker, tmp_path: Path) -> None:
    source = tmp_path / "chat.jsonl"
    source.write_text("".join((DATA / "chat.jsonl").read_text().splitlines(keepends=True)[:3]))
    answer_file(speaker, FileJob(source, tmp_path / "out.jsonl"), Asking(12), quiet())
    found = lines(tmp_path / "out.jsonl")
    assert [line["expected"] for line in found] == [
        ["Hello! How can I help you?"],
        ["Green."],
        ["A circle with a hole."],
    ]
    assert found[1]["prompt"] == "And of grass?"


def test_what_is_refused_before_a_model_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text(" \n\n")
    with pytest.raises(UserError, match="no prompt in it"):
        check_job(FileJob(tmp_path / "empty.txt", tmp_path / "out.jsonl"))
    with pytest.raises(UserError, match="no such file"):
        check_job(FileJob(tmp_path / "nowhere.txt", tmp_path / "out.jsonl"))
    (tmp_path / "prompts.txt").write_text("What?")
    (tmp_path / "mine.jsonl").write_text("mine\n")
    with pytest.raises(UserError, match="something at the output"):
        check_job(FileJob(tmp_path / "prompts.txt", tmp_path / "mine.jsonl"))
    for folder, said in ((tmp_path / "nowhere", "no such folder"), (Path("/proc"), "no file can be made")):
        with pytest.raises(UserError, match=said):
            check_job(FileJob(tmp_path / "prompts.txt", folder / "out.jsonl"))


def test_what_is_known_of_a_file_of_answers_before_a_model_is_loaded(speaker: Speaker, tmp_path: Path) -> None:
    """That every row has its line, or that it was made otherwise: with other media, or with others of the same name."""
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        shutil.copy2(DATA / "photos" / "cat.jpg", tmp_path / name / "a.jpg")
    source, asking = tmp_path / "prompts.jsonl", Asking(4)
    source.write_text('"Hi."\n{"prompt": "What is this?", "images": "a.jpg"}\n')
    job = FileJob(source, tmp_path / "out.jsonl", resume=True, media_roots=(tmp_path / "here",))

    def left(job: FileJob, console: Console) -> bool:
        return not nothing_left(settings_of(speaker.identity, job, asking), job, asking, console)

    assert left(job, quiet())
    answer_file(speaker, job, asking, quiet())
    whole, console = job.output.read_bytes(), quiet()
    assert not left(job, console)
    assert "every row has its line already" in console.file.getvalue()  # type: ignore[attr-defined]
    job.output.write_bytes(whole[:-5])
    assert left(job, quiet())
    job.output.write_bytes(whole)
    with pytest.raises(UserError, match="media_roots was"):
        left(replace(job, media_roots=(tmp_path / "there",)), quiet())
    shutil.copy2(DATA / "photos" / "coffee.jpg", tmp_path / "here" / "a.jpg")
    with pytest.raises(UserError, match="media was"):
        left(job, quiet())
    with pytest.raises(UserError, match="media was"):
        answer_file(speaker, job, asking, quiet())
    assert job.output.read_bytes() == whole
