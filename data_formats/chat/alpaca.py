"""One instruction and its answer: Alpaca, self-instruct seed tasks, Dolly, and prompt with completion.

What is asked is the instruction, and below it the input or context where there is one. Media stand beside the text
as in other chat records: `<image>` in it is the place of one, and without any they go first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from aria_finetune.data_formats.building import fields, instructions, media_fields, preference_keys
from aria_finetune.data_formats.building.turns import Turn
from aria_finetune.data_formats.chat import messages
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.format import PLAIN, Candidate, Context, Format
from aria_finetune.data_formats.record import Draft

_ALPACA_KEYS = frozenset({"instruction", "input", "output", *instructions.KNOWN_KEYS})
_SEED_KEYS = frozenset({"instruction", "instances"})
_DOLLY_KEYS = frozenset({"instruction", "context", "response", *instructions.KNOWN_KEYS})
_PROMPT_KEYS = frozenset({"prompt", "completion", "tools", *media_fields.MEDIA_KEYS})


def matches_alpaca(record: object) -> bool:
    """`instruction` with `output` or, where the answers are held back, with `input`."""
    if not isinstance(record, dict) or preference_keys.is_preference(record):
        return False
    return (
        "instruction" in record
        and not record.keys() & {"instances", "response"}
        and bool(record.keys() & {"input", "output"})
    )


def convert_alpaca(record: object, context: Context = PLAIN) -> Iterator[Draft]:  # noqa: ARG001
    """The one conversation of a record, after the turns of its `history`.

    Raises:
        RecordError: `bad_schema`, `bad_roles`, `unsupported_modality` or `placeholder_mismatch`.
    """
    source = fields.mapping(record, "the record")
    question = _asked(source, "input")
    yield _answered(source, question, "output", _ALPACA_KEYS)


def matches_dolly(record: object) -> bool:
    """`instruction` and `response`, mostly with `context` and `category`."""
    if not isinstance(record, dict) or preference_keys.is_preference(record):
        return False
    return {"instruction", "response"} <= record.keys() and not record.keys() & {"instances", "output", "query"}


def convert_dolly(record: object, context: Context = PLAIN) -> Iterator[Draft]:  # noqa: ARG001
    """The one question of a record; raises as `convert_alpaca` does."""
    source = fields.mapping(record, "the record")
    yield _answered(source, _asked(source, "context"), "response", _DOLLY_KEYS)


def matches_seed_tasks(record: object) -> bool:
    """`instruction` with a list of `instances`."""
    return isinstance(record, dict) and {"instruction", "instances"} <= record.keys()


def convert_seed_tasks(record: object, context: Context = PLAIN) -> Iterator[Candidate]:  # noqa: ARG001
    """One conversation for each instance of the task.

    Raises:
        RecordError: `bad_schema`, there is no list of instances or none in it.
    """
    source = fields.mapping(record, "the record")
    written = fields.array(fields.required(source, "instances", "the record"), "instances")
    if not written:
        raise RecordError("bad_schema", "instances is an empty list")
    for number, instance in enumerate(written):
        try:
            yield _instance(source, instance, number)
        except RecordError as error:
            yield error


def matches_prompt(record: object) -> bool:
    """`prompt` and `completion` and no label that says whether the completion is wanted."""
    if not isinstance(record, dict) or preference_keys.is_preference(record):
        return False
    return {"prompt", "completion"} <= record.keys() and not record.keys() & {"messages", "conversations"}


def convert_prompt(record: object, context: Context = PLAIN) -> Iterator[Candidate]:
    """The prompt as user and the completion as assistant, or the messages of both.

    Raises:
        RecordError: whatever the messages raise, or `bad_schema`.
    """
    source = fields.mapping(record, "the record")
    prompt, completion = source.get("prompt"), fields.required(source, "completion", "the record")
    rest = fields.rest(source, ("prompt", "completion"))
    if prompt in (None, "") and isinstance(completion, str) and not rest.keys() & media_fields.MEDIA_KEYS:
        yield instructions.document(source, completion, _PROMPT_KEYS)
        return
    said = [*_said(prompt, "user", "prompt"), *_said(completion, "assistant", "completion")]
    yield from messages.convert(rest | {"messages": said}, context)


def prompt_messages(prompt: object, where: str = "prompt") -> list[Any]:
    """The messages of a prompt, which may be one question in words."""
    return _said(prompt, "user", where)


def _said(value: object, speaker: str, where: str) -> list[Any]:
    if isinstance(value, list):
        return [_untrained(message) for message in value] if where == "prompt" else value
    return [{"role": speaker, "content": "" if value is None else fields.text(value, where)}]


def _untrained(message: object) -> object:
    """A message of the prompt: what the assistant says there is given and not to be learned, as TRL has it."""
    return {"train": False} | message if isinstance(message, dict) and message.get("role") == "assistant" else message


def _asked(source: Mapping[str, Any], below: str) -> str:
    parts = [fields.optional_text(source, key) for key in ("instruction", below)]
    return "\n".join(part for part in parts if part)


def _answered(source: Mapping[str, Any], question: str, key: str, known: frozenset[str]) -> Draft:
    turns = [*instructions.history(source), Turn("user", (question,))]
    if key not in source:
        return instructions.conversation(source, turns, known)
    answer, references, repairs = instructions.answers(source[key], key)
    turns.append(Turn("assistant", (answer,)))
    return instructions.conversation(source, turns, known, references=references, repairs=repairs)


def _instance(task: Mapping[str, Any], value: object, number: int) -> Draft:
    instance = fields.mapping(value, f"instances[{number}]")
    same = {"instruction": task.get("instruction")} | fields.rest(task, _SEED_KEYS)
    fields.required(instance, "output", f"instances[{number}]")
    return _answered(same | instance, _asked(same | instance, "input"), "output", _ALPACA_KEYS)


ALPACA = Format(
    name="alpaca",
    title="Alpaca instructions, also LLaMA-Factory and ms-swift",
    schema=(
        '{"instruction": TEXT, "input": TEXT, "output": TEXT | [TEXT], "system": TEXT,\n'
        ' "history": [[QUESTION, ANSWER]], "images": [PATH], "videos": [PATH]}'
    ),
    example={
        "instruction": "Put the words in order.",
        "input": "tree, apple, leaf",
        "output": "apple, leaf, tree",
        "system": "Answer with the list alone.",
        "history": [["Do you know the alphabet?", "Yes, by heart."]],
    },
    traps=(
        "the input goes below the instruction after a line break, and an empty one leaves no trace",
        "of a list of answers the first is trained on, and all are references (first_of_several_answers)",
        "no output is a question without an answer, for evaluation only; write text to pretrain on as plain-text",
        "cells of a table stay text: 00000 and 3.3 are no numbers, and history is read as JSON only",
    ),
    keys=_ALPACA_KEYS,
    matches=matches_alpaca,
    convert=convert_alpaca,
)

SEED_TASKS = Format(
    name="seed-tasks",
    title="Seed tasks of self-instruct, with several instances each",
    schema='{"id": TEXT, "instruction": TEXT, "instances": [{"input": TEXT, "output": TEXT}]}',
    example={
        "id": "seed_task_0",
        "name": "opposites",
        "instruction": "Name the opposite of the word.",
        "instances": [{"input": "cold", "output": "hot"}, {"input": "early", "output": "late"}],
        "is_classification": False,
    },
    traps=("each instance is a conversation of its own, and a bad one does not lose the others",),
    keys=frozenset({"id", "name", "is_classification", *_SEED_KEYS}),
    matches=matches_seed_tasks,
    convert=convert_seed_tasks,
)

DOLLY = Format(
    name="dolly",
    title="Dolly, and other records of instruction and response",
    schema='{"instruction": TEXT, "context": TEXT, "response": TEXT, "category": TEXT}',
    example={
        "instruction": "When was the bridge built?",
        "context": "The bridge was built in 1898 and widened in 1931.",
        "response": "In 1898.",
        "category": "closed_qa",
    },
    traps=("the context goes below the instruction after a line break, and only where it is not empty",),
    keys=frozenset({"category", *_DOLLY_KEYS}),
    matches=matches_dolly,
    convert=convert_dolly,
)

PROMPT_COMPLETION = Format(
    name="prompt-completion",
    title="Prompt and completion of OpenAI's older format, TRL and Together",
    schema='{"prompt": TEXT | [MESSAGE], "completion": TEXT | [MESSAGE], "images": [PATH]}',
    example={"prompt": "The capital of Norway is", "completion": " Oslo."},
    traps=(
        "the blank in front of a completion has a meaning and stays",
        "assistant turns inside a prompt are not trained on, as in TRL",
        "an empty prompt means that the completion is text to pretrain on (read_as_document)",
        "with a label it is one of preferences",
    ),
    keys=_PROMPT_KEYS,
    matches=matches_prompt,
    convert=convert_prompt,
)

FORMATS = (ALPACA, SEED_TASKS, DOLLY, PROMPT_COMPLETION)
