"""The input pipeline over a folder of JPEGs, and torchvision's over the same, in turns; a Markdown table.

python benchmarks/loader.py --torch-python /path/to/python-with-torchvision

Images are 500 x 375 pixels, crops of the bundled photographs. One core: in one process, without workers. A ratio is the
median of the turns' ratios. The last line is JSON. Run it alone on the machine; where something else runs, look at the
images per second of processor time.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from compare import HERE, run
from machine import print_line
from PIL import Image

import theano_mgpu as tm

Figures = dict[str, float]


def write_folder(folder: Path, count: int, size: tuple[int, int], seed: int) -> None:
    """``count`` JPEGs, a class for each photograph; of about 50 kB each at 500 x 375."""
    rng = np.random.default_rng(seed)
    photographs = [(found.name, Image.open(found.path).convert("RGB")) for found in tm.data.bundled_photographs()]
    for number in range(count):
        name, photograph = photographs[number % len(photographs)]
        most = min(photograph.width / size[0], photograph.height / size[1])
        width, height = (length * most * rng.uniform(0.6, 1) for length in size)
        left, top = rng.uniform(0, photograph.width - width), rng.uniform(0, photograph.height - height)
        path = folder / name / f"{number:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        box = (left, top, left + width, top + height)
        photograph.resize(size, Image.Resampling.BICUBIC, box=box).save(path, quality=90)


def speed(batches: Iterator[tm.data.Batch], count: int) -> Figures:
    """Of the next ``count`` batches."""
    begun, processor = time.perf_counter(), time.process_time()
    images = sum(len(batch) for batch in islice(batches, count))
    return {
        "images_per_s": round(images / (time.perf_counter() - begun), 1),
        "images_per_processor_s": round(images / (time.process_time() - processor), 1),
    }


def peer(arguments: argparse.Namespace, folder: Path, workers: int) -> Figures:
    command = [arguments.torch_python, str(HERE / "peers/torch_loader.py"), str(folder), "--workers", str(workers)]
    command += ["--batch", str(arguments.batch), "--image-size", str(arguments.image_size)]
    return run(command, arguments.timeout)


def main(arguments: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as place:
        os.environ["XDG_CACHE_HOME"] = place  # the scan is not kept
        folder = Path(place) / "data" / "train"
        write_folder(folder, arguments.images, (500, 375), seed=0)
        write_folder(folder.parent / "val", 13, (500, 375), seed=1)
        source = tm.data.image_folder(folder.parent, progress=False).train
        options: dict[str, Any] = {"train": True, "image_size": arguments.image_size, "drop_last": True}
        one = tm.data.pipeline(source, arguments.batch, workers=0, **options)
        several = tm.data.pipeline(source, arguments.batch, workers=arguments.workers, **options)
        ways = {"ours_1": one.batches_from(0), f"ours_{arguments.workers}": several.batches_from(0)}
        turns: dict[str, list[Figures]] = {}
        for _ in range(arguments.turns):
            for name, batches in ways.items():
                # What was made ahead while others were measured does not count.
                speed(batches, 1 if name == "ours_1" else 5 * arguments.workers)
                turns.setdefault(name, []).append(speed(batches, arguments.batches))
                if arguments.torch_python:
                    number = name.removeprefix("ours_")
                    found = peer(arguments, folder, 0 if name == "ours_1" else arguments.workers)
                    turns.setdefault(f"torchvision_{number}", []).append(found)
        several.close()
    report(arguments, turns)


def report(arguments: argparse.Namespace, turns: dict[str, list[Figures]]) -> None:
    workers = arguments.workers

    def ratio(name: str, other: str, figure: str = "images_per_s") -> float:
        pairs = zip(turns[name], turns[other], strict=True)
        return round(statistics.median(ours[figure] / theirs[figure] for ours, theirs in pairs), 3)

    print("| images/s | median | lowest | highest | per second of processor time |\n|---|---|---|---|---|")
    figures: dict[str, float] = {}
    for name, found in turns.items():
        wall = [turn["images_per_s"] for turn in found]
        processor = statistics.median(turn["images_per_processor_s"] for turn in found)
        alone = f"{processor:.0f}" if name.endswith("_1") else "-"
        print(f"| {name} | {statistics.median(wall):.0f} | {min(wall):.0f} | {max(wall):.0f} | {alone} |")
        figures[f"images_per_s_{name}"] = round(statistics.median(wall), 1)
    figures["efficiency"] = round(ratio(f"ours_{workers}", "ours_1") / workers, 3)
    if arguments.torch_python:
        figures["ratio_1"] = ratio("ours_1", "torchvision_1")
        figures["ratio_1_processor"] = ratio("ours_1", "torchvision_1", "images_per_processor_s")
        figures["ratio_workers"] = ratio(f"ours_{workers}", f"torchvision_{workers}")
    print_line(benchmark="loader", **vars(arguments), **figures, runs=turns)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=520)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--batches", type=int, default=16, help="that are timed in a turn")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--torch-python", help="a Python that has torchvision, for its rows")
    parser.add_argument("--timeout", type=float, default=300, help="seconds for one run of the peer")
    parser.add_argument("--smoke", action="store_true", help="small and quick: does it run at all?")
    given = parser.parse_args()
    if given.smoke:
        given.images, given.batch, given.batches, given.workers, given.turns = 52, 8, 2, 2, 1
    main(given)
