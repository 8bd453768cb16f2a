"""Verifying pictures by their headers: how many JPEG files a second `MediaChecker` finds, opens and measures.

    python benchmarks/headers.py --images 5000 --json

The files are generated, some 100 kB each, a third of them with the EXIF data of a camera, and lie in folders of a
thousand. They have been read once before the clock starts, so that what is measured is the work and not the disk. For
comparison the same files are measured by Pillow alone, which neither looks for them nor opens them more safely.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image

from aria_finetune.conversion.media_check import MediaChecker
from aria_finetune.data_formats.record import MediaReference

PATTERNS = 12
IN_FOLDER = 1000
MAX_PIXELS = 64_000_000

Verify = Callable[[str], object]


def main() -> None:
    """Generate, measure, print."""
    arguments = parse(sys.argv[1:])
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        names, size = generate(Path(folder), arguments.images)
        summary: dict[str, Any] = {
            "images": arguments.images,
            "mean_bytes": size,
            "ours": {str(count): measure("ours", Path(folder), names, count, arguments.repeats) for count in (1, 2)},
            "pillow": {"1": measure("pillow", Path(folder), names, 1, arguments.repeats)},
            "machine": {"python": platform.python_version(), "pillow": PIL.__version__, "cpu": platform.machine()},
        }
    print(f"{arguments.images} JPEG files of {size} bytes, the best of {arguments.repeats}")
    for who, runs in (("verified", summary["ours"]), ("by Pillow alone", summary["pillow"])):
        for count, run in runs.items():
            rate, cost = run["images_per_second"], run["cpu_microseconds"]
            print(f"{who:16} {count} process(es)  {rate:>8.0f} images/s  {cost:6.1f} us of CPU each")
    if arguments.json:
        print(json.dumps(summary))


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(description="Verification of pictures by their headers.")
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where files are generated (default: the temporary folder)")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    arguments = parser.parse_args(words)
    for name in ("images", "repeats"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} must be at least 1")
    return arguments


def generate(folder: Path, count: int) -> tuple[list[str], int]:
    """Write `count` JPEG files; returns their names below the folder, and their mean size in bytes."""
    contents = [picture(number) for number in range(PATTERNS)]
    names = [f"{number // IN_FOLDER:03}/{number:012}.jpg" for number in range(count)]
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(contents[number % PATTERNS])
    return names, sum(len(contents[number % PATTERNS]) for number in range(count)) // count


def picture(number: int) -> bytes:
    """A photograph-like picture; every third is turned, and has what a camera says and a thumbnail's worth of bytes."""
    noise = np.random.default_rng(number)
    soft = Image.fromarray(noise.integers(0, 255, (60, 80, 3), np.uint8)).resize((640, 480), Image.Resampling.BICUBIC)
    image = Image.fromarray((np.asarray(soft) // 2 + noise.integers(0, 30, (480, 640, 3))).astype(np.uint8))
    exif = Image.Exif()
    if number % 3 == 0:
        exif[0x010F], exif[0x0110], exif[0x0132] = "A maker of cameras", "A camera", "2020:01:01 00:00:00"
        exif[0x0112], exif[0x0128], exif[0x011A], exif[0x011B] = 6, 2, 72.0, 72.0
        exif[0x9286] = bytes(8000)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88, exif=exif)
    return buffer.getvalue()


def measure(who: str, folder: Path, names: list[str], count: int, repeats: int) -> dict[str, float]:
    """The best of several runs in `count` processes that begin together."""
    runs = [run(who, folder, names, count) for _ in range(repeats + 1)][1:]
    return min(runs, key=lambda one: one["seconds"])


def run(who: str, folder: Path, names: list[str], count: int) -> dict[str, float]:
    """One run: seconds from the common start to the last end, and the CPU time of each picture."""
    context = multiprocessing.get_context("fork")
    results, barrier = context.SimpleQueue(), context.Barrier(count)
    shares = [names[part::count] for part in range(count)]
    workers = [context.Process(target=work, args=(who, folder, share, barrier, results)) for share in shares]
    for worker in workers:
        worker.start()
    times = [results.get() for _ in workers]
    for worker in workers:
        worker.join()
    seconds = max(end for _, end, _ in times) - min(start for start, _, _ in times)
    return {
        "seconds": seconds,
        "images_per_second": len(names) / seconds,
        "cpu_microseconds": sum(cpu for *_, cpu in times) / len(names) * 1e6,
    }


def work(
    who: str, folder: Path, names: list[str], barrier: Barrier, results: multiprocessing.SimpleQueue[tuple[float, ...]]
) -> None:
    """Verify a share and tell when it began and ended, and the CPU time it took."""
    verify = {"ours": with_checker, "pillow": with_pillow}[who](folder)
    verify(names[0])
    barrier.wait()
    began, cpu = time.monotonic(), time.process_time()
    for name in names:
        verify(name)
    results.put((began, time.monotonic(), time.process_time() - cpu))


def with_checker(folder: Path) -> Verify:
    """What a conversion with `--verify header` does for each picture."""
    checker = MediaChecker([folder], "header", MAX_PIXELS)
    return lambda name: checker.check(MediaReference("image", name))


def with_pillow(folder: Path) -> Verify:
    """Pillow's own way to the size of an upright picture."""

    def size(name: str) -> tuple[int, int]:
        with Image.open(folder / name) as image:
            return image.size[::-1] if image.getexif().get(0x0112, 1) >= 5 else image.size

    return size


if __name__ == "__main__":
    main()
