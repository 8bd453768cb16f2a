"""Small data sets of our own making in exactly the files, folders and keys in which the public ones are downloaded.

Each function of `LAYOUTS` writes below `datasets/` in a folder what the head of that recipe downloads and unpacks. Sources of
the layouts: rhymes-ai/Aria (examples/*/README.md and evaluation.py) for refcoco, nlvr2 and nextqa; the releases that the
recipes' heads name for the others.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

IMAGE = {"type": "image", "text": None}
VIDEO = {"type": "video", "text": None}
LETTERS = "ABCDE"


def picture(path: Path, size: tuple[int, int] = (96, 64), colour: str = "red") -> None:
    """A box of a colour on a grey ground, in the middle half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size, "grey")
    ImageDraw.Draw(image).rectangle((size[0] // 4, size[1] // 4, 3 * size[0] // 4, 3 * size[1] // 4), fill=colour)
    image.save(path)


def clip(path: Path, seconds: int = 2) -> None:
    """A clip that grows lighter, five frames a second."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(5 * seconds):
            pixels = np.full((48, 64, 3), 20 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def document(path: Path, pages: int = 2) -> None:
    """A PDF with a number on each page."""
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = [Image.new("RGB", (120, 160), "white") for _ in range(pages)]
    for number, page in enumerate(drawn, 1):
        ImageDraw.Draw(page).text((40, 60), f"page {number}", fill="black")
    drawn[0].save(path, save_all=True, append_images=drawn[1:])


def write_lines(path: Path, rows: list[object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def asked(parts: list[object], question: str, answer: str | None = None) -> list[object]:
    """The turns of a row of the authors' files; in those for evaluation the reply is not among them."""
    turns: list[object] = [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]
    if answer is not None:
        turns.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    return turns


def refcoco(root: Path) -> None:
    names = [f"images/COCO_train2014_{number:012}.jpg" for number in (49, 72, 110, 113)]
    for name, colour in zip(names, ("red", "blue", "green", "white"), strict=True):
        picture(root / name, colour=colour)
    question = "Which region does this sentence describe?\nthe box in the middle"
    train = [{"messages": asked([IMAGE], question, "(250,250),(749,749)"), "images": [name]} for name in names[:3]]
    held = {"messages": asked([IMAGE], question), "images": names[3:], "bbox": [24.0, 16.0, 72.0, 48.0], "hw": [64, 96]}
    write_lines(root / "train.jsonl", train)
    write_lines(root / "val.jsonl", [held])


def nlvr2(root: Path) -> None:
    def row(pair: str, **rest: object) -> dict[str, object]:
        names = [f"images/{pair}-img{side}.png" for side in (0, 1)]
        for name, colour in zip(names, ("red", "blue"), strict=True):
            picture(root / name, colour=colour)
        answer = rest.pop("answer", None)
        turns = asked([IMAGE, IMAGE], "Is it true of both pictures that there is a red box?", answer)  # type: ignore[arg-type]
        return {"messages": turns, "images": names, **rest}

    write_lines(
        root / "train.jsonl", [row(f"train/{set_}/train-{set_}-{set_}-0", answer="No") for set_ in (10, 11, 12)]
    )
    write_lines(root / "val.jsonl", [row("dev/dev-850-0", gt="No"), row("dev/dev-850-1", gt="No")])


def nextqa(root: Path) -> None:
    question = "How does the clip end?\nA. dark\nB. light\nC. red\nD. blue\nE. it does not\nAnswer with the letter."
    rows = []
    for name in ("1164/3238737531", "1001/4010069381"):
        clip(root / f"NExTVideo/{name}.mp4")
        video = {"path": f"NExTVideo/{name}.mp4", "num_frames": 4}
        rows.append({"messages": asked([VIDEO], question, "B"), "video": video})
    choices = dict(zip(LETTERS, ("dark", "light", "red", "blue", "it does not"), strict=True))
    held = {"messages": asked([VIDEO], question), "video": rows[0]["video"], "gt": "B"}
    write_lines(root / "train.jsonl", rows)  # type: ignore[arg-type]
    write_lines(root / "val.jsonl", [held | {"all_choices": list(LETTERS), "index2ans": choices}])


def code(root: Path) -> None:
    rows = [
        {
            "instruction": f"Write a function that adds {n}.",
            "response": f"```python\ndef add(x):\n    return x + {n}\n```",
        }
        for n in range(8)
    ]
    write_lines(root / "data-evol_instruct-decontaminated.jsonl", rows)  # type: ignore[arg-type]
    problem = {
        "task_id": "HumanEval/0",
        "prompt": 'def double(x: int) -> int:\n    """Twice x."""\n',
        "entry_point": "double",
        "canonical_solution": "    return 2 * x\n",
        "test": "def check(candidate):\n    assert candidate(2) == 4\n",
    }
    (root / "HumanEval.jsonl.gz").write_bytes(gzip.compress((json.dumps(problem) + "\n").encode()))


def docvqa(root: Path) -> None:
    for split, count in (("train", 3), ("val", 1)):
        questions = []
        for number in range(count):
            picture(root / f"spdocvqa_images/{split}0227_{number}.png", size=(120, 160))
            questions.append(
                {
                    "questionId": 337 + number,
                    "question": "What colour is the box?",
                    "question_types": ["figure/diagram"],
                    "image": f"documents/{split}0227_{number}.png",
                    "docId": 279,
                    "ucsf_document_id": f"{split}0227",
                    "ucsf_document_page_no": str(number),
                    "answers": ["red", "Red"],
                    "data_split": split,
                }
            )
        whole = {"dataset_name": "SP-DocVQA", "dataset_version": "1.0", "dataset_split": split, "data": questions}
        write_json(root / f"spdocvqa_qas/{split}_v1.0_withQT.json", whole)


def chartqa(root: Path) -> None:
    for split in ("train", "test"):
        folder = root / "ChartQA Dataset" / split
        for kind, label in (("human", "0.57"), ("augmented", "red")):
            picture(folder / f"png/{split}_{kind}_1.png", size=(120, 80))
            rows = [{"imgname": f"{split}_{kind}_1.png", "query": "What is shown?", "label": label}] * 2
            write_json(folder / f"{split}_{kind}.json", rows)


def scenes(root: Path) -> None:
    for split, names in (("train", ("v_QOlSCBRmfWY", "v_ehGHCYKzyZ8", "v_gone")), ("val_1", ("v_uqiMw7tQ1Cc",))):
        for name in names:
            if name != "v_gone":
                clip(root / f"videos/{name}.mp4")
        told = {"duration": 2.0, "timestamps": [[0, 1.1], [1.1, 2]], "sentences": ["It is dark.", " It grows light."]}
        write_json(root / f"{split}.json", dict.fromkeys(names, told))


def pdf(root: Path) -> None:
    rows = []
    for split, count in (("train", 3), ("val", 1), ("test", 1)):
        for number in range(count):
            name = f"{split}{number:028x}"
            document(root / f"DUDE_train-val-test_binaries/PDF/{split}/{name}.pdf")
            row = {
                "docId": name,
                "questionId": f"{name}_0",
                "question": "How many pages are there?",
                "data_split": split,
            }
            answered = {"answers": ["2"], "answers_page_bounding_boxes": [], "answers_variants": ["two"]}
            rows.append(row if split == "test" else row | answered | {"answer_type": "abstractive"})
    write_json(root / "all.json", {"dataset_name": "DUDE Dataset", "dataset_version": "1.0.7", "data": rows})


def captions(root: Path) -> None:
    for split, ids in (("train", (9, 25)), ("val", (139,))):
        images, sentences = [], []
        for number in ids:
            name = f"{number:012}.jpg"
            picture(root / f"{split}2017/{name}")
            images.append({"license": 3, "file_name": name, "height": 64, "width": 96, "id": number})
            sentences += [
                {"image_id": number, "id": 5 * number + place, "caption": f"A red box, said a person {place}."}
                for place in range(5)
            ]
        whole = {"info": {"year": 2017}, "licenses": [{"id": 3}], "images": images, "annotations": sentences}
        write_json(root / f"annotations/captions_{split}2017.json", whole)


def text(root: Path) -> None:
    labels = ["A", "B", "C", "D"]
    row = {
        "id": "Mercury_7029645",
        "question": "Which of these gives its own light?",
        "choices": {"text": ["the Moon", "the Sun", "a mirror", "Venus"], "label": labels},
        "answerKey": "B",
    }
    numbered = {**row, "choices": {**row["choices"], "label": ["1", "2", "3", "4"]}, "answerKey": "2"}  # type: ignore[dict-item]
    for name, rows in (("Challenge/train", [row, numbered]), ("Easy/train", [row]), ("Challenge/test", [numbered])):
        path = root / f"ARC-{name}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), path)


LAYOUTS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "captions": ("coco", captions),
    "chartqa": ("chartqa", chartqa),
    "code": ("code", code),
    "docvqa": ("docvqa", docvqa),
    "nextqa": ("nextqa", nextqa),
    "nlvr2-490": ("nlvr2", nlvr2),
    "nlvr2-980": ("nlvr2", nlvr2),
    "pdf": ("dude", pdf),
    "refcoco": ("refcoco_sub30k", refcoco),
    "scenes": ("activitynet", scenes),
    "text": ("arc", text),
}
"""By recipe: its folder below `datasets/`, and what writes that."""
