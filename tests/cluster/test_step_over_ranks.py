"""A step over the devices of all ranks, against the same step over one device of this rank alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

import theano_mgpu as tm

pytestmark = pytest.mark.ranks

FEATURES, CLASSES = 96, 10


class Network:
    """Wide enough that its parameters are updated in pieces, with all that a step can have."""

    def __init__(
        self, contexts: tm.Contexts, rule: Any = tm.updates.momentum, *, seed: int = 0, **options: Any
    ) -> None:
        self.store = tm.ParameterStore(seed=seed)
        x = pt.tensor("x", shape=(None, FEATURES), dtype="float32")
        labels = pt.vector("labels", dtype="int32")
        hidden = tm.layers.batch_norm(self.store, "norm", tm.layers.dense(self.store, "first", x, 128), True)
        hidden = tm.layers.dropout(self.store, "dropout", tm.nn.relu(hidden), 0.25, True)
        logits = tm.layers.dense(self.store, "last", tm.layers.dense(self.store, "second", hidden, 128), CLASSES)
        loss = tm.nn.softmax_cross_entropy(logits, labels).mean()
        params = self.store.trainable()
        updates = rule(tm.grad(loss, params), params, 0.1)
        self.state = [variable for variable in updates if variable not in params]
        outputs = {"loss": tm.average(loss), "largest": tm.maximum(logits.max()), "logits": logits}
        self.step = tm.function(
            [x, labels], outputs, updates=updates | self.store.updates(), contexts=contexts, **{"shards": 4, **options}
        )

    def values(self) -> list[np.ndarray]:
        variables = [v for v in self.step.get_shared() if isinstance(v.get_value(), np.ndarray)]
        return [variable.get_value() for variable in variables]


def clipped(gradients: Any, params: Any, rate: float) -> Any:
    return tm.updates.momentum(tm.updates.clip_by_global_norm(gradients, 0.5), params, rate)


def batches(examples: int, count: int = 3) -> list[tuple[np.ndarray, np.ndarray]]:
    random = np.random.default_rng(0)
    return [
        (
            random.normal(size=(examples, FEATURES)).astype("float32"),
            random.integers(0, CLASSES, examples).astype("int32"),
        )
        for _ in range(count)
    ]


@pytest.mark.parametrize(
    ("rule", "examples", "split_over"),
    [
        (tm.updates.momentum, 48, "devices"),
        (tm.updates.adam, 45, "ranks"),
        (tm.updates.lamb, 22, "devices"),
        (clipped, 3, "ranks"),
    ],
    ids=["momentum", "adam", "lamb", "clipped"],
)
def test_all_ranks_have_the_bits_of_one_device(everyone, rule, examples, split_over):
    alone, together = Network(everyone.local[:1], rule), Network(everyone, rule, split_over=split_over)
    own = together.step.part(examples) if split_over == "ranks" else slice(None)
    for x, labels in batches(examples):
        expected, found = alone.step(x, labels), together.step(x[own], labels[own])
        for name in ("loss", "largest"):
            assert found[name].tobytes() == expected[name].tobytes()
        np.testing.assert_array_equal(found["logits"], expected["logits"][own])
    for mine, theirs in zip(together.values(), alone.values(), strict=True):
        assert mine.tobytes() == theirs.tobytes()
    assert together.store.checksum() == alone.store.checksum()


def test_the_parts_of_a_batch_are_all_of_it_once(everyone):
    network = Network(everyone)
    part = network.step.part(45)
    parts = (
        [(part.start, part.stop)] if everyone.cluster is None else everyone.cluster.gathered((part.start, part.stop))
    )
    assert [i for start, stop in parts for i in range(start, stop)] == list(range(45))


def gradient_step(contexts: tm.Contexts) -> tuple[tm.Step, Any]:
    """The mean over examples of the gradient of ``(w x)^2 / 2``, which becomes ``w``'s change."""
    x = pt.matrix("x", dtype="float32")
    w = pytensor.shared(np.ones(3, "float32"), name="w")
    gradient = tm.grad(((x @ w) ** 2 / 2).mean(), [w])[0]
    return tm.function([x], updates={w: w - gradient}, contexts=contexts, split_over="ranks"), w


