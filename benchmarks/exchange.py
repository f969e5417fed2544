"""Gradient exchange and momentum update of ResNet-50's 25.6 million parameters over ranks, ours and PyTorch's.

python benchmarks/exchange.py --torch-python /path/to/python-with-torch

Ours is a step of ``tm.function`` under mpirun over the parameters' real shapes, with a trivial loss of all of them:
what counts is a call from a barrier on, less the devices' computing, the slowest rank's of each. PyTorch's is what
DistributedDataParallel does with its gradients, an all-reduce of buckets of 25 MB over gloo, all begun at once, and
then ``torch.optim.SGD``. They take turns, a ratio is the median of the pairs', the last line is JSON. Needs mpi4py.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from all_parameters import step_of_all_parameters
from machine import print_line

import theano_mgpu as tm

HERE = Path(__file__).parent
# The first step compiles; until memory is where it stays, some more take longer. PyTorch has as many.
_WARM_UP = 12


def measure(depth: int, steps: int) -> None:
    """On each rank; rank 0 prints a JSON line."""
    contexts = tm.contexts("cpu:1")
    cluster = contexts.cluster
    assert cluster is not None, "run by mpirun"
    step, params = step_of_all_parameters(contexts, depth)
    batch = np.ones(sum(contexts.counts), "float32")
    seconds, sent = [], []
    for _ in range(steps + _WARM_UP):
        before = cluster.bytes_sent
        cluster.gathered(None)  # a barrier
        step(batch)
        sent.append(cluster.bytes_sent - before)
        parts = step.seconds
        calls, computing = zip(*cluster.gathered((sum(parts.values()), parts["compute"])), strict=True)
        seconds.append(max(calls) - max(computing))
    parameters = sum(param.get_value(borrow=True).nbytes for param in params)
    if cluster.rank == 0:
        share = max(sent[_WARM_UP:]) / parameters
        print(json.dumps({"seconds": statistics.median(seconds[_WARM_UP:]), "sent_of_parameters": round(share, 4)}))


def run(command: list[str], timeout: float) -> dict[str, Any]:
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed ({done.returncode}):\n{done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def main(arguments: argparse.Namespace) -> None:
    print("| 25.6 M parameters, exchange and update | ours, ms | PyTorch, ms | ratio | sent by a rank |")
    print("|---|---|---|---|---|")
    figures: dict[str, Any] = {}
    options = ["--steps", str(arguments.steps), "--depth", str(arguments.depth)]
    for ranks in arguments.ranks:
        mpiexec = str(Path(sys.executable).with_name("mpiexec"))
        ours = [mpiexec, "-n", str(ranks), sys.executable, __file__, "--measure", *options]
        theirs = [arguments.torch_python, str(HERE / "peers/torch_ddp_exchange.py"), "--ranks", str(ranks)]
        pairs = []
        for _ in range(arguments.pairs):
            own = run(ours, arguments.timeout)
            peer = run([*theirs, "--steps", str(arguments.steps)], arguments.timeout) if arguments.torch_python else {}
            pairs.append((own["seconds"], peer.get("seconds", float("nan"))))
        ratio = statistics.median(peer / own for own, peer in pairs)
        mine, other = (1e3 * statistics.median(values) for values in zip(*pairs, strict=True))
        print(f"| {ranks} ranks | {mine:.0f} | {other:.0f} | {ratio:.2f} | {own['sent_of_parameters']:.3f} of them |")
        figures[f"ratio_{ranks}"] = round(ratio, 2) if arguments.torch_python else None
        figures[f"ms_{ranks}"] = round(mine, 1)
        figures[f"sent_{ranks}"] = own["sent_of_parameters"]
    print_line(benchmark="exchange", **vars(arguments), **figures)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--depth", type=int, default=50, help="of the ResNet whose parameters these are")
    parser.add_argument("--torch-python", help="a Python that has torch; without it only ours is run")
    parser.add_argument("--timeout", type=float, default=600, help="seconds for one run")
    parser.add_argument("--measure", action="store_true", help="under mpirun: one run of ours")
    parser.add_argument("--smoke", action="store_true", help="small and quick: does it run at all?")
    given = parser.parse_args()
    if given.smoke:
        given.ranks, given.pairs, given.steps, given.depth = [2], 1, 2, 18
    if given.measure:
        measure(given.depth, given.steps)
    else:
        main(given)
