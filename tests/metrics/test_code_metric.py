"""Code: programs written by hand that pass or fail their tests, in the layouts of HumanEval and MBPP."""

from __future__ import annotations

import math
import textwrap
from typing import Any

import pytest

from aria_finetune.metrics import METRICS, Row
from aria_finetune.metrics.code import code_in, has_tests, program_of

PROMPT = 'import math\n\n\ndef area(radius: float) -> float:\n    """Area of a circle."""\n'
TEST = "def check(candidate):\n    assert abs(candidate(1) - math.pi) < 1e-9\n    assert candidate(0) == 0\n"
CIRCLE = Row(("x",), meta={"prompt": PROMPT, "test": TEST, "entry_point": "area"})
ADD = Row(("x",), meta={"test_list": ["assert add(1, 2) == 3", "assert add(-1, 1) == 0"]})
SETUP = Row(("x",), meta={"test_setup_code": "START = 5", "test_list": ["assert begun() == 5"]})

WHOLE = "def area(radius):\n    return math.pi * radius ** 2\n"
CASES = [
    (CIRCLE, "    return math.pi * radius ** 2\n", True),
    (CIRCLE, "    return math.pi * radius * 2\n", False),
    (CIRCLE, WHOLE, True),
    (CIRCLE, f"Here it is:\n```python\n{WHOLE}```\nIt squares the radius.", True),
    (CIRCLE, f"```\n{WHOLE}```", True),
    (CIRCLE, f"```py\n{WHOLE}", True),  # cut off behind the code
    (CIRCLE, f"```python\n{WHOLE}```\n```python\narea(3)/0\n```", True),
    (CIRCLE, "I don't know.", False),
    (CIRCLE, "", False),
    (CIRCLE, "```python\n```", False),
    (CIRCLE, "    return math.pi * radius ** 2\n\n\nexit(0)\n", False),
    (CIRCLE, "    import os\n    os._exit(0)\n", False),
    (CIRCLE, "    raise SystemExit(0)\n", False),
    (CIRCLE, "    raise ValueError\n", False),
    (CIRCLE, "    return radius +\n", False),
    (CIRCLE, "area = lambda radius: math.pi * radius ** 2", True),
    (CIRCLE, "area = math.pi * radius ** 2\n    return area", True),
    (CIRCLE, "import math\n\ndef area(radius):\n    return math.pi * radius ** 2", True),
    (ADD, "def add(a, b):\n    return a + b", True),
    (ADD, "def add(a, b):\n    print('adding')\n    return a + b", True),
    (ADD, "add = lambda a, b: a + b", True),
    (ADD, "def add(a, b):\n    return a - b", False),
    (ADD, "def plus(a, b):\n    return a + b", False),
    (SETUP, "def begun():\n    return START", True),
    (SETUP, "def begun():\n    return 4", False),
]


@pytest.mark.parametrize(("row", "answer", "passed"), CASES)
def test_programs(row: Row, answer: str, passed: bool) -> None:
    score = METRICS["code"].score(row, answer)
    assert score.value == float(passed)
    assert score.parsed or not code_in(answer).strip()


BODIES = [
    "    return math.pi * radius ** 2\n",
    "    if radius == 0:\n        return 0\n    return math.pi * radius ** 2\n",
    "    square = radius * radius\n\n    return math.pi * square\n",
    "    def square(x):\n        return x * x\n    return math.pi * square(radius)\n",
    "    return (math.pi *\n            radius ** 2)\n",
    "    square = 0\n    for _ in range(radius):\n        for _ in range(radius):\n            square += 1\n    return math.pi * square\n",
]


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize(
    "prompt", [PROMPT, PROMPT.replace("    ", "  "), "import math\ndef area(radius):\n", PROMPT.strip()]
)
def test_a_body_is_a_program_however_it_is_indented(prompt: str, body: str) -> None:
    """As it goes on from the prompt, as answers come (stripped), moved to the left, and in a fence."""
    indent = "  " if '\n  "' in prompt else "    "
    body = body.replace("    ", indent)
    row = Row(("x",), meta={**CIRCLE.meta, "prompt": prompt})
    flat = textwrap.dedent(body).strip()
    programs = {program_of(row, answer) for answer in (body.rstrip(), body.strip(), flat, f"```python\n{flat}\n```")}
    for program in programs:
        known: dict[str, Any] = {}
        exec(program, known)  # noqa: S102 (of our own writing)
        assert known["area"](2) == pytest.approx(4 * math.pi)


def test_a_body_without_a_return_is_inside_the_function_too() -> None:
    test = "def check(candidate):\n    held = [2, 1]\n    candidate(held)\n    assert held == [1, 2]\n"
    row = Row(("x",), meta={"prompt": "def order(held):\n    'Sort.'\n", "test": test, "entry_point": "order"})
    assert METRICS["code"].score(row, "held.sort()").value == 1


@pytest.mark.parametrize("answer", ["return (", "\x00", "I can't.", "(" * 500, "return 1\nAs you see, it is one."])
def test_what_is_no_program_stays_as_it_is(answer: str) -> None:
    assert program_of(CIRCLE, answer).startswith(PROMPT + answer)


def test_what_stands_before_the_function_in_the_prompt_still_does() -> None:
    assert program_of(CIRCLE, WHOLE).startswith("import math\n")
    assert program_of(CIRCLE, WHOLE).count("def area") == 1
    assert program_of(CIRCLE, "    return 0\n").startswith(PROMPT)


def test_it_needs_tests() -> None:
    assert has_tests(CIRCLE)
    assert has_tests(ADD)
    assert not has_tests(Row(("x",)))
    assert not has_tests(Row(("x",), meta={"test_list": []}))
    assert not has_tests(Row(("x",), meta={"test": TEST, "entry_point": "area(); evil"}))
    assert not has_tests(Row(("x",), meta={"test": "a trial", "entry_point": "area"}))


def test_it_is_marked_as_running_what_was_written() -> None:
    assert [name for name, metric in METRICS.items() if metric.runs_code] == ["code"]
