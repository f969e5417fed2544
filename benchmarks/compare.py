"""A benchmark of ours and a peer, alternating in one run: the median of the pairs' ratios.

python benchmarks/compare.py --pairs 5 --figure images_per_s \\
    --ours "python benchmarks/resnet50_step.py" --peer "python jax_resnet50.py --batch 8 --devices 2"

Both commands print a JSON object as their last line. Run it alone on the machine.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess


def figure(command: str, names: list[str]) -> float:
    """The first of ``names`` that the command's last line has."""
    printed = subprocess.run(shlex.split(command), check=True, capture_output=True, text=True).stdout
    result = json.loads(printed.strip().splitlines()[-1])
    found = next((name for name in names if name in result), None)
    if found is None:
        raise KeyError(f"{command!r} printed none of {names}, but {sorted(result)}.")
    return float(result[found])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ours", required=True)
    parser.add_argument("--peer", required=True)
    parser.add_argument("--figure", nargs="+", default=["images_per_s"], help="names of the figure, the first found")
    parser.add_argument("--pairs", type=int, default=5)
    arguments = parser.parse_args()
    pairs = []
    for number in range(arguments.pairs):
        ours, peer = figure(arguments.ours, arguments.figure), figure(arguments.peer, arguments.figure)
        pairs.append(ours / peer)
        print(f"pair {number + 1}: ours {ours:.3f}, peer {peer:.3f}, ratio {ours / peer:.3f}", flush=True)
    print(json.dumps({"ratio": round(statistics.median(pairs), 3), "pairs": [round(r, 3) for r in pairs]}))
