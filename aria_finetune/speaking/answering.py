"""`generate`: one prompt, its answer as it comes; or a file of prompts, in batches, to a file of answers.

Knows prompts, a speaker and the file of answers; loads and decodes nothing itself.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console

from aria_finetune.conversion import Reject
from aria_finetune.data.decoding import Decoder
from aria_finetune.data.rows import RowPlan, plan_row
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.record import Record
from aria_finetune.errors import MediaError, TooManyRejects, UserError
from aria_finetune.generation import answer_batch, collated, text_of
from aria_finetune.generation.decoding import Answer
from aria_finetune.generation.kept import Kept
from aria_finetune.generation.sampling import GREEDY, Sampling
from aria_finetune.media.inspection import Inspector
from aria_finetune.metrics import row_of
from aria_finetune.provenance import fingerprint, fingerprint_objects
from aria_finetune.speaking.answer_file import (
    AnswerFile,
    check_answers,
    check_folder,
    finished_counts,
    kept_settings,
    open_answers,
)
from aria_finetune.speaking.attaching import Attacher, Said, record_of
from aria_finetune.speaking.prompt_files import Entry, Reading, read_prompts
from aria_finetune.speaking.speaker import Speaker, told
from aria_finetune.speaking.streaming import TextStream

WINDOW = 4
"""Batches that are put together and written together: prompts of like length are answered side by side."""
TELL_SECONDS = 5.0
"""Progress is told at most this often."""


@dataclass(frozen=True)
class Asking:
    """How prompts are answered."""

    max_new_tokens: int = 512
    sampling: Sampling = GREEDY
    batch_size: int = 8
    max_rejects: int = 0


def answer_one(
    speaker: Speaker, turns: list[tuple[str, list[Said]]], asking: Asking, write: Callable[[str], None]
) -> dict[str, Any]:
    """Answer one prompt and hand its text on as it comes; returns what there is to say of it.

    Raises:
        UserError: a file of it can't be used, nothing is said, or it is longer than the context.
    """
    began = time.monotonic()
    stream = TextStream(speaker.chat.tokenizer, write)
    first: list[float] = []

    def watch(_row: int, token: int) -> None:
        first.append(time.monotonic() - began) if not first else None
        stream.take(token)

    with closing(Inspector(speaker.media_timeout)) as inspector:
        attacher = Attacher(inspector, speaker.showing.image_limits.max_pixels)
        try:
            plan = plan_row(
                record_of("prompt", turns, attacher),
                speaker.viewing,
                speaker.chat,
                generation=True,
                inspector=inspector,
            )
            answer = speaker.answer(plan, Kept(), speaker.wish(asking.max_new_tokens, asking.sampling), watch=watch)
        except MediaError as error:
            raise told(error, "the prompt") from error
        except RecordError as error:
            raise refusal(error, speaker) from error
    stream.end()
    seconds = time.monotonic() - began
    return {
        "prompt_tokens": plan.tokens,
        "tokens": len(answer.ids),
        "stop": answer.stop,
        "seconds": seconds,
        "first": first[0] if first else seconds,
    }


def refusal(error: RecordError, speaker: Speaker) -> UserError:
    """A prompt that can't be shown, as an error that the user can mend."""
    fix = "shorten it, show less, or lower --max-new-tokens" if error.reason == "too_long" else "say something else"
    return UserError(f"{error.reason}: {detail_of(error, speaker)}", where="the prompt", fix=fix)


def detail_of(error: RecordError, speaker: Speaker) -> str:
    """What is wrong with a prompt, in words that know no recipe."""
    if error.reason != "too_long":
        return error.detail
    tokens = error.detail.split(" tokens")[0]
    return f"{tokens} tokens, and the model reads {speaker.viewing.max_tokens} at most beside its answer"


@dataclass(frozen=True)
class FileJob:
    """A file of prompts, the file of answers, and how the former is read; `resume` goes on with the latter."""

    source: Path
    output: Path
    resume: bool = False
    format: str = "auto"
    media_roots: tuple[Path, ...] = ()
    system: str | None = None


