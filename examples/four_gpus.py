"""Training on four GPUs, one step at a time: what one call of a ``tm.function`` does, written out by hand.

    python examples/four_gpus.py

1. The parameters live on the host and are mirrored to every device.
2. The batch is split in four.
3. Every device computes the gradient on its part; the four come back and are stacked. Their mean is the gradient of the
   whole batch, as plain PyTensor computes it on one device.
4. The update rule applies the mean to the parameters on the host, once, and all mirrors follow.

Then the same in one call. It prints what travels and how far apart the results are, and asserts that it is rounding.
"""

from __future__ import annotations

import numpy as np
import pytensor
import pytensor.tensor as pt
from sklearn.datasets import load_digits

import theano_mgpu as tm

DEVICES = 4
LEARNING_RATE = np.float32(0.5)

# The symbolic graph knows nothing of devices.
store = tm.ParameterStore(seed=0)
images = pt.tensor("images", shape=(None, 64), dtype="float32")
labels = pt.vector("labels", dtype="int32")
hidden = tm.nn.relu(tm.layers.dense(store, "hidden", images, 32))
logits = tm.layers.dense(store, "output", hidden, 10)
loss = tm.nn.softmax_cross_entropy(logits, labels).mean()
params = store.trainable()
gradients = tm.grad(loss, params)

digits = load_digits()
pixels, answers = (digits.data / 16).astype("float32"), digits.target.astype("int32")


def batch(step):
    """A hundred digits."""
    rows = np.arange(step * 100, step * 100 + 100) % len(answers)
    return pixels[rows], answers[rows]


def distance(found, expected):
    """The largest difference of any number in two lists of arrays, relative to the largest number of its array."""
    return max(float(np.abs(f - e).max() / np.abs(e).max()) for f, e in zip(found, expected, strict=True))


def main(steps: int = 10) -> float:
    simulated, everything = tm.contexts("cpu:4"), tm.contexts()  # in this order: JAX fixes their number when it starts
    contexts = (everything if everything.platform == "gpu" and len(everything) >= DEVICES else simulated)[:DEVICES]
    print(contexts)
    start = store.get_values()

    # A function for each device, and, to compare with, plain PyTensor on the whole batch.
    each = range(DEVICES)
    mirror_on = [tm.function([], [tm.average(p) for p in params], contexts=contexts[i : i + 1]) for i in each]
    gradients_on = [tm.function([images, labels], gradients, contexts=contexts[i : i + 1]) for i in each]
    gradients_of_all = pytensor.function([images, labels], gradients, mode="FAST_COMPILE")

    for step in range(steps):
        batch_images, batch_labels = batch(step)

        # 1. The store, mirrored: every device holds the values that the host has.
        for i in each:
            for mirrored, param in zip(mirror_on[i](), params, strict=True):
                np.testing.assert_array_equal(mirrored, param.get_value())

        # 2. The batch, split: (100, 64) is four times (25, 64).
        parts = list(zip(np.split(batch_images, DEVICES), np.split(batch_labels, DEVICES), strict=True))

        # 3. Four gradients for each parameter, stacked: (4, 64, 32) for a weight of (64, 32), and their mean.
        fetched = [gradients_on[i](*parts[i]) for i in each]
        stacked = [np.stack(four) for four in zip(*fetched, strict=True)]
        means = [four.mean(axis=0) for four in stacked]
        apart = distance(means, gradients_of_all(batch_images, batch_labels))
        assert apart < 1e-5, apart

        # 4. The update, once. set_value is on the host; every mirror is refreshed before a device computes again.
        for param, mean in zip(params, means, strict=True):
            param.set_value(param.get_value() - LEARNING_RATE * mean)

        if step == 0:
            print("\nfirst step")
            print(f"  batch      {batch_images.shape} = {DEVICES} x {parts[0][0].shape}")
            for param, four, mean in zip(params, stacked, means, strict=True):
                print(f"  {param.name:14} gradients {four.shape!s:12} -> mean {mean.shape}")
            print(f"  the means are plain PyTensor's gradients of the whole batch to {apart:.0e}")

    by_hand = store.get_values()

    # The same in one call: split, mirror, compute on all devices at once, gather, update.
    updates = tm.updates.sgd(gradients, params, LEARNING_RATE)
    train = tm.function([images, labels], tm.average(loss), updates=updates, contexts=contexts)
    store.set_values(start)
    for step in range(steps):
        loss_now = train(*batch(step))

    apart = distance(store.get_values().values(), by_hand.values())
    assert apart < 1e-4, apart
    print(f"\nafter {steps} steps, loss {loss_now:.3f}: one call and the four steps by hand agree to {apart:.0e}")
    return apart


if __name__ == "__main__":
    main()
