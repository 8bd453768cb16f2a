"""A file of answers that goes on where it was, mends what was torn, and is nobody else's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from aria_finetune.errors import UserError
from aria_finetune.speaking.answer_file import NOTES, open_answers

SETTINGS: dict[str, Any] = {"model": "tiny", "weights": "abc", "sampling": {"seed": 1, "top_k": 0}, "batch_size": 8}


def line(row: int, **more: Any) -> dict[str, Any]:
    return {"row": row, "id": f"r{row}", "answer": "é\n\u2028😀\ud800", "tokens": 2, **more}


def write(path: Path, rows: range, *, resume: bool = False) -> None:
    with open_answers(path, SETTINGS, resume=resume) as answers:
        answers.add([line(row) for row in rows])


def test_lines_are_added_behind_those_there(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    write(path, range(3))
    with open_answers(path, SETTINGS, resume=True) as answers:
        assert answers.ids == ["r0", "r1", "r2"]
        assert not answers.torn
        answers.add([{"row": 3, "id": "r3", "refused": "bad_json"}])
        answers.finish(1.5)
        assert (answers.refused, answers.tokens) == (1, 6)
    assert [json.loads(text)["row"] for text in path.read_bytes().decode().split("\n")[:-1]] == [0, 1, 2, 3]
    notes = json.loads((tmp_path / f"answers.jsonl{NOTES}").read_text())
    assert notes["status"] == "finished"
    assert (notes["rows"], notes["refused"], notes["tokens"]) == (4, 1, 6)
    assert notes["settings"] == SETTINGS


def test_wherever_it_is_cut_the_torn_line_is_taken_back(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    write(path, range(3))
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with open_answers(path, SETTINGS, resume=True) as answers:
            assert answers.torn == (whole[:length] != b"" and not whole[:length].endswith(b"\n"))
            answers.add([line(row) for row in range(len(answers.ids), 3)])
        assert path.read_bytes() == whole


def test_an_id_that_looks_like_a_secret_is_known_again(tmp_path: Path) -> None:
    path, token = tmp_path / "answers.jsonl", "hf_" + "a1B2" * 8
    with open_answers(path, SETTINGS, resume=False) as answers:
        answers.add([{"row": 0, "id": f"of {token}"}])
        assert answers.is_of(0, f"of {token}")
    assert token not in path.read_text()
    with open_answers(path, SETTINGS, resume=True) as answers:
        assert answers.is_of(0, f"of {token}")
        assert not answers.is_of(0, f"of another {token}")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"weights": "abd"}, "weights was abc and is abd"),
        ({"sampling": {"seed": 2, "top_k": 0}}, "sampling.seed was 1 and is 2"),
        ({"adapter": "xyz"}, "adapter was None and is xyz"),
    ],
)
def test_other_settings_are_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    path = tmp_path / "answers.jsonl"
    write(path, range(2))
    before = path.read_bytes()
    with pytest.raises(UserError, match=said), open_answers(path, SETTINGS | change, resume=True):
        pass
    assert path.read_bytes() == before


def test_a_batch_of_another_size_is_told(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    write(path, range(2))
    with open_answers(path, SETTINGS | {"batch_size": 2, "model": "./tiny"}, resume=True) as answers:
        assert answers.notes == ["batch_size was 8 and is 2"]


def test_what_is_not_ours_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text('{"mine": 1}\n')
    for resume, said in ((False, "something at the output"), (True, "not a file that `generate` began")):
        with pytest.raises(UserError, match=said), open_answers(path, SETTINGS, resume=resume):
            pass
    assert path.read_text() == '{"mine": 1}\n'
    assert [entry.name for entry in tmp_path.iterdir()] == ["answers.jsonl"]
    with pytest.raises(UserError, match="something at the output"), open_answers(tmp_path, SETTINGS, resume=True):
        pass
    with (
        pytest.raises(UserError, match="no such folder"),
        open_answers(tmp_path / "a" / "b.jsonl", SETTINGS, resume=True),
    ):
        pass


@pytest.mark.parametrize("text", ['{"row": 7, "id": "r7"}', '{"row": 1}', "[]", "torn"])
def test_a_damaged_line_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "answers.jsonl"
    write(path, range(3))
    lines = path.read_text().split("\n")
    path.write_text("\n".join([lines[0], text, *lines[2:]]))
    with pytest.raises(UserError, match=r"answers\.jsonl:2: the line is not that of row 1"):
        write(path, range(3, 4), resume=True)


def test_two_processes_don_t_write_to_one_file(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    code = (
        "import sys; from pathlib import Path; from aria_finetune.speaking.answer_file import open_answers\n"
        f"with open_answers(Path(sys.argv[1]), {SETTINGS!r}, resume=True): pass"
    )
    with open_answers(path, SETTINGS, resume=False) as answers:
        answers.add([line(0)])
        done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=False)
        assert "another process writes to it" in done.stderr
    subprocess.run([sys.executable, "-c", code, path], check=True)
