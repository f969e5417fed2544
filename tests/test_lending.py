"""With the update on the devices values stay there, and nobody ever sees an old one."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from comparison import PYTHON

import theano_mgpu as tm
from theano_mgpu import mirror
from theano_mgpu.lending import loan_of, peek

SHAPE = (3, 2)


class Training:
    """Two parameters, which travel as one vector, a count, and steps that add 1 to all of them."""

    def __init__(self) -> None:
        self.x = pt.vector("x", dtype="float32")
        self.weights = [pytensor.shared(np.zeros(SHAPE, "float32"), name=f"w{i}") for i in range(2)]
        self.count = pytensor.shared(np.array(0.0), name="count")
        self.done = 0

    @property
    def variables(self):
        return [*self.weights, self.count]

    def over(self, contexts, update_on="device"):
        one = tm.average(self.x.mean())
        read = sum((weight * 0).sum() for weight in self.weights)
        updates = {w: w + one for w in self.weights} | {self.count: self.count + one.astype("float64")}
        step = tm.function(
            [self.x], tm.average(self.x.mean() + read), updates=updates, contexts=contexts, update_on=update_on
        )

        def train(times=1):
            for _ in range(times):
                step(np.ones(8, "float32"))
                self.done += 1

        return train

    def is_lent(self):
        return [type(v.container).__name__ == "_LentContainer" for v in self.variables]

    def values_are_new(self):
        return all((np.asarray(v.get_value()) == self.done).all() for v in self.variables)


@pytest.fixture
def training():
    return Training()


@pytest.fixture
def sent(monkeypatch):
    """The number of bytes of every array that is placed."""
    sizes = []
    original = mirror._placed
    monkeypatch.setattr(
        mirror, "_placed", lambda value, placement: sizes.append(value.nbytes) or original(value, placement)
    )
    return sizes


def test_values_stay_on_the_devices_until_they_are_asked_for(eight, training, sent):
    train = training.over(eight[:2])
    train()
    first = sum(sent)
    assert first >= sum(peek(v).nbytes for v in training.variables)
    assert training.is_lent() == [True] * 3
    train(3)
    assert sum(sent) == first
    assert (peek(training.weights[0]) == 0).all()
    assert training.values_are_new()
    assert training.is_lent() == [False] * 3
    train()
    again = sum(sent)
    assert again > first
    train(2)
    assert sum(sent) == again
    assert training.values_are_new()


def test_on_the_host_itself_and_with_its_update_nothing_is_lent(eight, training):
    for contexts, update_on in ((eight[:1], "device"), (eight[:1], "host"), (eight[:2], "host")):
        training.over(contexts, update_on)()
        assert training.is_lent() == [False] * 3


ASK = {
    "get_value": lambda v: v.get_value(),
    "borrowed": lambda v: v.get_value(borrow=True),
    "container": lambda v: v.container.storage[0],
    "container's value": lambda v: v.container.value,
    "compiled now": lambda v: pytensor.function([], v, mode=PYTHON)(),
    "by PyTensor's default": lambda v: pytensor.function([], v + 0)(),
    "deep copy": lambda v: copy.deepcopy(v).get_value(),
    "copied container": lambda v: copy.copy(v.container).storage[0],
    "pickle": lambda v: pickle.loads(pickle.dumps(v)).get_value(),
}


@pytest.mark.parametrize("way", ASK)
def test_whoever_asks_gets_the_new_value(eight, training, way):
    train = training.over(eight[:2])
    train(2)
    assert all(training.is_lent())
    for variable in training.variables:
        np.testing.assert_array_equal(ASK[way](variable), np.full_like(peek(variable), 2))
    train()
    assert training.values_are_new()


def test_plain_functions_compiled_before_between_and_after_steps(eight, training):
    """What holds a storage itself cannot be told of a loan: so its variable is not lent any more."""
    weight, other, _ = training.variables
    train = training.over(eight[:2])
    before = pytensor.function([], weight, updates={weight: weight * 2}, mode=PYTHON)
    train()
    assert training.is_lent()[:2] == [False, False]  # one vector
    assert training.is_lent()[2]
    np.testing.assert_array_equal(before(), np.ones(SHAPE))
    train()
    np.testing.assert_array_equal(weight.get_value(), np.full(SHAPE, 3))
    np.testing.assert_array_equal(other.get_value(), np.full(SHAPE, 2))
    weight.set_value(np.full(SHAPE, 2, "float32"))
    between = pytensor.function([], other.sum(), mode=PYTHON)
    train()
    assert between() == 3 * other.get_value().size
    assert training.values_are_new()
    del before, between
    train()
    assert training.is_lent() == [True] * 3
    assert training.values_are_new()


def test_values_that_were_set_reach_the_devices(eight, training):
    train = training.over(eight[:4])
    train(2)
    training.weights[1].set_value(np.full(SHAPE, 10, "float32"))
    train()
    np.testing.assert_array_equal(training.weights[1].get_value(), np.full(SHAPE, 11))
    np.testing.assert_array_equal(training.weights[0].get_value(), np.full(SHAPE, 3))
    training.weights[0].set_value(np.zeros((1, 1), "float32"))  # of another shape
    training.weights[1].set_value(np.zeros((1, 1), "float32"))
    train()
    np.testing.assert_array_equal(training.weights[0].get_value(), np.ones((1, 1)))


def test_steps_over_other_devices_share_the_variables(eight, training):
    steps = [
        training.over(eight[:2]),
        training.over(eight[2:6]),
        training.over(eight[:2], "host"),
        training.over(eight[:1]),
        training.over(eight[:2]),
    ]
    for _ in range(2):
        for train in steps:
            train()
    assert training.values_are_new()


def test_variables_of_one_loan_are_given_back_together(eight, training):
    training.over(eight[:2])()
    weight, other, _ = training.variables
    loan = vars(weight.container)["loan"]
    assert loan_of(loan.slot) is loan
    assert loan_of(weight) is None
    weight.get_value()
    assert loan_of(loan.slot) is None
    assert training.is_lent() == [False, False, True]
    np.testing.assert_array_equal(peek(other), np.ones(SHAPE))


def test_a_store_saves_and_sums_what_the_devices_have(eight, tmp_path):
    store = tm.ParameterStore(seed=0)
    x = pt.matrix("x", shape=(None, 4), dtype="float32")
    loss = (tm.layers.dense(store, "out", x, 3) ** 2).mean()
    params = store.trainable()
    updates = tm.updates.sgd(tm.grad(loss, params), params, learning_rate=0.1)
    step = tm.function([x], updates=updates, contexts=eight[:2], update_on="device")
    old = store.checksum()
    step(np.ones((8, 4), "float32"))
    assert store.checksum() != old
    step(np.ones((8, 4), "float32"))
    store.save(tmp_path / "now.safetensors")
    copy_of_store = store.get_values()
    step(np.ones((8, 4), "float32"))
    store.load(tmp_path / "now.safetensors")
    for name, value in copy_of_store.items():
        np.testing.assert_array_equal(store[name].get_value(), value)


@pytest.mark.parametrize("nonfinite", ["raise", "skip"])
def test_a_non_finite_step_leaves_what_the_devices_have(eight, nonfinite):
    weights = [pytensor.shared(np.ones(SHAPE, "float32"), name=f"w{i}") for i in range(3)]
    x = pt.vector("x", dtype="float32")
    factor = tm.average(x.mean())
    updates = {weights[0]: weights[0] * factor, weights[1]: weights[1] * factor, weights[2]: weights[2] + 1}
    step = tm.function([x], updates=updates, contexts=eight[:2], update_on="device", nonfinite=nonfinite)
    step(np.full(4, 2, "float32"))
    if nonfinite == "raise":
        with pytest.raises(tm.NonFiniteError, match=r"NaN or infinity to w0, w1;"):
            step(np.full(4, np.inf, "float32"))
    else:
        step(np.full(4, np.inf, "float32"))
        assert step.skipped == 1
    np.testing.assert_array_equal(weights[1].get_value(), np.full(SHAPE, 2))
    np.testing.assert_array_equal(weights[2].get_value(), np.full(SHAPE, 2))
    step(np.full(4, 2, "float32"))
    np.testing.assert_array_equal(weights[0].get_value(), np.full(SHAPE, 4))
