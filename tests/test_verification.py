"""A step compared with itself on one device, and mirrors with the host."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from comparison import states

import theano_mgpu as tm
from theano_mgpu.lending import loan_of

BOTH = pytest.mark.parametrize("update_on", ["host", "device"])


class Training:
    """Batch norm with its moving averages, and dropout."""

    def __init__(self, contexts, sync=False, **options):
        self.store = tm.ParameterStore(seed=0)
        x, labels = pt.matrix("x", shape=(None, 6), dtype="float32"), pt.ivector("labels")
        hidden = tm.layers.dense(self.store, "hidden", x, 16)
        hidden = tm.layers.batch_norm(self.store, "norm", hidden, train=True, sync=sync)
        hidden = tm.layers.dropout(self.store, "drop", tm.nn.relu(hidden), 0.3, train=True)
        logits = tm.layers.dense(self.store, "out", hidden, 3)
        loss = tm.nn.softmax_cross_entropy(logits, labels).mean()
        params = self.store.trainable()
        updates = tm.updates.adam(tm.grad(loss, params), params, learning_rate=0.01) | self.store.updates()
        outputs = {"loss": tm.average(loss), "logits": logits}
        self.step = tm.function([x, labels], outputs, updates=updates, contexts=contexts, name="train", **options)


def batch(examples):
    rng = np.random.default_rng(examples)
    return rng.standard_normal((examples, 6)).astype("float32"), rng.integers(0, 3, examples, dtype="int32")


@BOTH
@pytest.mark.parametrize(("devices", "shards"), [(4, 8), pytest.param(2, 2, marks=pytest.mark.slow)])
def test_a_step_has_the_same_bits_and_is_not_taken(eight, devices, shards, update_on):
    training = Training(eight[:devices], shards=shards, update_on=update_on)
    training.step(*batch(32))
    before = states(*training.step.get_shared())
    report = tm.verify(training.step, batch(27))
    assert states(*training.step.get_shared()) == before
    assert report.shards == shards
    assert report.outputs == 2
    assert report.new_values == len(training.step.cut.updated)
    assert str(report).startswith(f"the same bits on cpu0 alone and on {', '.join(eight[:devices].names)}, in {shards}")
    assert "shards: 2 outputs and " in str(report)
    assert "shards: 1 output and " in str(dataclasses.replace(report, outputs=1))


def test_batches_are_given_by_position_or_by_name(eight):
    step = Training(eight[:2]).step
    x, labels = batch(8)
    assert tm.verify(step, (x, labels)) == tm.verify(step, [x, labels]) == tm.verify(step, {"labels": labels, "x": x})
    for wrong in (x, "x", 3):
        with pytest.raises(TypeError, match=r"verify\(\): 'batch' should be a tuple, list or dict"):
            tm.verify(step, wrong)
    with pytest.raises(TypeError, match=r"verify\(\): 'step' should be what tm\.function returned"):
        tm.verify(len, (x, labels))


def test_the_first_variable_that_differs_is_named(eight, monkeypatch):
    """A sum in another order: of all values the first that shows it."""
    training = Training(eight[:4])
    monkeypatch.setattr(
        "theano_mgpu.programs.tree_sum",
        lambda rows, add: sum(rows[:0:-1], rows[0]) if len(rows) > 1 else rows[0],
    )
    before = states(*training.step.get_shared())
    with pytest.raises(tm.DivergenceError, match=r"differs between cpu0 alone and .*: \d+ of \d+ entries, by .*e-0"):
        tm.verify(training.step, batch(37))
    assert states(*training.step.get_shared()) == before


def test_a_device_that_holds_something_else_is_named(eight):
    training = Training(eight[:4], update_on="device")
    training.step(*batch(16))
    slot = next(slot for slot in training.step._assembly.mirrored if loan_of(slot))
    loan = loan_of(slot)
    rows = [np.array(shard.data) for shard in loan.array.addressable_shards]
    position = slot._slices[next(v for v in slot if v.name == "hidden.weight")].start
    rows[2][position] += 1
    parts = [jax.device_put(row, device) for row, device in zip(rows, eight[:4].devices, strict=True)]
    loan.array = jax.make_array_from_single_device_arrays(loan.array.shape, loan.array.sharding, parts)
    with pytest.raises(
        tm.DivergenceError, match=r"the mirror of hidden\.weight differs between the host and cpu2: 1 of"
    ):
        tm.verify(training.step, batch(16))


@pytest.mark.parametrize(("devices", "shards", "what"), [(3, 4, "3 devices"), (2, 6, "6 shards")])
def test_where_bits_are_not_promised_it_says_so(eight, devices, shards, what):
    step = Training(eight[:devices], shards=shards).step
    with pytest.raises(ValueError, match=rf"verify\(\): train has {what}; bits are promised for powers of two alone"):
        tm.verify(step, batch(16))


def test_synchronised_batch_norm_has_no_step_on_one_device(eight):
    step = Training(eight[:2], sync=True).step
    before = states(*step.get_shared())
    with pytest.raises(ValueError, match=r"verify\(\): train needs an average again .* Verify the step without sync"):
        tm.verify(step, batch(16))
    assert states(*step.get_shared()) == before
    assert tm.verify(Training(eight[:1], sync=True).step, batch(16)).shards == 1


def test_a_step_without_updates_is_compared_too(eight):
    x = pt.matrix("x", dtype="float32")
    weight = pytensor.shared(np.ones(6, "float32"), "weight")
    step = tm.function([x], [x @ weight, tm.total((x @ weight).sum())], contexts=eight[:2])
    assert tm.verify(step, (batch(5)[0],)).new_values == 0
