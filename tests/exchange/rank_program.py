"""What one rank of the tests does under mpiexec, given a folder; its results are FOLDER/RANK.pickle."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytensor
import pytensor.tensor as pt

import theano_mgpu as tm

STEPS = 12
RATE = 0.05
RULES: dict[str, tuple[Callable[..., tm.exchange.Exchange], dict[str, Any]]] = {
    "local_sgd every step": (tm.exchange.local_sgd, {"every": 1}),
    "local_sgd": (tm.exchange.local_sgd, {"every": 5}),
    "easgd": (tm.exchange.easgd, {"every": 3, "beta": 0.8}),
    "gossip": (tm.exchange.gossip, {"probability": 0.6, "seed": 3}),
    "compressed bfloat16": (tm.exchange.compressed, {}),
    "compressed float16": (tm.exchange.compressed, {"dtype": "float16", "every": 4}),
}
LARGE = 2_500_003  # 20 MB: several messages for each piece


def data(rank: int, step: int) -> tuple[np.ndarray, np.ndarray]:
    """A rank's batch: (10, 4) and (10, 3), float64."""
    rng = np.random.default_rng((7, rank, step))
    return rng.normal(size=(10, 4)), rng.normal(size=(10, 3))


def start(rank: int) -> tuple[np.ndarray, np.ndarray]:
    """A rank's first weight and bias, which those of rank 0 replace."""
    rng = np.random.default_rng((8, rank))
    return rng.normal(size=(4, 3)), rng.normal(size=3)


def change(rank: int, step: int) -> np.ndarray:
    """What a step of ``added`` adds, (11,) float32, with some numbers that float16 cannot hold."""
    rng = np.random.default_rng((9, rank, step))
    return (rng.normal(size=11) * 10.0 ** rng.integers(-9, 6, size=11)).astype(np.float32)


def least_squares(rank: int, rule: str) -> dict[str, np.ndarray]:
    """The parameters of a linear model after each step, and what the rule counts."""
    weight, bias = (pytensor.shared(value, name=name) for value, name in zip(start(rank), "wb", strict=True))
    x, y = pt.dmatrix("x"), pt.dmatrix("y")
    loss = pt.sqr(x @ weight + bias - y).sum(axis=1).mean() / 2
    updates = tm.updates.sgd(loss, [weight, bias], RATE)
    step = tm.function(
        [x, y], tm.average(loss), updates=updates, contexts=tm.contexts("cpu:1").local, precision="float64"
    )
    make, settings = RULES[rule]
    train = make(step, [weight, bias], **settings)
    losses, history, centres = [], [], []
    for t in range(STEPS):
        losses.append(train(*data(rank, t)))
        history.append(np.append(weight.get_value(), bias.get_value()))
        if isinstance(train, tm.exchange.Elastic):
            centres.append(np.append(train.centre[weight].get_value(), train.centre[bias].get_value()))
    sent = np.array(train.bytes_sent)
    tm.exchange.mean_over_ranks([weight, bias])
    final = np.append(weight.get_value(), bias.get_value())
    found = {"losses": losses, "history": history, "centres": centres, "bytes": sent, "final": final}
    return {f"{rule}: {name}": np.array(value) for name, value in found.items()}


def added(rank: int, rule: str) -> dict[str, np.ndarray]:
    """A step that adds what is known: to the bit."""
    variable = pytensor.shared(change(rank, 99), name="x")
    make, settings = RULES[rule]
    calls = iter(range(STEPS))

    def step() -> None:
        variable.set_value(variable.get_value() + change(rank, next(calls)))

    train = make(step, [variable], **settings)
    history = []
    for _ in range(STEPS):
        train()
        history.append(variable.get_value())
    return {f"{rule}: added": np.array(history)}


