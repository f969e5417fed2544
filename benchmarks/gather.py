"""Host gather and momentum update of ResNet-50's 25.6 million parameters from 4 devices, against a plain copy.

Both are counted as bytes read and written a second. The gather reads every device's gradients, the parameters and the
velocities, and writes the two anew; it is timed from the devices' results to the committed parameters, the check that
they are finite included (whose own reading is not counted). The copy is ``numpy.copyto`` of arrays as large together,
cut over as many threads as there are cores. They take turns, and the ratio is the median of the pairs'.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import jax
import numpy as np
from all_parameters import step_of_all_parameters
from machine import print_line

import theano_mgpu as tm


class Gather:
    """The host's half of a step; the devices' half, a trivial loss of all parameters, runs once."""

    def __init__(self, contexts: tm.Contexts, depth: int, nonfinite: str) -> None:
        self.step, params = step_of_all_parameters(contexts, depth, nonfinite=nonfinite)
        self.parameters = sum(param.get_value(borrow=True).size for param in params)
        self.bytes = 4 * self.parameters * (len(contexts) + 4)
        self._batch = self.step._values([np.ones(len(contexts), "float32")], {})
        with jax.enable_x64(True):
            self._turns = self.step._split(self._batch)
            shared = self.step._assembly.shared_values()
            self._results = list(self.step._run(self._turns, self._batch, shared))
        jax.block_until_ready([result.values for result in self._results])

    def __call__(self) -> None:
        step, turns = self.step, self._turns
        with jax.enable_x64(True):
            rows, _ = step._gather(turns, self._results)
            updated = step._assembly.apply(rows, self._batch)
            shares = step._assembly.shares
            values = shares.new_values(updated.new_values, step.cut.host.shared, shares.wanted_whole())
            step._verdict(values, rows, updated)
            step._commit(values)


class Copy:
    """A copy that reads and writes ``size`` bytes together."""

    def __init__(self, size: int) -> None:
        threads = len(os.sched_getaffinity(0))
        self._from = np.ones(size // 8, "float32")
        self._to = np.zeros_like(self._from)
        self.bytes = 2 * self._from.nbytes
        ends = np.linspace(0, len(self._from), threads + 1).astype(int)
        self._slices = [slice(*pair) for pair in pairwise(ends)]
        self._pool = ThreadPoolExecutor(threads)

    def __call__(self) -> None:
        list(self._pool.map(lambda part: np.copyto(self._to[part], self._from[part]), self._slices))


def main(arguments: argparse.Namespace) -> None:
    contexts = tm.contexts(f"cpu:{arguments.devices}")
    works = {f"gather_{kind}": Gather(contexts, arguments.depth, kind) for kind in ("raise", "ignore")}
    size = works["gather_raise"].bytes
    works = {**works, "copy": Copy(size)}
    rates: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(arguments.pairs + 2):
        for name, work in works.items():
            begun = time.perf_counter()
            work()
            if turn >= 2:
                rates[name].append(work.bytes / (time.perf_counter() - begun) / 1e9)
    ratios = {
        f"ratio_{kind}": round(
            statistics.median(g / c for g, c in zip(rates[f"gather_{kind}"], rates["copy"], strict=True)), 3
        )
        for kind in ("raise", "ignore")
    }
    print_line(
        benchmark="gather",
        **vars(arguments),
        parameters=works["gather_raise"].parameters,
        bytes=size,
        **{f"{name}_gb_per_s": round(statistics.median(r), 2) for name, r in rates.items()},
        **ratios,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--devices", type=int, default=4)
    parser.add_argument("--depth", type=int, default=50)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--smoke", action="store_true", help="small and quick: does it run at all?")
    given = parser.parse_args()
    if given.smoke:
        given.depth, given.pairs, given.devices = 20, 2, 2
    main(given)
