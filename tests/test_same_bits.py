"""The same bits on any power of two of devices: through layers, statistics, draws, and every update rule."""

from __future__ import annotations

import numpy as np
import pytensor.tensor as pt
import pytest
from comparison import states

import theano_mgpu as tm

RATES = {"adadelta": 1.0, "adagrad": 0.05, "lars": 0.5}
RULES = {
    name: getattr(tm.updates, name)
    for name in ("sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adadelta", "adam", "adamw", "lars", "lamb")
}


def batch(examples: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(examples)
    return rng.integers(0, 256, (examples, 8, 8, 3), dtype="uint8"), rng.integers(0, 5, examples, dtype="int32")


def bits(build, contexts, update_on: str) -> tuple[bytes, ...]:
    """Of metrics, outputs and all shared variables, after an even batch, an uneven one, and a tiny one."""
    inputs, outputs, updates = build()
    step = tm.function(inputs, outputs, updates=updates, contexts=contexts, shards=8, update_on=update_on)
    results = [step(*batch(examples)) for examples in (16, 13, 3)]
    assert all(np.isfinite(result["loss"]) for result in results)
    return (*(value.tobytes() for result in results for value in result.values()), *states(*step.get_shared()))


def network():
    """Convolution, batch norm with its moving averages, dropout; clipped gradients, weight decay, an average of all."""
    store = tm.ParameterStore(seed=0)
    images, labels = pt.tensor("images", shape=(None, 8, 8, 3), dtype="uint8"), pt.ivector("labels")
    x = images.astype("float32") / np.float32(255)
    x = tm.layers.batch_norm(store, "bn", tm.layers.conv2d(store, "conv", x, 8, 3, padding=1), train=True)
    x = tm.nn.max_pool2d(tm.nn.relu(x), 2)
    x = tm.layers.dropout(store, "drop", tm.nn.global_avg_pool2d(x), 0.3, train=True)
    logits = tm.layers.dense(store, "fc", x, 5)
    loss = tm.nn.softmax_cross_entropy(logits, labels).mean()
    params = store.trainable()
    gradients = tm.updates.clip_by_global_norm(tm.grad(loss, params), 0.5)
    gradients = tm.updates.apply_weight_decay(gradients, params, 1e-3)
    updates = tm.updates.momentum(gradients, params, learning_rate=0.1)
    updates |= tm.updates.ema(updates, params, 0.9)
    outputs = {"loss": tm.average(loss), "logits": logits, "largest": tm.maximum(pt.max(logits))}
    return [images, labels], outputs, updates | store.updates()


def every_rule():
    """A network for each rule, and one update of all."""
    images, labels = pt.tensor("images", shape=(None, 8, 8, 3), dtype="uint8"), pt.ivector("labels")
    x = images.reshape((-1, 192)).astype("float32") / np.float32(255)
    losses, updates = [], {}
    for name, rule in RULES.items():
        store = tm.ParameterStore(seed=1)
        hidden = pt.tanh(tm.layers.dense(store, f"{name}.hidden", x, 16))
        losses.append(tm.nn.softmax_cross_entropy(tm.layers.dense(store, f"{name}.out", hidden, 5), labels).mean())
        params = store.trainable()
        updates |= rule(tm.grad(losses[-1], params), params, learning_rate=RATES.get(name, 0.01))
    return [images, labels], {"loss": tm.average(sum(losses))}, updates


@pytest.mark.parametrize("update_on", ["host", "device"])
def test_bits_do_not_depend_on_the_number_of_devices(eight, update_on):
    assert len({bits(network, eight[:devices], update_on) for devices in (1, 2, 4, 8)}) == 1


def test_nor_do_lambs_ratios_on_the_devices(eight, monkeypatch):
    """XLA simplified their denominators in one order for one device, in another for several."""
    for other in RULES.keys() - {"lamb"}:
        monkeypatch.delitem(RULES, other)
    assert len({bits(every_rule, eight[:devices], "device") for devices in (1, 2)}) == 1


@pytest.mark.slow
@pytest.mark.parametrize("update_on", ["host", "device"])
def test_nor_does_any_update_rules(eight, update_on):
    assert len({bits(every_rule, eight[:devices], update_on) for devices in (1, 2, 4, 8)}) == 1
