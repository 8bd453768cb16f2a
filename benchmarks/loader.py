"""The loader: how many pictures and frames a second come out of it, ours beside the stock way.

    python benchmarks/loader.py --images 240 --json --save

The stock way is a plain torch DataLoader whose collate function opens files and calls transformers' AriaProcessor. Ours is that
of training: media decoded in a process that can be killed, bytes instead of normalised floats. Both read the same generated
1080p pictures, from a folder of JPEG files and from Parquet (the stock way through `datasets`), and frames of a 1080p clip. Each
measurement has a process of its own, the two ways in turn; medians over all of them. Files have just been written, so that what
is measured is the work and not the disk. On a machine that does other work too, CPU time says more than images a second. Knows
nothing of how a way loads (`one_loader.py`).
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import meters
import numpy as np
from PIL import Image

from aria_finetune.conversion import ConversionOptions, convert
from aria_finetune.provenance import versions

HERE = Path(__file__).parent
WAYS = ("stock", "ours")
SOURCES = ("folder", "parquet", "video")
PATTERNS = 16
"""Different pictures; records beyond repeat them."""
CLIP_SECONDS, CLIP_RATE, FRAMES = 4, 25, 8
NEEDED = 25
"""Images a second that training on an H100 is reckoned to take: not measured."""
AGREEMENT = 0.02
"""By how much the averages of patches of a picture may differ, of a range of -1 to 1."""


def main() -> int:
    """Generate, measure, print; 0 when both ways see the same."""
    arguments = parse(sys.argv[1:])
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        sizes = generate(Path(folder), arguments)
        summary = {
            "images": arguments.images,
            "clips": arguments.clips,
            "mean_jpeg_bytes": sizes,
            "height": arguments.height,
            "size": arguments.size,
            "batch": arguments.batch,
            "repeats": arguments.repeats,
            "device": arguments.device,
            "device_name": meters.device_name(arguments.device),
            "needed_images_per_second": NEEDED,
            "sources": {source: compare(source, Path(folder), arguments) for source in sources(arguments)},
            "processors": os.cpu_count(),
            "versions": versions(),
        }
    summary["ways_agree"] = all(one["differ_by"] < AGREEMENT for one in summary["sources"].values())
    print(table(summary))
    if arguments.save:
        file = HERE / "results" / f"loader-{arguments.device}-{arguments.size}.json"
        file.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
        print(f"written to {file}", file=sys.stderr)
    if arguments.json:
        print(json.dumps(summary))
    return 0 if summary["ways_agree"] else 1


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(
        description="Pictures and frames a second out of the loader, beside the stock way."
    )
    parser.add_argument("--images", type=int, default=240, help="records with one picture each (default 240)")
    parser.add_argument("--clips", type=int, default=16, help=f"records with {FRAMES} frames of a clip; 0 for none")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], help="of the loader (default 0 1 2)")
    parser.add_argument("--height", type=int, default=1080, help="of pictures and clips, 16:9 (default 1080)")
    parser.add_argument("--size", type=int, choices=[490, 980], default=980, help="of a tile in pixels (default 980)")
    parser.add_argument("--batch", type=int, default=4, help="records in a batch (default 4)")
    parser.add_argument("--repeats", type=int, default=3, help="processes of each way (default 3)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where batches are to be")
    parser.add_argument("--folder", type=Path, help="where files are generated (default: the temporary folder)")
    parser.add_argument("--json", action="store_true", help="the last line of the output is one JSON object")
    parser.add_argument("--save", action="store_true", help=f"also write it to {HERE.name}/results")
    arguments = parser.parse_args(words)
    if arguments.height < 18 or arguments.height % 18:
        parser.error("--height must be a multiple of 18, for 16:9 and an even width")
    if min(arguments.batch, arguments.repeats) < 1 or min(arguments.clips, *arguments.workers) < 0:
        parser.error("--batch and --repeats must be at least 1, --clips and --workers no less than 0")
    least = 2 * max(1, *arguments.workers) * arguments.batch
    if arguments.images < least or 0 < arguments.clips < least:
        parser.error(f"every worker must have two batches: that are {least} images, and as many clips or none")
    return arguments


def sources(arguments: argparse.Namespace) -> list[str]:
    """What is to be measured."""
    return [source for source in SOURCES if source != "video" or arguments.clips]


def generate(folder: Path, arguments: argparse.Namespace) -> int:
    """Write sources for both ways below `folder`; returns the mean size of a picture in bytes."""
    (folder / "raw").mkdir()
    contents = [picture(number, arguments.height) for number in range(min(PATTERNS, arguments.images))]
    for number in range(arguments.images):
        (folder / "raw" / f"{number:06}.jpg").write_bytes(contents[number % PATTERNS])
    records = [said(f"{number:06}.jpg", "image") for number in range(arguments.images)]
    write_records(folder / "raw" / "pictures.json", records)
    options = {"folder": ConversionOptions(media="reference"), "parquet": ConversionOptions(pack="parquet")}
    for source, option in options.items():
        convert(folder / "raw" / "pictures.json", folder / source, option)
    if arguments.clips:
        write_clip(folder / "raw" / "clip.mp4", arguments.height)
        write_records(folder / "raw" / "clips.json", [said("clip.mp4", "video") for _ in range(arguments.clips)])
        convert(folder / "raw" / "clips.json", folder / "video", ConversionOptions(media="reference"))
    return sum(map(len, contents)) // len(contents)


def said(name: str, kind: str) -> dict[str, Any]:
    """A LLaVA record about a picture or a clip."""
    turns = [("human", f"<{kind}>\nWhat is it?"), ("gpt", "A pattern.")]
    return {kind: name, "conversations": [{"from": role, "value": text} for role, text in turns]}


def write_records(file: Path, records: Sequence[dict[str, Any]]) -> None:
    """A JSON list, each record with its id."""
    file.write_text(json.dumps([{"id": str(number), **one} for number, one in enumerate(records)]), encoding="utf-8")


def picture(number: int, height: int) -> bytes:
    """A photograph-like picture, about as hard to decode as one."""
    buffer = io.BytesIO()
    Image.fromarray(pixels(number, height)).save(buffer, "JPEG", quality=88)
    return buffer.getvalue()


def pixels(number: int, height: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Soft colours with a little noise on them, (height, width, 3)."""
    random = np.random.default_rng(number)
    soft = Image.fromarray(random.integers(0, 255, (9, 16, 3), np.uint8)).resize(
        (height * 16 // 9, height), Image.Resampling.BICUBIC
    )
    noise = random.integers(0, 12, (*soft.size[::-1], 1), np.uint8)
    return (np.asarray(soft) // 8 * 7 + noise).astype(np.uint8)


def write_clip(path: Path, height: int) -> None:
    """A clip that moves, as H.264."""
    scene = pixels(0, height)
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=CLIP_RATE, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = scene.shape[1], height, "yuv420p"
        for number in range(CLIP_SECONDS * CLIP_RATE):
            frame = av.VideoFrame.from_ndarray(np.roll(scene, 8 * number, axis=1), "rgb24")
            output.mux(stream.encode(frame))
        output.mux(stream.encode())


def compare(source: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Both ways with each number of workers, in turn."""
    by_workers, seen = {}, {}
    for workers in arguments.workers:
        runs: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
        for repeat in range(arguments.repeats):
            for way in WAYS:
                words = f"{source}, {workers} worker(s), {way}, process {repeat + 1} of {arguments.repeats}"
                print(words, file=sys.stderr, flush=True)
                runs[way].append(run(way, source, workers, folder, arguments))
        sides: dict[str, Any] = {way: medians(found) for way, found in runs.items()}
        sides["times_as_fast"] = sides["ours"]["images_per_second"] / sides["stock"]["images_per_second"]
        sides["times_less_cpu"] = sides["stock"]["cpu_milliseconds"] / sides["ours"]["cpu_milliseconds"]
        by_workers[str(workers)] = sides
        seen = {way: np.asarray(found[0]["patches"]) for way, found in runs.items()}
    return {"workers": by_workers, "differ_by": float(np.abs(seen["ours"] - seen["stock"]).max())}


def run(way: str, source: str, workers: int, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """One process.

    Raises:
        SystemExit: it failed, with its words on stderr.
    """
    job = {
        "way": way,
        "source": source,
        "folder": str(folder),
        "workers": workers,
        "size": arguments.size,
        "batch": arguments.batch,
        "frames": FRAMES,
        "device": arguments.device,
    }
    command = [sys.executable, str(HERE / "one_loader.py"), json.dumps(job)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{way}: the process ended with exit code {done.returncode}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def medians(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of rates and costs; and every rate, to see how far to trust them."""
    names = ("images_per_second", "cpu_milliseconds", "seconds_to_first_batch", "megabytes_per_batch")
    middle = {name: statistics.median(run[name] for run in runs) for name in names}
    return {**middle, "rates": [run["images_per_second"] for run in runs]}


def table(summary: dict[str, Any]) -> str:
    """The summary for people."""
    what = f"{summary['height']}p to {summary['size']} px, JPEG files of {summary['mean_jpeg_bytes'] // 1000} kB"
    lines = [
        f"{what}, {summary['processors']} processors; training on an H100 takes about {NEEDED} images/s",
        f"{'':10}{'workers':>8}{'stock, images/s':>18}{'ours':>8}{'times':>8}{'stock, CPU ms':>16}{'ours':>8}{'times':>8}",
    ]
    for source, found in summary["sources"].items():
        for workers, sides in found["workers"].items():
            stock, ours = sides["stock"], sides["ours"]
            lines.append(
                f"{source:10}{workers:>8}{stock['images_per_second']:>18.1f}{ours['images_per_second']:>8.1f}"
                f"{sides['times_as_fast']:>8.2f}{stock['cpu_milliseconds']:>16.1f}{ours['cpu_milliseconds']:>8.1f}"
                f"{sides['times_less_cpu']:>8.2f}"
            )
    if not summary["ways_agree"]:
        lines.append("THE WAYS DO NOT SEE THE SAME: the ratios above mean nothing")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