def test_ranks_may_give_batches_of_different_sizes(everyone):
    step, w = gradient_step(everyone)
    parts = [np.random.default_rng(rank.number).normal(size=(2 + 3 * rank.number, 3)) for rank in everyone.ranks]
    step(parts[everyone.rank].astype("float32"))
    x = np.concatenate(parts)
    np.testing.assert_allclose(w.get_value(), 1 - (x * x.sum(1, keepdims=True)).mean(0), rtol=1e-5)


def test_a_rank_without_data_changes_nothing(everyone):
    step, w = gradient_step(everyone)
    last = everyone.ranks[-1].number
    x = np.random.default_rng(everyone.rank).normal(size=(0 if 0 < everyone.rank == last else 3, 3)).astype("float32")
    step(x)
    parts = [x] if everyone.cluster is None else everyone.cluster.gathered(x)
    x = np.concatenate(parts)
    np.testing.assert_allclose(w.get_value(), 1 - (x * x.sum(1, keepdims=True)).mean(0), rtol=1e-5)


def test_an_empty_batch_is_refused_on_all_ranks(everyone):
    step, _ = gradient_step(everyone)
    with pytest.raises(ValueError, match="empty"):
        step(np.empty((0, 3), "float32"))


def test_what_one_rank_asks_of_the_optimizer_s_state_is_that_of_its_own_step(everyone):
    alone, together = Network(everyone.local[:1]), Network(everyone)
    for x, labels in batches(16, 4):
        alone.step(x, labels)
        together.step(x, labels)
        if everyone.rank == 0:  # the others go on to the next step
            for mine, theirs in zip(together.state, alone.state, strict=True):
                np.testing.assert_array_equal(mine.get_value(), theirs.get_value())


def test_rank_0_s_first_values_are_everybody_s(everyone):
    first, own = Network(everyone.local), Network(everyone, seed=everyone.rank)
    assert own.store.checksum() == first.store.checksum()


@pytest.mark.parametrize("wrong", ["dtype", "nan"])
def test_what_is_wrong_on_one_rank_changes_nothing_on_any(everyone, wrong):
    alone, network = Network(everyone.local[:1]), Network(everyone, split_over="ranks")
    (x, labels), after = batches(16, 2)
    own = network.step.part(16)
    before = network.values()
    is_last = everyone.rank == everyone.ranks[-1].number
    if wrong == "dtype":
        error = TypeError if is_last else tm.RankError
        match = "x.*float32" if is_last else f"rank {len(everyone.ranks) - 1} failed with the inputs of call"
        given = x[own].astype("float64") if is_last else x[own]
    else:
        error, match = tm.NonFiniteError, r"shards \[3\] gave non-finite averages"
        given = x[own].copy()
        given[-1] = np.nan if is_last else given[-1]
    with pytest.raises(error, match=match):
        network.step(given, labels[own])
    for now, then in zip(network.values(), before, strict=True):
        assert now.tobytes() == then.tobytes()
    alone.step(*after)
    network.step(after[0][own], after[1][own])
    assert network.store.checksum() == alone.store.checksum()


def test_a_rank_sends_no_more_than_its_share(everyone):
    network = Network(everyone)
    x, labels = batches(8, 1)[0]
    network.step(x, labels)
    if (cluster := everyone.cluster) is None:
        pytest.skip("needs other ranks")
    before = cluster.bytes_sent
    network.step(x, labels)
    parameters = sum(param.get_value().nbytes for param in network.store.trainable())
    small = 20_000 * (cluster.size - 1)  # what is told in between, sums too small for pieces, and the logits
    assert cluster.bytes_sent - before <= 2 * (cluster.size - 1) / cluster.size * parameters + small


def test_the_seconds_of_each_rank_are_known_to_all(everyone):
    network = Network(everyone)
    network.step(*batches(8, 1)[0])
    seconds = network.step.rank_seconds
    assert len(seconds) == len(everyone.ranks)
    assert min(seconds) > 0
    assert everyone.cluster is None or everyone.cluster.gathered(seconds) == [seconds] * len(everyone.ranks)
