"""The same training on 1, 2, 4 and 8 devices, to the last bit.

    python examples/same_bits.py

``shards=8`` cuts every batch into eight pieces, whatever the number of devices: one device takes them in eight rounds,
eight devices in one. The sum over the shards is always the same tree of additions, dropout draws are numbered by shard,
and batch norm sees its shard. So parameters, momentum, moving averages and the generator's state have the same bits
in the end, which ``store.checksum()`` says in one line, whether the host applies the update or every device does.

Another number of shards adds in another order: other bits, the same numbers to rounding. Of a network with batch norm
or dropout it makes another training, for each shard has its own statistics and draws.
"""

from __future__ import annotations

import numpy as np
import pytensor.tensor as pt
from sklearn.datasets import load_digits

import theano_mgpu as tm

SHARDS = 8
BATCH_SIZE = 96

digits = load_digits()
pixels = (digits.images / 16).astype("float32")[:188, :, :, None]  # (examples, height, width, channels)
answers = digits.target.astype("int32")[:188]


def batch(step):
    """96 digits, then the 92 that are left, which eight shards cannot share evenly; then from the beginning."""
    start = step % 2 * BATCH_SIZE
    return pixels[start : start + BATCH_SIZE], answers[start : start + BATCH_SIZE]


def training(contexts, shards=SHARDS, update_on="host", each_by_itself=False):
    """A store and a step, always from the same seed.

    ``each_by_itself`` leaves out what looks at a shard as a whole: batch norm's statistics, and dropout's draws.
    """
    store = tm.ParameterStore(seed=0)
    images = pt.tensor("images", shape=(None, 8, 8, 1), dtype="float32")
    labels = pt.vector("labels", dtype="int32")

    x = tm.layers.conv2d(store, "conv", images, filters=8, size=3, padding=1, bias=False)
    x = tm.nn.relu(tm.layers.batch_norm(store, "bn", x, train=not each_by_itself))
    x = tm.nn.max_pool2d(x, 2).reshape((-1, 4 * 4 * 8))
    x = tm.layers.dropout(store, "dropout", x, rate=0.25, train=not each_by_itself)
    loss = tm.nn.softmax_cross_entropy(tm.layers.dense(store, "fc", x, units=10), labels).mean()

    params = store.trainable()
    updates = tm.updates.momentum(tm.grad(loss, params), params, learning_rate=0.1, momentum=0.9)
    updates |= store.updates()  # moving averages, and the generator's next state
    step = tm.function(
        [images, labels], tm.average(loss), updates=updates, contexts=contexts, shards=shards, update_on=update_on
    )
    return store, step


def after(batches, store, step):
    """The store after a step on each batch."""
    for images, labels in batches:
        step(images, labels)
    return store


def apart(found, expected):
    """The largest difference of any number in two stores, relative to the largest number of its parameter."""
    pairs = [(found[name].get_value(), expected[name].get_value()) for name in expected]
    return max(float(np.abs(f - e).max() / np.abs(e).max()) for f, e in pairs if np.abs(e).max() > 0)


def main(steps: int = 40, devices: tuple[int, ...] = (1, 2, 4, 8)) -> str:
    simulated = tm.contexts(f"cpu:{devices[-1]}")

    batches = [batch(i) for i in range(steps)]

    runs = [(count, "host") for count in devices] + [(count, "device") for count in devices[1:]]
    checksums = set()
    for count, update_on in runs:
        store, step = training(simulated[:count], update_on=update_on)
        checksum = after(batches, store, step).checksum()
        checksums.add(checksum)
        print(f"{count} device{'s' if count > 1 else ' '}  update on {update_on:6}  {checksum[:16]}")
    assert len(checksums) == 1, checksums

    # One more step, on all devices and on the first alone, compared bit by bit; it is not taken.
    print(f"\nverify: {tm.verify(step, batch(0))}")
    assert store.checksum() == checksum

    # Another number of shards, with each example by itself. (One batch size is enough, and the half to compile.)
    same = [batch(0)] * steps
    by_eight = after(same, *training(simulated, each_by_itself=True))
    by_four = after(same, *training(simulated, each_by_itself=True, shards=4))
    rounding = apart(by_four, by_eight)
    print(f"\nshards=8  {by_eight.checksum()[:16]}\nshards=4  {by_four.checksum()[:16]}, apart by {rounding:.0e}")
    assert by_four.checksum() != by_eight.checksum()
    assert rounding < 1e-4, rounding
    return checksum


if __name__ == "__main__":
    main()
