"""`generate` and `chat` from what the command line says to what is printed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager

import torch
from rich.console import Console

from aria_finetune.errors import UserError
from aria_finetune.generation.sampling import Sampling
from aria_finetune.layer_progress import LayerProgress
from aria_finetune.speaking.answering import (
    Asking,
    FileJob,
    answer_file,
    answer_one,
    check_job,
    nothing_left,
    settings_of,
)
from aria_finetune.speaking.attaching import Said
from aria_finetune.speaking.conversation import Conversation
from aria_finetune.speaking.speaker import FoundSpeaker, Speaker, SpeakerOptions, find_speaker
from aria_finetune.speaking.talk import HELP, TypedLines, talk


def generate_one(
    options: SpeakerOptions, said: list[Said], system: str | None, asking: Asking, console: Console
) -> None:
    """Print the answer to one prompt as it comes; what there is to say of it goes to `console`.

    Raises:
        UserError: nothing is asked, a file of the prompt can't be used, it is too long, or the model can't be loaded.
    """
    if not said:
        raise UserError("there is nothing to answer", fix="give a PROMPT, --image, --video, --document, or --from FILE")
    speaker = _load(find_speaker(options, asking.max_new_tokens), console)
    turns: list[tuple[str, list[Said]]] = [*([("system", [system])] if system else []), ("user", said)]  # type: ignore[list-item]
    with memory_told("lower --max-new-tokens, show less, or see --experts-on host"):
        told = answer_one(speaker, turns, asking, write)
    write("\n")
    rate = max(told["tokens"] - 1, 0) / max(told["seconds"] - told["first"], 1e-9)
    console.print(
        f"{told['prompt_tokens']:,} tokens read, {told['tokens']:,} written ({told['stop']}); "
        f"the first after {told['first']:.1f} s, then {rate:.1f} a second",
        highlight=False,
    )


def generate_file(options: SpeakerOptions, job: FileJob, asking: Asking, console: Console) -> None:
    """Answer a file of prompts.

    Raises:
        UserError: prompts, output or model are not as they should be.
        TooManyRejects: prompts could not be answered.
    """
    check_job(job)
    found = find_speaker(options, asking.max_new_tokens)
    settings = settings_of(found.identity, job, asking)
    if nothing_left(settings, job, asking, console):
        return
    speaker = _load(found, console)
    with memory_told("lower --batch-size or --max-new-tokens and go on with --resume"):
        answer_file(speaker, job, asking, console, settings)


def chat(options: SpeakerOptions, system: str | None, asking: Asking, console: Console) -> None:
    """Hold a conversation over standard input.

    Raises:
        UserError: the model can't be loaded.
    """
    speaker = _load(find_speaker(options, asking.max_new_tokens), console)
    if sys.stdin.isatty():
        write(HELP + "\n")
    with closing(Conversation(speaker, asking, system)) as conversation:
        talk(conversation, TypedLines(), write)


def sampling_of(temperature: float, top_p: float, top_k: int, seed: int) -> Sampling:
    """How tokens are chosen.

    Raises:
        UserError: what only draws need is given without a temperature.
    """
    if temperature == 0 and (top_p < 1 or top_k):
        raise UserError("--top-p and --top-k are for draws", fix="give a --temperature, such as 0.7")
    return Sampling(temperature, top_p, top_k, seed)


@contextmanager
def memory_told(fix: str) -> Iterator[None]:
    """Tell that the GPU's memory ran out as what the user can mend."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError("the GPU's memory ran out while answering", fix=fix) from error


def write(text: str) -> None:
    """Print at once, without a line end."""
    sys.stdout.write(text)
    sys.stdout.flush()


def _load(found: FoundSpeaker, console: Console) -> Speaker:
    with LayerProgress("loading the model", console) as progress:
        return found.load(progress)