def check_job(job: FileJob) -> None:
    """Refuse before a model is loaded what needs none.

    Raises:
        UserError: there are no prompts, or the output is in the way.
    """
    with tempfile.TemporaryDirectory() as store, closing(Inspector()) as inspector:
        reading = Reading(inspector, Path(store), job.format, job.media_roots)
        if next(iter(read_prompts(job.source, reading)), None) is None:
            raise UserError("there is no prompt in it", where=str(job.source), fix="name another file with --from")
    check_folder(job.output.parent)
    if job.output.exists() and not job.resume:
        check_answers(job.output, {}, resume=False)


def nothing_left(settings: Mapping[str, Any], job: FileJob, asking: Asking, console: Console) -> bool:
    """Whether the file of answers is finished already, which is told; before a model is loaded.

    Raises:
        UserError: it can't be gone on with.
        TooManyRejects: as `answer_file`.
    """
    check_answers(job.output, kept_settings(settings), resume=job.resume)
    counts = finished_counts(job.output) if job.output.exists() else None
    if counts is None:
        return False
    console.print("every row has its line already; no model was loaded", highlight=False)
    _tell_end(counts["rows"], counts["refused"], counts["tokens"], job, asking, console)
    return True


def answer_file(
    speaker: Speaker, job: FileJob, asking: Asking, console: Console, settings: Mapping[str, Any] | None = None
) -> AnswerFile:
    """Answer every prompt of a file, in order; each has one line in the output, also where it can't be answered.

    `settings` are those of `settings_of`, which are made here if they are not given.

    Raises:
        UserError: the prompts can't be read, the output is in the way or belongs to other prompts or settings.
        TooManyRejects: more prompts could not be answered than `asking.max_rejects`; all others were.
    """
    began = time.monotonic()
    settings = settings_of(speaker.identity, job, asking) if settings is None else settings
    with (
        tempfile.TemporaryDirectory() as store,
        closing(Inspector(speaker.media_timeout)) as inspector,
        closing(Decoder(speaker.media_timeout)) as decoder,
        open_answers(job.output, settings, resume=job.resume) as file,
    ):
        limit = speaker.showing.image_limits.max_pixels
        reading = Reading(inspector, Path(store), job.format, job.media_roots, job.system, limit)
        _tell_start(file, job, console)
        work = _Work(speaker, asking, inspector, decoder)
        shown_at = time.monotonic()
        for window in _windows(read_prompts(job.source, reading), WINDOW * asking.batch_size):
            lines = work.lines(window, file)
            for line in lines:
                if "refused" in line:
                    console.print(f"{line['where']}: {line['refused']}: {line['detail']}", highlight=False)
            file.add(lines)
            if lines and time.monotonic() - shown_at >= TELL_SECONDS:
                shown_at = time.monotonic()
                console.print(f"{len(file.ids):,} rows, {file.tokens:,} tokens", highlight=False)
        file.finish(time.monotonic() - began)
    _tell_end(len(file.ids), file.refused, file.tokens, job, asking, console)
    return file


def _tell_end(rows: int, refused: int, tokens: int, job: FileJob, asking: Asking, console: Console) -> None:
    console.print(
        f"{rows:,} rows: {rows - refused:,} answered with {tokens:,} tokens, "
        f"{refused:,} refused; they are in {job.output}",
        highlight=False,
    )
    if refused > asking.max_rejects:
        raise TooManyRejects(
            f"{refused} prompt(s) could not be answered, --max-rejects allows {asking.max_rejects}",
            where=str(job.output),
            fix="their lines say why; all others are answered",
        )


def _tell_start(file: AnswerFile, job: FileJob, console: Console) -> None:
    if file.torn:
        console.print("the last line was torn and is taken back", highlight=False)
    if file.ids:
        console.print(f"going on behind row {len(file.ids) - 1} of {job.output}", highlight=False)
    for note in file.notes:
        console.print(f"  not as before: {note}; the last digits may differ", highlight=False)


def settings_of(identity: Mapping[str, Any], job: FileJob, asking: Asking) -> dict[str, Any]:
    """What the answers depend on, as JSON values; `identity` is that of the speaker."""
    return {
        **identity,
        "prompts": _fingerprint(job.source),
        "media": _fingerprint_media(job),
        "media_roots": [str(root.absolute()) for root in job.media_roots],
        "format": job.format,
        "system": job.system,
        "max_new_tokens": asking.max_new_tokens,
        "sampling": asdict(asking.sampling),
        "batch_size": asking.batch_size,
    }


