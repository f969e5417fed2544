"""One graph, two functions: logistic regression in plain PyTensor, then over four devices, with the same numbers.

    python examples/one_graph.py

The graph is the one of Theano's tutorial. Compared with it there are two changes: ``pytensor.grad`` is ``tm.grad``, and
``pytensor.function`` is ``tm.function`` with ``contexts=``. It prints what both functions reached and how far apart
their results are, and asserts that this is rounding.
"""

from __future__ import annotations

import numpy as np
import pytensor
import pytensor.tensor as pt

import theano_mgpu as tm

# Random targets, as in the tutorial: with more columns than examples they can be learnt by heart.
EXAMPLES, FEATURES = 400, 784
rng = np.random.default_rng(0)
inputs = rng.normal(size=(EXAMPLES, FEATURES))
targets = rng.integers(0, 2, size=EXAMPLES)

# The graph.
x = pt.dmatrix("x")
y = pt.lvector("y")
w = pytensor.shared(rng.normal(size=FEATURES), name="w")
b = pytensor.shared(0.0, name="b")
p_1 = 1 / (1 + pt.exp(-pt.dot(x, w) - b))  # the probability that the target is 1
prediction = p_1 > 0.5
cross_entropy = -y * pt.log(p_1) - (1 - y) * pt.log(1 - p_1)  # one number per example
cost = cross_entropy.mean() + 0.01 * (w**2).sum()
gw, gb = tm.grad(cost, [w, b])  # the gradients, averaged over the shards of the batch
updates = [(w, w - 0.1 * gw), (b, b - 0.1 * gb)]


def train(step, steps):
    """Train from the same start; the cost of every step, the last predictions, and the parameters."""
    w.set_value(np.zeros(FEATURES))  # set_value reaches every device before the next step
    b.set_value(0.0)
    costs = []
    for _ in range(steps):
        predictions, now = step(inputs, targets)
        costs.append(float(now))
    return np.array(costs), predictions, w.get_value(), b.get_value()


def main(steps: int = 500) -> float:
    contexts = tm.contexts("cuda or cpu:4")

    # An average is the identity on one device, so plain PyTensor runs the same graph.
    plain = pytensor.function([x, y], [prediction, tm.average(cost)], updates=updates)
    multi = tm.function([x, y], [prediction, tm.average(cost)], updates=updates, contexts=contexts)

    expected = train(plain, steps)
    found = train(multi, steps)

    apart = 0.0
    for what, one, many in zip(("costs", "predictions", "w", "b"), expected, found, strict=True):
        np.testing.assert_allclose(many, one, rtol=1e-9, atol=1e-12, err_msg=what)
        apart = max(apart, float(np.abs(many.astype(float) - one.astype(float)).max()))

    for name, (costs, predictions, *_) in (("plain PyTensor", expected), (f"{len(contexts)} devices", found)):
        right = int((predictions == targets).sum())
        print(f"{name:15} cost {costs[0]:.4f} -> {costs[-1]:.4f}, {right} of {EXAMPLES} right")
    print(f"largest difference of any cost, prediction or parameter: {apart:.1e}")
    return apart


if __name__ == "__main__":
    main()
