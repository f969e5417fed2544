"""ResNet-18 at 224 x 224 over two ranks, each on cores of its own: how much of a step is exchange and update.

python benchmarks/ranks_step.py

Each rank has one simulated device and its own part of the batch. The exposed part of a step is all that is not its
devices' computing: sums, exchange, waiting for the other rank, the update, and the checks in between. Needs mpi4py.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytensor.tensor as pt
from machine import print_line

import theano_mgpu as tm


def on_own_cores(rank: int, ranks: int) -> None:
    """Before JAX makes its threads."""
    cores = sorted(os.sched_getaffinity(0))
    share = len(cores) // ranks
    if share:
        os.sched_setaffinity(0, cores[rank * share : (rank + 1) * share])


def measure(arguments: argparse.Namespace) -> None:
    """On each rank; rank 0 prints a JSON line."""
    from mpi4py import MPI

    on_own_cores(MPI.COMM_WORLD.Get_rank(), MPI.COMM_WORLD.Get_size())
    contexts = tm.contexts("cpu:1")
    store = tm.ParameterStore(seed=0)
    images = pt.tensor("images", shape=(None, *[arguments.image_size] * 2, 3), dtype="uint8")
    labels = pt.vector("labels", dtype="int32")
    logits = tm.models.resnet(store, images, depth=arguments.depth, num_classes=1000, train=True)
    loss = tm.nn.softmax_cross_entropy(logits, labels).mean()
    params = store.trainable()
    updates = tm.updates.momentum(tm.grad(loss, params), params, learning_rate=0.01) | store.updates()
    step = tm.function([images, labels], tm.average(loss), updates=updates, contexts=contexts, split_over="ranks")
    rng = np.random.default_rng(contexts.rank)
    batch = rng.integers(0, 256, (arguments.batch, *images.type.shape[1:])).astype("uint8")
    answers = rng.integers(0, 1000, arguments.batch).astype("int32")
    seconds, exposed = [], []
    for _ in range(arguments.steps + 1):
        begun = time.perf_counter()
        step(batch, answers)
        seconds.append(time.perf_counter() - begun)
        exposed.append(seconds[-1] - step.seconds["compute"])
    if contexts.rank == 0:
        share = statistics.median(part / whole for part, whole in zip(exposed[1:], seconds[1:], strict=True))
        print(json.dumps({"step_s": round(statistics.median(seconds[1:]), 4), "exposed": round(share, 4)}))


def main(arguments: argparse.Namespace) -> None:
    mpiexec = str(Path(sys.executable).with_name("mpiexec"))
    command = [mpiexec, "-n", str(arguments.ranks), sys.executable, *sys.argv, "--measure"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=arguments.timeout, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed ({done.returncode}):\n{done.stderr[-2000:]}")
    print_line(benchmark="ranks_step", **vars(arguments), **json.loads(done.stdout.strip().splitlines()[-1]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8, help="of each rank")
    parser.add_argument("--depth", type=int, default=18)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--timeout", type=float, default=600)
    parser.add_argument("--measure", action="store_true", help="under mpirun: one run")
    parser.add_argument("--smoke", action="store_true", help="small and quick: does it run at all?")
    given = parser.parse_args()
    if given.smoke:
        given.batch, given.image_size, given.steps = 2, 32, 2
    if given.measure:
        measure(given)
    else:
        main(given)
