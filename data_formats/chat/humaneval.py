"""HumanEval: Python functions to complete, with the tests that say whether they are right.

`{"task_id", "prompt", "entry_point", "canonical_solution", "test"}` (Chen et al. 2021, github.com/openai/human-eval).
"""

from __future__ import annotations

from collections.abc import Iterator

from aria_finetune.data_formats.building import fields, questions
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.format import PLAIN, Context, Format
from aria_finetune.data_formats.record import Draft

_KEYS = frozenset({"task_id", "prompt", "entry_point", "test"})


def matches(record: object) -> bool:
    """`task_id`, `prompt`, `entry_point` and `test`."""
    return isinstance(record, dict) and record.keys() >= _KEYS


def convert(record: object, context: Context = PLAIN) -> Iterator[Draft]:  # noqa: ARG001
    """The one function of a record; what runs its tests stays in the metadata.

    Raises:
        RecordError: `bad_schema`.
    """
    source = fields.mapping(record, "the record")
    begun = fields.text(fields.required(source, "prompt", "the record"), "prompt")
    for key in ("entry_point", "test"):
        if not fields.text(fields.required(source, key, "the record"), key):
            raise RecordError("bad_schema", f"{key} is empty")
    solution = fields.optional_text(source, "canonical_solution")
    answer = None if solution is None else _block(begun + solution)
    meta = fields.rest(source, ("canonical_solution",))
    references = () if answer is None else (answer,)
    yield questions.asked([], question(begun), answer, references=references, meta=meta)


def question(begun: str) -> str:
    """What is asked about the beginning of a function."""
    return f"Complete this Python function. Answer with the whole function in one code block.\n\n{_block(begun)}"


def _block(code: str) -> str:
    return f"```python\n{code.strip(chr(10))}\n```"


FORMAT = Format(
    name="humaneval",
    title="HumanEval, Python functions to complete",
    schema=(
        '{"task_id": ID, "prompt": CODE, "entry_point": NAME, "canonical_solution": CODE,\n'
        ' "test": CODE that defines check(candidate)}'
    ),
    example={
        "task_id": "Example/0",
        "prompt": 'def double(x):\n    """Twice x."""\n',
        "entry_point": "double",
        "canonical_solution": "    return 2 * x\n",
        "test": "def check(candidate):\n    assert candidate(2) == 4\n",
    },
    traps=(
        "question and answer are whole functions in code blocks, as a chat model writes them",
        "prompt, test and entry_point stay in the metadata, for evaluation by running the answer",
        "it is a benchmark: train on something else",
    ),
    keys=_KEYS | {"canonical_solution"},
    matches=matches,
    convert=convert,
)
