"""The rules without mpirun: nothing to exchange, the same calls, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

import theano_mgpu as tm

exchange = tm.exchange
IDENTITIES = [exchange.local_sgd, exchange.gossip, exchange.compressed]
ALL = [*IDENTITIES, exchange.easgd]


def trained(
    contexts: tm.Contexts, around: Callable[[tm.Step], Any], **options: Any
) -> tuple[tm.ParameterStore, list[Any]]:
    """Five steps with momentum, and what they gave."""
    store = tm.ParameterStore(seed=0)
    x = pt.tensor("x", shape=(None, 3), dtype="float32")
    rate = pt.scalar("rate", dtype="float32")
    loss = pt.sqr(tm.layers.dense(store, "out", x, 2)).mean()
    updates = tm.updates.momentum(loss, store.trainable(), rate)
    step = tm.function([x, rate], {"loss": tm.average(loss)}, updates=updates, contexts=contexts, **options)
    train = around(step)
    batch = np.arange(24, dtype="float32").reshape(8, 3) / 24
    return store, [train(batch, rate=0.1)["loss"] for _ in range(5)]


@pytest.mark.parametrize("rule", IDENTITIES)
def test_alone_a_rule_changes_nothing(eight: tm.Contexts, rule: Callable[..., exchange.Exchange]) -> None:
    plain, losses = trained(eight[:2], lambda step: step)
    store, same = trained(eight[:2], rule)
    assert store.checksum() == plain.checksum()
    assert same == losses


def test_alone_easgd_pulls_to_its_centre() -> None:
    """Zhang et al. 2015, section 3, with one worker: alpha = beta."""
    x = pytensor.shared(np.array([1.0, 2.0]), name="x")

    def step() -> None:
        x.set_value(x.get_value() - 0.5)

    train = exchange.easgd(step, [x], every=2, beta=0.25)
    own, centre = x.get_value(), x.get_value()
    for t in range(5):
        if t % 2 == 0:
            own, centre = own - 0.5 - 0.25 * (own - centre), 0.75 * centre + 0.25 * own
        else:
            own = own - 0.5
        train()
        np.testing.assert_allclose(x.get_value(), own, rtol=1e-15)
        np.testing.assert_allclose(train.centre[x].get_value(), centre, rtol=1e-15)
    assert train.bytes_sent == 0


def test_parameters_that_stay_on_the_devices_are_exchanged(eight: tm.Contexts) -> None:
    host, losses = trained(eight[:2], exchange.easgd)
    device, same = trained(eight[:2], exchange.easgd, update_on="device")
    assert device.checksum() == host.checksum()
    assert same == losses


def test_the_centre_can_be_evaluated_by_givens(eight: tm.Contexts) -> None:
    x = pytensor.shared(np.ones(2, "float32"), name="x")
    train = exchange.easgd(lambda: x.set_value(x.get_value() + 1), [x], every=1, beta=0.5)
    train()
    train()
    y = pt.vector("y", dtype="float32")
    evaluate = tm.function([y], tm.average((x.sum() * y).mean()), givens=train.centre, contexts=eight)
    assert float(evaluate(np.ones(8, "float32"))) == 2 * (0.5 * 1 + 0.5 * 2)


def test_parameters_of_a_store_are_exchanged_but_no_velocities(eight: tm.Contexts) -> None:
    kept = []

    def around(step: tm.Step) -> Any:
        kept.append(exchange.easgd(step))
        return kept[0]

    trained(eight[:2], around)
    (train,) = kept
    assert [variable.name for variable in train.centre] == ["out.weight", "out.bias"]
    assert list(train.state) == ["exchange.steps", "out.weight.centre", "out.bias.centre"]


def test_a_step_that_raises_exchanges_nothing() -> None:
    x = pytensor.shared(np.zeros(2), name="x")

    def step() -> None:
        raise ZeroDivisionError("in the step")

    train = exchange.easgd(step, [x], every=1)
    train.centre[x].set_value(np.ones(2))
    with pytest.raises(ZeroDivisionError, match="in the step"):
        train()
    assert (x.get_value() == 0).all()
    assert (train.centre[x].get_value() == 1).all()
    assert train.state["exchange.steps"].get_value() == 0


def test_variables_without_names_have_state_of_their_own() -> None:
    train = exchange.easgd(lambda: None, [pytensor.shared(np.zeros(n)) for n in (1, 2)])
    assert list(train.state) == ["exchange.steps", "param#0.centre", "param#1.centre"]


W = pytensor.shared(np.zeros(3, "float32"), name="w")


@pytest.mark.parametrize(
    ("attempt", "kind", "message"),
    [
        (lambda: exchange.local_sgd(print, [W], every=0), ValueError, r"local_sgd\(\): every: expected a whole num"),
        (lambda: exchange.easgd(print, [W], every=2.5), ValueError, r"easgd\(\): every: expected a whole number"),
        (lambda: exchange.compressed(print, [W], every=True), ValueError, r"compressed\(\): every: expected a whole"),
        (lambda: exchange.compressed(print, [W], dtype="int8"), ValueError, r'expected "bfloat16" or "float16", got'),
        (lambda: exchange.compressed(print, [W], dtype=["x"]), ValueError, r'expected "bfloat16" or "float16", got'),
        (lambda: exchange.easgd(print, [W], beta=1.5), ValueError, r"easgd\(\): beta: expected a number above 0"),
        (lambda: exchange.easgd(print, [W], beta=float("nan")), ValueError, r"beta: expected a number above 0"),
        (lambda: exchange.gossip(print, [W], probability=0), ValueError, r"gossip\(\): probability: expected a num"),
        (lambda: exchange.gossip(print, [W], seed=-1), ValueError, r"gossip\(\): seed: expected a whole number"),
        (lambda: exchange.local_sgd([W]), TypeError, r"local_sgd\(\): step: expected a step, as tm.function makes"),
        (lambda: exchange.local_sgd(print, W), ValueError, r"'params' should be a list of shared variables"),
        (lambda: exchange.local_sgd(print, [W + 1]), ValueError, r"params\[0\], .* is not a shared variable"),
        (lambda: exchange.local_sgd(print, [W, W]), ValueError, r"'w' is in 'params' twice"),
        (lambda: exchange.local_sgd(print, []), ValueError, r"nothing to exchange: 'params' is empty"),
        (lambda: exchange.local_sgd(print), ValueError, r"nothing to exchange: the step updates no parameter of a"),
        (
            lambda: exchange.local_sgd(print, [pytensor.shared(np.arange(3), name="n")]),
            ValueError,
            r"'n' has dtype int64; only floating",
        ),
        (
            lambda: exchange.compressed(print, [pytensor.shared(np.zeros(3, "float16"), name="h")]),
            ValueError,
            r"'h' is float16, which bfloat16 makes no smaller",
        ),
        (lambda: exchange.mean_over_ranks(W), ValueError, r"mean_over_ranks\(\): 'params' should be a list"),
    ],
)
def test_what_does_not_fit_is_refused(attempt: Callable[[], Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        attempt()
