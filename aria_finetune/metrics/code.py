"""Code: whether the program that an answer holds passes the tests of its row; pass@1 of one answer each.

Chen et al. 2021 (HumanEval, arXiv 2107.03374), section 2.1, with one sample, and Austin et al. 2021 (MBPP, arXiv
2108.07732). A row has HumanEval's `test` and `entry_point`, with the `prompt` that the code goes on from, or MBPP's
`test_list`, with `test_setup_code` if there is any.
"""

from __future__ import annotations

import ast
import re
import textwrap
import warnings

from aria_finetune.metrics.metric import Metric
from aria_finetune.metrics.rows import Row, Score
from aria_finetune.metrics.sandbox import run

_FENCED = re.compile(r"```[ \t]*(?:python3?|py)?[ \t]*\n(.*?)(?:\n[ \t]*```|\Z)", re.DOTALL | re.IGNORECASE)
_NO_PYTHON = (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError)
"""What the compiler raises of text that is no program, or of one that it has no room for."""


def has_tests(row: Row) -> bool:
    """Whether a row has tests that an answer can be run with."""
    listed, test, name = (row.meta.get(key) for key in ("test_list", "test", "entry_point"))
    if isinstance(listed, list) and listed and all(isinstance(line, str) for line in listed):
        return True
    return isinstance(test, str) and isinstance(name, str) and name.isidentifier() and "check" in test


def code_in(answer: str) -> str:
    """The first fenced block of an answer, else all of it."""
    found = _FENCED.search(answer)
    return found[1] if found else answer


def program_of(row: Row, answer: str) -> str:
    """The code of an answer with the tests of its row behind it.

    Code that does not define what HumanEval tests goes on from the prompt, indented as its function is; where it does, what stands in the prompt
    before the function, such as imports and helpers, still stands before it.
    """
    code, meta = code_in(answer), row.meta
    if isinstance(meta.get("test_list"), list):
        setup = meta.get("test_setup_code")
        parts = [setup if isinstance(setup, str) else "", code, *meta["test_list"]]
    else:
        name, prompt = meta["entry_point"], meta.get("prompt")
        parts = [_begun(prompt if isinstance(prompt, str) else "", code, name), meta["test"], f"check({name})"]
    return "\n".join(part for part in parts if part) + "\n"


def _begun(prompt: str, code: str, name: str) -> str:
    defined = re.compile(rf"^(?:async\s+)?def\s+{re.escape(name)}\b", re.MULTILINE)
    bound = re.compile(rf"^{re.escape(name)}\s*(?::[^=\n]*)?=(?!=)", re.MULTILINE)
    if not defined.search(code) and not (bound.search(code) and _compiles(code)):
        return _continued(prompt, code)
    found = defined.search(prompt)
    return (prompt[: found.start()] if found else "") + "\n" + code


def _continued(prompt: str, body: str) -> str:
    """The prompt with the body of its function.

    Answers come without the space around them, so that of a body the first line has lost its indentation, and models
    also write a whole body without any. It gets it back where only then the whole is Python.
    """
    indent, head = _indent_of(prompt), prompt.rstrip() + "\n"
    ways = [
        head + textwrap.indent(textwrap.dedent(body), indent),  # none of its lines has any
        head + indent + body.lstrip(),  # the first line alone has lost it
    ]
    indented = body.lstrip("\r\n")[:1].isspace()
    ways.insert(0 if indented else len(ways), prompt + body)
    return next(filter(_compiles, ways), prompt + body)


def _indent_of(prompt: str) -> str:
    """What stands before each line in the body of the last function of a prompt."""
    try:
        functions = [
            node for node in ast.parse(prompt).body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        ]
    except _NO_PYTHON:  # nothing stands in it yet
        functions = []
    if not functions:
        return " " * 4
    first = functions[-1].body[0]
    before = prompt.split("\n")[first.lineno - 1][: first.col_offset]
    return before if before.isspace() else " " * 4


def _compiles(code: str) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # such as of an escape that is none
        try:
            compile(code, "answer.py", "exec", dont_inherit=True)
        except _NO_PYTHON:
            return False
    return True


def score(row: Row, answer: str) -> Score:
    """1 if the program passes all tests; `read` says what it failed with."""
    if not code_in(answer).strip():
        return Score(0.0, parsed=False)
    outcome = run(program_of(row, answer))
    return Score(float(outcome.passed), read=outcome.reason)


CODE = Metric(
    name="code",
    title="pass@1: the program passes the tests of its row",
    source="Chen et al. 2021 (HumanEval), arXiv 2107.03374; Austin et al. 2021 (MBPP), arXiv 2108.07732",
    score=score,
    fits=has_tests,
    runs_code=True,
)
