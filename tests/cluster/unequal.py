"""One of mpirun's ranks, with as many devices as it is told: a step's gradient against the whole batch's."""

from __future__ import annotations

import sys

import numpy as np
import pytensor
import pytensor.tensor as pt

import theano_mgpu as tm

contexts = tm.contexts(sys.argv[1])
x = pt.matrix("x", dtype="float32")
batch = np.random.default_rng(0).normal(size=(10, 3)).astype("float32")
expected = 1 - (batch * batch.sum(1, keepdims=True)).mean(0)
for update_on in ("host", "device"):
    w = pytensor.shared(np.ones(3, "float32"), name="w")
    gradient = tm.grad(((x @ w) ** 2 / 2).mean(), [w])[0]
    step = tm.function([x], updates={w: w - gradient}, contexts=contexts, update_on=update_on)
    step(batch)
    np.testing.assert_allclose(w.get_value(), expected, rtol=1e-5)
    print(
        f"rank {contexts.rank} of {contexts.counts}: {step.shards} shards, right with the update on the {update_on}\n"
    )
