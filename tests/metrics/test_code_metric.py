"""Code: programs written by hand that pass or fail their tests, in the layouts of HumanEval and MBPP."""

from __future__ import annotations

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