def resumed(rank: int, rule: str) -> dict[str, np.ndarray]:
    """Parameters in the end of a run that goes on from a checkpoint of step 4, and of one that was not stopped."""
    store = tm.ParameterStore(seed=0)
    x, y = pt.tensor("x", shape=(None, 4), dtype="float32"), pt.matrix("y", dtype="float32")
    logits = tm.layers.dense(store, "out", tm.layers.batch_norm(store, "norm", x, train=True), 3)
    loss = pt.sqr(logits - y).mean()
    updates = tm.updates.momentum(loss, store.trainable(), RATE) | store.updates()
    step = tm.function([x, y], tm.average(loss), updates=updates, contexts=tm.contexts("cpu:1").local)
    make, settings = RULES[rule]
    train = make(step, **settings)
    state = tm.training.TrainingState(step, store)
    state.variables |= train.state

    def run(first: int, last: int) -> np.ndarray:
        for t in range(first, last):
            train(*(array.astype(np.float32) for array in data(rank, t)))
        return np.concatenate([store[name].get_value().ravel() for name in store])

    run(0, 4)
    checkpoint = state.copied()
    whole = run(4, 10)
    state.restore(checkpoint)
    return {f"{rule}: whole": whole, f"{rule}: resumed": run(4, 10)}


def same_as_one_step(rank: int) -> dict[str, np.ndarray]:
    """With momentum: the mean after every step, and a step over the devices of all ranks."""
    found = {}
    for which in ("exchanged", "one step"):
        weight = pytensor.shared(start(0)[0], name="w")
        x, y = pt.dmatrix("x"), pt.dmatrix("y")
        loss = pt.sqr(x @ weight - y).sum(axis=1).mean() / 2
        updates = tm.updates.momentum(loss, [weight], RATE)
        contexts = tm.contexts("cpu:1")
        if which == "exchanged":
            step = tm.function([x, y], updates=updates, contexts=contexts.local, precision="float64")
            train: Any = tm.exchange.local_sgd(step, [weight], every=1)
        else:
            train = tm.function([x, y], updates=updates, contexts=contexts, precision="float64", split_over="ranks")
        for t in range(STEPS):
            train(*data(rank, t))
        found[which] = weight.get_value()
    return found


def large(rank: int) -> dict[str, np.ndarray]:
    """The first and last numbers of a mean that travels in many messages, and whether all are right."""
    values = np.arange(LARGE) * (rank + 1.0)
    variable = pytensor.shared(values, name="large")
    short = pytensor.shared(np.array(rank, np.float32), name="short")  # shorter than there are ranks
    tm.exchange.mean_over_ranks([variable, short])
    found = variable.get_value()
    train = tm.exchange.local_sgd(lambda: None, [variable], every=1)
    train()
    return {
        "large": found[[0, 1, -1]],
        "slope": np.unique(np.diff(found)),
        "large bytes": np.array(train.bytes_sent),
        "short": short.get_value(),
    }


def refusals(rank: int, ranks: int) -> list[str]:
    """What is said where the last rank differs."""
    last = rank == ranks - 1

    def shared(*shape: int, name: str = "w", dtype: str = "float32") -> Any:
        return pytensor.shared(np.zeros(shape, dtype), name=name)

    def step() -> None:
        """Nothing."""

    exchange = tm.exchange
    w = shared(4)
    attempts: list[Callable[[], Any]] = [
        lambda: exchange.local_sgd(step, [shared(3 if last else 4)]),
        lambda: exchange.local_sgd(step, [shared(4, dtype="float64" if last else "float32")]),
        lambda: exchange.local_sgd(step, [shared(4), *([shared(name="extra")] if last else [])]),
        lambda: exchange.local_sgd(step, [shared(4, name=name) for name in ("ba" if last else "ab")]),
        lambda: exchange.local_sgd(step, [shared(4)], every=2 if last else 3),
        lambda: (exchange.gossip if last else exchange.easgd)(step, [shared(4)]),
        lambda: exchange.local_sgd(tm.function([], updates={w: w + 1}, contexts=tm.contexts("cpu:1")), [w]),
        lambda: exchange.mean_over_ranks([shared(2, 2) if last else shared(4)]),
    ]
    said = []
    for attempt in attempts:
        try:
            attempt()
            said.append("nothing")
        except ValueError as error:
            said.append(str(error))
    return said


def main(folder: Path) -> None:
    contexts = tm.contexts("cpu:1")
    found: dict[str, np.ndarray] = {}
    for rule in RULES:
        found |= least_squares(contexts.rank, rule) | added(contexts.rank, rule) | resumed(contexts.rank, rule)
    found |= large(contexts.rank) | same_as_one_step(contexts.rank)
    said = refusals(contexts.rank, len(contexts.ranks))
    (folder / f"{contexts.rank}.pickle").write_bytes(pickle.dumps((found, said)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
