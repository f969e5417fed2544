"""ResNet-50's training step, ours and what one would pick instead, alternating in one run; a Markdown table.

python benchmarks/compare.py --pairs 5 --torch-python /path/to/python-with-torch

Peers: hand-written JAX over the same devices, and PyTorch DDP (left out without ``--torch-python``). A ratio is the
median of the pairs' ratios. The last line is JSON, with every run's figures. Run it alone on the machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from machine import print_line

HERE = Path(__file__).parent


def run(command: list[str], timeout: float) -> dict[str, Any]:
    """The JSON object that a benchmark prints as its last line; RuntimeError with its errors where it fails."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed ({done.returncode}):\n{done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def commands(arguments: argparse.Namespace) -> dict[str, list[str]]:
    """What is run, by name."""
    options = ["--batch", str(arguments.batch), "--devices", str(arguments.devices), "--steps", str(arguments.steps)]
    options += ["--precision", arguments.precision]
    options += ["--cuda"] * arguments.cuda + ["--smoke"] * arguments.smoke
    ours = [sys.executable, str(HERE / "resnet50_step.py"), *options, "--update-on", arguments.update_on]
    if arguments.shards:
        ours += ["--shards", str(arguments.shards)]
    found = {"ours": ours, "jax": [sys.executable, str(HERE / "peers/jax_resnet50.py"), *options]}
    if arguments.torch_python:
        found["ddp"] = [arguments.torch_python, str(HERE / "peers/torch_ddp_resnet50.py"), *options]
    return found


def table(runs: dict[str, list[dict[str, Any]]]) -> tuple[list[str], dict[str, float]]:
    """Rows of Markdown, and the ratios by name."""
    rows = ["| ResNet-50, one training step | ours | peer | ratio |", "|---|---|---|---|"]
    ratios: dict[str, float] = {}

    def add(what: str, name: str, peer: str, figure: str) -> None:
        pairs = [(ours[figure], theirs[figure]) for ours, theirs in zip(runs["ours"], runs[peer], strict=True)]
        ours, theirs = (statistics.median(values) for values in zip(*pairs, strict=True))
        ratios[name] = round(statistics.median(a / b for a, b in pairs), 3)
        rows.append(f"| {what} | {ours:.2f} | {theirs:.2f} | {ratios[name]:.2f} |")

    add("images/s, against hand-written JAX", "images_per_s_jax", "jax", "images_per_s")
    if "ddp" in runs:
        add("images/s, against PyTorch DDP", "images_per_s_ddp", "ddp", "images_per_s")
    else:
        rows.append("| images/s, against PyTorch DDP | - | - | not run: no --torch-python |")
    add(
        "seconds from graph (peer: function) to the end of the first step",
        "to_first_step_jax",
        "jax",
        "to_first_step_s",
    )
    add("peak memory (resident set, GB), against hand-written JAX", "max_rss_jax", "jax", "max_rss_gb")
    allowed = [
        1.15 * theirs["max_rss_gb"] + ours["host_copy_gb"]
        for ours, theirs in zip(runs["ours"], runs["jax"], strict=True)
    ]
    used = statistics.median(ours["max_rss_gb"] / limit for ours, limit in zip(runs["ours"], allowed, strict=True))
    ratios["max_rss_allowed"] = round(used, 3)
    rows.append(
        f"| the same, against 1.15 x JAX + the host's copy of parameters and state "
        f"| {statistics.median(ours['max_rss_gb'] for ours in runs['ours']):.2f} "
        f"| {statistics.median(allowed):.2f} | {used:.2f} |"
    )
    return rows, ratios


def main(arguments: argparse.Namespace) -> None:
    todo = commands(arguments)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in todo}
    for number in range(arguments.pairs):
        for name, command in todo.items():
            runs[name].append(run(command, arguments.timeout))
            print(f"pair {number + 1}: {name} {runs[name][-1]['images_per_s']} images/s", file=sys.stderr, flush=True)
    rows, ratios = table(runs)
    print("\n".join(rows))
    print_line(benchmark="compare", **vars(arguments), ratios=ratios, runs=runs)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--devices", type=int, default=2)
    parser.add_argument("--shards", type=int, help="ours: pieces of a batch, one a device by default")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--update-on", choices=("host", "device"), default="host")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--torch-python", help="a Python that has torch, for PyTorch DDP's rows")
    parser.add_argument("--cuda", action="store_true", help="GPUs instead of simulated devices")
    parser.add_argument("--timeout", type=float, default=600, help="seconds for one run")
    parser.add_argument("--smoke", action="store_true", help="small and quick: does it run at all?")
    given = parser.parse_args()
    if given.smoke:
        given.pairs = 1
    main(given)
