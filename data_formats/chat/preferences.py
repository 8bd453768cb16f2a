"""Preferences, labelled answers and prompts for rewards: told by name, and made instruction data only if asked for.

Of a pair the chosen side is what a format for instruction data would hold; it is converted as that, and all that
was rejected goes into the metadata. Of labelled answers the wanted ones are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from aria_finetune.data_formats.building import fields, media_fields, preference_keys
from aria_finetune.data_formats.chat import alpaca, llava, messages, swift
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.format import PLAIN, Candidate, Context, Format

_CONVERSATION_KEYS = ("messages", "conversations", "conversation")
_QUESTION_KEYS = ("prompt", "question")
_ASKING_KEYS = frozenset({*_CONVERSATION_KEYS, *_QUESTION_KEYS, "query", "instruction"})
_OPENAI_KEYS = ("input", "preferred_output")
_REWARD_KEYS = ("reward_model", "solution", "ground_truth")
_PROMPT_KEYS = frozenset(
    {"prompt", "id", "data_source", "ability", "extra_info", *_REWARD_KEYS, *media_fields.MEDIA_KEYS}
)
_WORDS = {"true": True, "false": False, "1": True, "0": False}
_WIDER = ("messages", "llava", "alpaca", "dolly", "prompt-completion", "swift", "swift-pairs")


def matches_pair(record: object) -> bool:
    """A key that holds what to prefer or what to avoid."""
    return isinstance(record, dict) and any(
        key in record for key in (*preference_keys.CHOSEN_KEYS, *preference_keys.REJECTED_KEYS)
    )


def marks_pair(record: object) -> bool:
    """One of these keys with something in it."""
    return isinstance(record, dict) and preference_keys.is_pair(record)


def convert_pair(record: object, context: Context = PLAIN) -> Iterator[Candidate]:
    """The chosen side of a record, as the format converts it that the record is without its rejected side.

    Raises:
        RecordError: `bad_schema`, `bad_roles` where nothing is asked, or what that format raises.
    """
    chosen = _chosen_side(fields.mapping(record, "the record"))
    yield from _converter(chosen)(chosen, context)


def matches_labelled(record: object) -> bool:
    """Something asked and `kto_tag`, a `label` of true or false, or any label of a completion."""
    if not isinstance(record, dict) or not record.keys() & _ASKING_KEYS or matches_pair(record):
        return False
    label = isinstance(record.get("label"), bool | None) or "completion" in record
    return "kto_tag" in record or ("label" in record and label)


def marks_labelled(record: object) -> bool:
    """One of these keys with something in it."""
    return isinstance(record, dict) and preference_keys.is_labelled(record)


def convert_labelled(record: object, context: Context = PLAIN) -> Iterator[Candidate]:
    """The record as the format converts it that it is without its label, if its answer is wanted.

    Raises:
        RecordError: `bad_schema` where the answer is not wanted or no label says so, or what that format raises.
    """
    source = fields.mapping(record, "the record")
    if not _is_wanted(source):
        raise RecordError("bad_schema", "the answer is labelled as one not to give")
    yield from _converter(source)(source, context)


def matches_prompts(record: object) -> bool:
    """A `prompt` with a `reward_model`, or beside nothing but what goes with a reward."""
    if not isinstance(record, dict) or "prompt" not in record or record.keys() & {"completion", "label", "labels"}:
        return False
    return not matches_pair(record) and ("reward_model" in record or record.keys() <= _PROMPT_KEYS)


def convert_prompts(record: object, context: Context = PLAIN) -> Iterator[Candidate]:
    """The prompt without an answer, and the truth that it is rewarded for as a reference; for evaluation only.

    Raises:
        RecordError: what chat messages raise.
    """
    source = fields.mapping(record, "the record")
    said = alpaca.prompt_messages(fields.required(source, "prompt", "the record"))
    for candidate in messages.convert(fields.rest(source, ("prompt",)) | {"messages": said}, context):
        yield replace(candidate, references=tuple(_truths(source)))


def _chosen_side(source: Mapping[str, Any]) -> dict[str, Any]:
    """The record without what is chosen, that being in the place where its format has the answer."""
    if "preferred_output" in source:
        return _chosen_of_openai(source)
    record = fields.rest(source, ("chosen",))
    chosen = source.get("chosen")
    if chosen is None:  # ms-swift: only what is rejected stands beside the conversation
        return record
    if isinstance(chosen, list) and not _is_answer(chosen):
        former = record.get("messages")
        kept = {"messages_beside": former} if former not in (None, chosen) else {}
        return fields.rest(record, ("messages",)) | kept | {"messages": chosen}
    key = next((key for key in _CONVERSATION_KEYS if record.get(key) is not None), None)
    if key is not None:
        answer = chosen if isinstance(chosen, list) else [fields.mapping(chosen, "chosen")]
        return record | {key: [*fields.array(record[key], key), *answer]}
    places = (("instruction", "output"), ("query", "response"))
    place = next((place for asking, place in places if asking in record), "completion")
    return record | {place: chosen}


def _chosen_of_openai(source: Mapping[str, Any]) -> dict[str, Any]:
    asked = fields.mapping(source.get("input"), "input")
    said = fields.array(asked.get("messages"), "input.messages")
    answer = fields.array(source["preferred_output"], "preferred_output")
    return fields.rest(source, _OPENAI_KEYS) | fields.rest(asked, ("messages",)) | {"messages": [*said, *answer]}


def _is_answer(turns: list[Any]) -> bool:
    """Whether turns only go on with a conversation that is given elsewhere."""
    first = turns[0] if turns else None
    return isinstance(first, dict) and first.get("role", first.get("from")) in ("assistant", "gpt")


def _converter(record: Mapping[str, Any]) -> Callable[[object, Context], Iterator[Candidate]]:
    """The converter of the instruction data that a record is, its preferences aside."""
    key = next((key for key in _CONVERSATION_KEYS if key in record), None)
    if key is not None:
        turns = record[key] if isinstance(record[key], list) else []
        if any(isinstance(turn, dict) and "from" in turn for turn in turns):
            return _as_llava(key)
        return swift.convert_pairs if swift.matches_pairs({key: turns}) else messages.convert
    if "instruction" in record:
        return alpaca.convert_dolly if "response" in record else alpaca.convert_alpaca
    if "query" in record:
        return swift.convert
    if record.keys() & {*_QUESTION_KEYS}:
        return _as_prompt
    raise RecordError("bad_roles", "there is an answer and nothing that it answers")


def _as_llava(key: str) -> Callable[[object, Context], Iterator[Candidate]]:
    def convert(record: object, context: Context) -> Iterator[Candidate]:
        source = fields.mapping(record, "the record")
        return llava.convert(fields.rest(source, (key,)) | {"conversations": source[key]}, context)

    return convert


def _as_prompt(record: object, context: Context) -> Iterator[Candidate]:
    source = fields.mapping(record, "the record")
    if "prompt" not in source:
        source = fields.rest(source, ("question",)) | {"prompt": source["question"]}
    return alpaca.convert_prompt(source, context)


def _is_wanted(source: Mapping[str, Any]) -> bool:
    given = [source[key] for key in preference_keys.LABEL_KEYS if source.get(key) is not None]
    found = {_WORDS.get(str(label).lower()) for label in given if isinstance(label, bool | int | str)}
    if len(found) != 1 or None in found:
        raise RecordError("bad_schema", "no label says with true or false whether the answer is wanted")
    return True in found


def _truths(source: Mapping[str, Any]) -> Iterator[str]:
    for key in _REWARD_KEYS:
        truth = source.get(key)
        truth = truth.get("ground_truth") if isinstance(truth, dict) else truth
        for each in truth if isinstance(truth, list) else [truth]:
            if each is not None and not isinstance(each, bytes):
                yield each if isinstance(each, str) else fields.json_text(each)


PREFERENCE = Format(
    name="preference",
    title="Pairs of a chosen and a rejected answer (DPO, ORPO, reward models)",
    schema=(
        '{"prompt" | "question": TEXT | [MESSAGE], "chosen": TEXT | [MESSAGE], "rejected": TEXT | [MESSAGE]}\n'
        '{"messages" | "conversations": [MESSAGE], "chosen": MESSAGE, "rejected": MESSAGE}\n'
        '{"instruction": TEXT, "input": TEXT, "chosen": TEXT, "rejected": TEXT}\n'
        '{"messages": [MESSAGE], "rejected_response" | "rejected_messages" | "rejected_images": ...}\n'
        '{"query": TEXT, "response": TEXT, "rejected_response": TEXT}\n'
        '{"input": {"messages": [MESSAGE]}, "preferred_output": [MESSAGE], "non_preferred_output": [MESSAGE]}'
    ),
    example={
        "prompt": "What is written on the sign?",
        "chosen": "It says that the bridge is closed.",
        "rejected": "There is no sign.",
        "images": ["images/sign.jpg"],
    },
    traps=(
        "nothing is learned from a rejected answer; it goes into the metadata",
        "a chosen list that begins with a question is the whole conversation, one that begins with an answer goes on",
        "two whole texts without a prompt do not say which part is the question: bad_roles",
    ),
    keys=frozenset({"prompt", *preference_keys.CHOSEN_KEYS, *preference_keys.REJECTED_KEYS}),
    matches=matches_pair,
    convert=convert_pair,
    narrower_than=_WIDER,
    marks=marks_pair,
    refused=(
        "its records hold an answer to prefer and one to avoid, and this tool learns answers only; --take chosen makes "
        "instruction data of the preferred ones"
    ),
)

KTO = Format(
    name="kto",
    title="Answers that are labelled as wanted or not (KTO)",
    schema=(
        '{"prompt": TEXT | [MESSAGE], "completion": TEXT | [MESSAGE], "label": true | false}\n'
        '{"messages": [MESSAGE], "label" | "kto_tag": true | false}'
    ),
    example={"prompt": "The capital of Norway is", "completion": " Oslo.", "label": True},
    traps=(
        "with --take chosen the answers labelled true are kept, and those labelled false are rejected as bad_schema",
        "a label of messages that is neither true nor false is a class, and the format is another",
    ),
    keys=frozenset({"prompt", "completion", *preference_keys.LABEL_KEYS}),
    matches=matches_labelled,
    convert=convert_labelled,
    narrower_than=_WIDER,
    marks=marks_labelled,
    refused=(
        "some of its answers are labelled as ones not to give, and this tool learns every answer; --take chosen keeps "
        "the wanted ones"
    ),
)

RL_PROMPTS = Format(
    name="rl-prompts",
    title="Prompts for training by reward (PPO, GRPO, verl)",
    schema=(
        '{"prompt": TEXT | [MESSAGE], "images": [PATH], "reward_model": {"ground_truth": TEXT},\n'
        ' "solution" | "ground_truth": TEXT, "data_source": TEXT, "ability": TEXT, "extra_info": OBJECT}'
    ),
    example={
        "data_source": "sums",
        "prompt": [{"role": "user", "content": "What is 17 + 25?"}],
        "reward_model": {"style": "rule", "ground_truth": "42"},
    },
    traps=(
        "there is no answer to learn; the truth is a reference, not an answer",
        "with --take chosen its records are questions for evaluation",
    ),
    keys=_PROMPT_KEYS,
    matches=matches_prompts,
    convert=convert_prompts,
    refused="it holds prompts for training by reward and no answers to learn",
)

FORMATS = (PREFERENCE, KTO, RL_PROMPTS)