def _fingerprint(source: Path) -> str:
    """Of a file or a converted set by its bytes, of another folder by names and sizes."""
    found = fingerprint(source)
    if found != "unknown":
        return found
    files = sorted(path for path in source.rglob("*") if path.is_file())
    return fingerprint_objects((str(path.relative_to(source)), path.stat().st_size) for path in files)


def _fingerprint_media(job: FileJob) -> str:
    """Of the files that prompts show, by their names there, sizes and times of change; nobody looks into them."""
    with tempfile.TemporaryDirectory() as folder, closing(Inspector()) as inspector:
        store = Path(folder).resolve()  # as media in it are named
        reading = Reading(inspector, store, job.format, job.media_roots, verify="stat")
        records = (entry for entry in read_prompts(job.source, reading) if isinstance(entry, Record))
        # What lies in the source itself is of its own fingerprint.
        return fingerprint_objects(
            (record.source.ordinal, medium.origin, _state(Path(medium.path or "")))
            for record in records
            for medium in record.media
            if not Path(medium.path or "").is_relative_to(store)
        )


def _state(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def _windows(entries: Iterable[Entry], size: int) -> Iterator[list[tuple[int, Entry]]]:
    numbered = iter(enumerate(entries))
    while window := list(islice(numbered, size)):
        yield window


@dataclass(frozen=True)
class _Work:
    """Answers a window of prompts."""

    speaker: Speaker
    asking: Asking
    inspector: Inspector
    decoder: Decoder

    def lines(self, window: list[tuple[int, Entry]], file: AnswerFile) -> list[dict[str, Any]]:
        """The lines of the rows of a window that have none yet, in order.

        Rows with one are answered again where others of their window have none, so that those stand in the batches that they
        would have stood in.
        """
        known = len(file.ids)
        for row, entry in window:
            if row < known and not file.is_of(row, entry.id):
                raise UserError(
                    f"row {row} is {entry.id}, and the answers have {file.ids[row]} in its place",
                    fix="put the prompts back as they were, or name another --output",
                )
        if window[-1][0] < known:
            return []
        found: dict[int, dict[str, Any]] = {}
        plans: dict[int, RowPlan] = {}
        for row, entry in window:
            try:
                if isinstance(entry, Reject):
                    found[row] = _refused(row, entry.id, f"{entry.file}:{entry.ordinal}", entry.reason, entry.detail)
                else:
                    plans[row] = plan_row(
                        entry, self.speaker.viewing, self.speaker.chat, generation=True, inspector=self.inspector
                    )
            except RecordError as error:
                found[row] = _refused(row, entry.id, _where(entry), error.reason, detail_of(error, self.speaker))  # type: ignore[arg-type]
        found |= self._answered(plans)
        return [found[row] for row, _ in window if row >= known]

    def _answered(self, plans: dict[int, RowPlan]) -> dict[int, dict[str, Any]]:
        speaker, rows, found = self.speaker, list(plans), dict[int, dict[str, Any]]()
        wish = speaker.wish(self.asking.max_new_tokens, self.asking.sampling)
        collator = speaker.collator(list(plans.values()))
        collator.decoder = self.decoder
        for _, batch in collated(collator, self.asking.batch_size):
            for bad in batch.pop("bad_media", []):
                found[rows[bad.row]] = _refused(rows[bad.row], bad.id, bad.where, bad.reason, bad.detail)
            if not batch:
                continue
            sound = [rows[place] for place in batch["rows"].tolist()]
            answered = answer_batch(speaker.model, speaker.base, batch, wish, rows=sound)
            found |= {row: self._line(row, plans[row], answer) for row, answer in zip(sound, answered, strict=True)}
        return found

    def _line(self, row: int, plan: RowPlan, answer: Answer) -> dict[str, Any]:
        asked = row_of(plan.record)
        return {
            "row": row,
            "id": plan.record.id,
            "prompt": asked.question,
            "answer": text_of(answer, self.speaker.chat),
            **({"expected": list(asked.expected)} if asked.expected else {}),
            "prompt_tokens": plan.tokens,
            "tokens": len(answer.ids),
            "stop": answer.stop,
        }


def _refused(row: int, name: str, where: str, reason: str, detail: str) -> dict[str, Any]:
    return {"row": row, "id": name, "where": where, "refused": reason, "detail": detail}


def _where(record: Record) -> str:
    return f"{record.source.file}:{record.source.ordinal}"
