"""What batch norm sees when a batch is split over four devices: its shard, or with ``sync=True`` the whole batch.

    python examples/sync_batch_norm.py

A batch of 64 digits goes from dark to bright, so that each of four shards has other statistics. It prints how far
activations, a gradient and the moving averages are from one device that has the whole batch, in plain PyTensor.

With ``sync=False``, as under PyTorch's DDP, each shard is normalised by its own statistics, and these are averaged into
the moving averages: the mean of the means is the batch's mean, but the variance lacks what lies between the shards.
With ``sync=True`` the devices average mean and variance first, and all is as on one device. For that all shards must
run at once: at most as many as devices. A batch that they do not share evenly works too.
"""

from __future__ import annotations

import numpy as np
import pytensor
import pytensor.tensor as pt
from sklearn.datasets import load_digits

import theano_mgpu as tm

DEVICES, EXAMPLES = 4, 64

digits = load_digits()
brightness = np.linspace(0.1, 2, EXAMPLES)[:, None, None, None]
# (examples, height, width, channels)
pixels = (brightness * digits.images[:EXAMPLES, :, :, None] / 16).astype("float32")
answers = digits.target.astype("int32")[:EXAMPLES]


def training(sync):
    """A store, and what a function is made of: inputs, outputs, updates."""
    store = tm.ParameterStore(seed=0)
    images = pt.tensor("images", shape=(None, 8, 8, 1), dtype="float32")
    labels = pt.vector("labels", dtype="int32")
    x = tm.layers.conv2d(store, "conv", images, filters=8, size=3, padding=1, bias=False)
    activations = tm.layers.batch_norm(store, "bn", x, train=True, sync=sync)
    logits = tm.layers.dense(store, "fc", tm.nn.global_avg_pool2d(tm.nn.relu(activations)), units=10)
    loss = tm.nn.softmax_cross_entropy(logits, labels).mean()
    gradients = tm.grad(loss, store.trainable())  # in order of creation: the filters first
    updates = tm.updates.sgd(gradients, store.trainable(), learning_rate=1.0) | store.updates()
    return store, ([images, labels], [activations, gradients[0], tm.average(loss)], updates)


def first_step(step, store):
    """What one step gives and leaves behind."""
    activations, gradient, _ = step(pixels, answers)
    return {
        "activations": activations,
        "gradient of the filters": gradient,
        "running_mean": store["bn.running_mean"].get_value(),
        "running_var": store["bn.running_var"].get_value(),
    }


def apart(found, expected):
    """The largest difference, relative to the largest number."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def main(steps: int = 50) -> float:
    contexts = tm.contexts("cpu:4")
    assert len(contexts) == DEVICES

    # One device and the whole batch. An average is the identity there, so sync makes no difference.
    store, (inputs, outputs, updates) = training(sync=False)
    plain = pytensor.function(inputs, outputs, updates=updates, mode="FAST_COMPILE")
    expected = first_step(plain, store)

    # Four devices, both ways.
    found, stores, functions = {}, {}, {}
    for sync in (False, True):
        stores[sync], (inputs, outputs, updates) = training(sync)
        functions[sync] = tm.function(inputs, outputs, updates=updates, contexts=contexts)
        found[sync] = first_step(functions[sync], stores[sync])

    print(f"{'apart from one device by':26}{'sync=False':>12}{'sync=True':>12}")
    for what, value in expected.items():
        without, with_sync = apart(found[False][what], value), apart(found[True][what], value)
        print(f"{what:26}{without:12.0e}{with_sync:12.0e}")
        assert with_sync < 1e-5, (what, with_sync)
        assert without < 1e-5 if what == "running_mean" else without > 1e-2, (what, without)

    # Without sync, a shard's activations are those of a batch that is nothing but this shard.
    _, (inputs, outputs, _) = training(sync=False)
    alone = pytensor.function(inputs, outputs[0], mode="FAST_COMPILE", on_unused_input="ignore")
    per_shard = EXAMPLES // DEVICES
    for start in range(0, EXAMPLES, per_shard):
        shard = slice(start, start + per_shard)
        assert apart(found[False]["activations"][shard], alone(pixels[shard], answers[shard])) < 1e-5

    # The difference goes on: training with sync stays beside one device.
    for _ in range(steps):
        loss = plain(pixels, answers)[-1]
        losses = {sync: function(pixels, answers)[-1] for sync, function in functions.items()}
    print(f"\nloss after {steps} more steps: {loss:.5f} on one device; on {DEVICES}")
    for sync, many in losses.items():
        print(f"{many:.5f} with sync={sync}")
    assert abs(losses[True] - loss) < 1e-4 * loss
    return float(losses[True])


if __name__ == "__main__":
    main()
