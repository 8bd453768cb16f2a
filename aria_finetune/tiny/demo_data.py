"""Draw the visual task and the clip of the demo's data.

    python -m aria_finetune.tiny.demo_data recipes/data/tiny

The task: is the colour of the shape warm or cool? Pretraining names colours but never says either word. The
photographs beside the drawings are not made here; `recipes/data/tiny/SOURCES.md` says where they are from.
"""

from __future__ import annotations

import argparse
import json
import random
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image, ImageDraw

from aria_finetune.tiny.scenes import COLOURS, WARM, Scene, draw_scene, sample_scene

QUESTION = "Is the colour of the shape warm or cool?"
TRAIN_IMAGES, EVAL_IMAGES = 192, 64
CLIP_SECONDS, FRAMES_PER_SECOND, CLIP_SIDE = 4, 8, 160


def balanced_scenes(rng: random.Random, count: int) -> list[Scene]:
    """`count` scenes, exactly half of them warm, the colours of each half in turn."""
    cool = [colour for colour in COLOURS if colour not in WARM]
    colours = [half[index // 2 % len(half)] for index in range(count) for half in [(list(WARM), cool)[index % 2]]]
    scenes = [sample_scene(rng, colour) for colour in colours]
    rng.shuffle(scenes)
    return scenes


def write_task(folder: Path, name: str, scenes: list[Scene]) -> None:
    """Write `NAME.jsonl` in Aria's own format and its pictures in `shapes/`."""
    lines = []
    (folder / "shapes").mkdir(parents=True, exist_ok=True)
    for index, scene in enumerate(scenes):
        path = f"shapes/{name}-{index:03}.png"
        draw_scene(scene).save(folder / path, optimize=True)
        lines.append(turn([{"type": "image", "text": None}, words(QUESTION)], scene.warmth, images=[path]))
    write_lines(folder / f"{name}.jsonl", lines)


def turn(question: list[dict[str, Any]], answer: str, **media: Any) -> dict[str, Any]:
    """One question and its answer in Aria's own format."""
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": [words(answer)]}]
    return {"messages": messages, **media}


def words(text: str) -> dict[str, Any]:
    """A text part of Aria's own format."""
    return {"type": "text", "text": text}


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write JSON lines."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def write_clip(path: Path) -> None:
    """A red ball that rolls from left to right and turns blue half-way; H.264 in MP4."""
    frames = CLIP_SECONDS * FRAMES_PER_SECOND
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FRAMES_PER_SECOND)
        stream.width = stream.height = CLIP_SIDE
        stream.pix_fmt = "yuv420p"
        stream.time_base = Fraction(1, FRAMES_PER_SECOND)
        for index in range(frames):
            picture = Image.new("RGB", (CLIP_SIDE, CLIP_SIDE), (235, 235, 235))
            x = 25 + (CLIP_SIDE - 50) * index / (frames - 1)
            colour = COLOURS["red"] if index < frames // 2 else COLOURS["blue"]
            ImageDraw.Draw(picture).ellipse([x - 22, 90, x + 22, 134], fill=colour)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.asarray(picture), format="rgb24")))
        container.mux(stream.encode(None))


def main() -> None:
    """Draw everything into the folder that is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    folder = parser.parse_args().output
    write_task(folder, "warmth-train", balanced_scenes(random.Random("demo train"), TRAIN_IMAGES))
    write_task(folder, "warmth-eval", balanced_scenes(random.Random("demo eval"), EVAL_IMAGES))
    write_clip(folder / "ball.mp4")
    video = {"path": "ball.mp4", "num_frames": 4}
    question = [{"type": "video", "text": None}, words("What happens to the ball?")]
    mixed = [{"type": "image", "text": None}, *question[:1], words("Which of the two moves, the first or the second?")]
    write_lines(
        folder / "clip.jsonl",
        [
            turn(question, "It rolls to the right and turns blue.", video=video),
            turn(mixed, "The second.", images=["photos/coffee.jpg"], video=video),
        ],
    )


if __name__ == "__main__":
    main()
