"""What a call costs by itself: a tiny graph, milliseconds a call, median of 300, on one context and on four."""

from __future__ import annotations

import json
import statistics
import time

import numpy as np
import pytensor
import pytensor.tensor as pt

import theano_mgpu as tm


def milliseconds(contexts: tm.Contexts, update_on: str) -> float:
    x = pt.matrix("x", dtype="float32")
    w = pytensor.shared(np.ones(4, "float32"), name="w")
    loss = ((x @ w) ** 2).mean()
    step = tm.function(
        [x],
        tm.average(loss),
        updates={w: w - np.float32(1e-3) * tm.grad(loss, w)},
        contexts=contexts,
        update_on=update_on,
    )
    batch = np.ones((8, 4), "float32")
    for _ in range(20):
        step(batch)
    seconds = []
    for _ in range(300):
        begun = time.perf_counter()
        step(batch)
        seconds.append(time.perf_counter() - begun)
    return round(1e3 * statistics.median(seconds), 3)


if __name__ == "__main__":
    everything = tm.contexts("cpu:4")
    print(
        json.dumps(
            {
                f"{len(contexts)} contexts, update on {update_on}": milliseconds(contexts, update_on)
                for contexts in (everything[:1], everything)
                for update_on in ("host", "device")
            }
        )
    )
