"""A batch that is several times larger than what the devices hold.

    python examples/larger_than_memory.py

Four simulated devices are given three megabytes each, ``tm.contexts("cpu:4", memory="3MB")``, and run out of memory as
GPUs do. ``step.plan(batch_size)`` says what a step needs before it runs. With ``shards="auto"`` a batch is cut into as
few shards as fit, which the devices take in rounds; their sum is the gradient of the whole batch, so a small memory
costs time and nothing else: with plenty of memory the same shards give the same bits.

It prints the plan, and asserts that one round does not fit, that the loss falls, and that the bits are the same. Where
not even one example a shard fits, it is activations that have to become fewer: a smaller network or smaller images.
"""

from __future__ import annotations

import pytensor.tensor as pt
from sklearn.datasets import load_digits

import theano_mgpu as tm

LARGE = 1024

digits = load_digits()
pixels = (digits.images / 16).astype("float32")[:LARGE, :, :, None]  # (examples, height, width, channels)
answers = digits.target.astype("int32")[:LARGE]


def training(contexts, shards):
    """A store and a step, always from the same seed: two convolutions, whose activations are what takes the memory."""
    store = tm.ParameterStore(seed=0)
    images = pt.tensor("images", shape=(None, 8, 8, 1), dtype="float32")
    labels = pt.vector("labels", dtype="int32")
    x = tm.nn.relu(tm.layers.conv2d(store, "conv1", images, filters=32, size=3, padding=1))
    x = tm.nn.relu(tm.layers.conv2d(store, "conv2", x, filters=32, size=3, padding=1))
    logits = tm.layers.dense(store, "fc", tm.nn.global_avg_pool2d(x), units=10)
    loss = tm.nn.softmax_cross_entropy(logits, labels).mean()

    params = store.trainable()
    updates = tm.updates.adam(tm.grad(loss, params), params, learning_rate=0.01)
    step = tm.function([images, labels], tm.average(loss), updates=updates, contexts=contexts, shards=shards)
    return store, step


def main(steps: int = 30) -> float:
    plenty = tm.contexts("cpu:4")
    small = tm.contexts("cpu:4", memory="3MB")

    # A shard for each device would be one round. It does not fit, which is known before anything has run.
    _, in_one_round = training(small, shards=4)
    plan = in_one_round.plan(LARGE)
    print(f"shards=4: {plan.device.total / 1e6:.1f} MB on each device, of {plan.limit / 1e6:.1f} MB\n")
    assert not plan.fits

    # As few shards as fit.
    store, step = training(small, shards="auto")
    plan = step.plan(LARGE)
    print(f'shards="auto"\n\n{plan}\n')
    assert plan.fits
    assert plan.rounds >= 3

    losses = [float(step(pixels, answers)) for _ in range(steps)]
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f} in {steps} steps of {LARGE} digits, {step.shards} shards each")
    assert losses[-1] < losses[0]

    # The same shards where there is plenty of memory: the same bits.
    rich_store, rich_step = training(plenty, shards=step.shards)
    for _ in range(steps):
        rich_step(pixels, answers)
    assert store.checksum() == rich_store.checksum()
    print(f"the same bits as with all the memory of this machine: {store.checksum()[:16]}")
    return losses[-1]


if __name__ == "__main__":
    main()
