"""Programs that run on the devices of all ranks together: device update, synchronised batch norm, resident data."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

import theano_mgpu as tm

pytestmark = pytest.mark.ranks

BOTH = pytest.mark.parametrize("update_on", ["host", "device"])


class Network:
    """A convolution, batch norm, dropout, and a layer whose gradients travel in halves."""

    def __init__(
        self, contexts: tm.Contexts | None, rule: Any = tm.updates.momentum, *, sync: bool = False, **options: Any
    ) -> None:
        self.store = tm.ParameterStore(seed=0)
        images = pt.tensor("images", shape=(None, 8, 8, 3), dtype="float32")
        labels = pt.vector("labels", dtype="int32")
        hidden = tm.layers.conv2d(self.store, "conv", images, 8, 3, padding=1)
        hidden = tm.nn.relu(tm.layers.batch_norm(self.store, "norm", hidden, True, sync=sync))
        hidden = hidden.reshape((hidden.shape[0], 8 * 8 * 8))
        if not sync:
            hidden = tm.layers.dropout(self.store, "drop", hidden, 0.25, True)
        hidden = tm.nn.relu(tm.layers.dense(self.store, "hidden", hidden, 64))
        logits = tm.layers.dense(self.store, "out", hidden, 10)
        loss = tm.nn.softmax_cross_entropy(logits, labels).mean()
        params = self.store.trainable()
        updates = rule(tm.grad(loss, params), params, 0.02) | self.store.updates()
        outputs = {"loss": tm.average(loss), "logits": logits}
        if contexts is None:
            self.step = pytensor.function([images, labels], outputs, updates=updates)
        else:
            self.step = tm.function(
                [images, labels], outputs, updates=updates, contexts=contexts, shards=4, name="train", **options
            )


def batches(examples: int, count: int = 3) -> list[tuple[np.ndarray, np.ndarray]]:
    random = np.random.default_rng(0)
    return [
        (
            random.normal(size=(examples, 8, 8, 3)).astype("float32"),
            random.integers(0, 10, examples).astype("int32"),
        )
        for _ in range(count)
    ]


def of_all(contexts: tm.Contexts, own: Any) -> list[Any]:
    return contexts.cluster.gathered(own) if contexts.cluster else [own]


@pytest.mark.parametrize(
    ("rule", "examples", "split_over"),
    [(tm.updates.momentum, 24, "devices"), (tm.updates.adam, 21, "ranks"), (tm.updates.sgd, 3, "ranks")],
    ids=["momentum", "adam", "fewer than devices"],
)
def test_the_devices_of_all_ranks_have_the_bits_of_one(everyone, rule, examples, split_over):
    alone = Network(everyone.local[:1], rule)
    together = Network(everyone, rule, update_on="device", split_over=split_over)
    own = together.step.part(examples) if split_over == "ranks" else slice(None)
    for images, labels in batches(examples):
        expected, found = alone.step(images, labels), together.step(images[own], labels[own])
        assert found["loss"].tobytes() == expected["loss"].tobytes()
        assert found["logits"].tobytes() == expected["logits"][own].tobytes()
    assert together.store.checksum() == alone.store.checksum()


@BOTH
def test_statistics_of_synchronised_batch_norm_are_of_all_ranks(everyone, update_on):
    plain, network = Network(None, sync=True), Network(everyone, sync=True, update_on=update_on, split_over="ranks")
    part = network.step.part(22)
    for images, labels in batches(22):
        expected, found = plain.step(images, labels), network.step(images[part], labels[part])
        np.testing.assert_allclose(found["loss"], expected["loss"], rtol=1e-4)
        np.testing.assert_allclose(found["logits"], expected["logits"][part], rtol=1e-3, atol=1e-4)
    for mine, theirs in zip(network.store.trainable(), plain.store.trainable(), strict=True):
        np.testing.assert_allclose(mine.get_value(), theirs.get_value(), rtol=1e-3, atol=1e-4)
    assert len(set(of_all(everyone, network.store.checksum()))) == 1


@BOTH
def test_resident_data_is_the_same_to_the_bit(everyone, update_on):
    random = np.random.default_rng(0)
    data = random.normal(size=(37, 6)).astype("float32")
    batches = random.integers(0, 37, (3, 16)).astype("int32")

    def step(contexts: tm.Contexts, **options: Any) -> Any:
        rows = pt.ivector("rows")
        w = pytensor.shared(np.ones(6, "float32"), name="w")
        gradient = tm.grad(((tm.resident(data)[rows] @ w) ** 2).mean(), [w])[0]
        return tm.function(
            [rows], updates={w: w - np.float32(0.1) * gradient}, contexts=contexts, shards=4, **options
        ), w

    (alone, expected), (together, found) = step(everyone.local[:1]), step(everyone, update_on=update_on)
    for rows in batches:
        alone(rows)
        together(rows)
    assert found.get_value().tobytes() == expected.get_value().tobytes()


@pytest.mark.parametrize("update_on", ["host", "device"])
@pytest.mark.parametrize("split_over", ["devices", "ranks"])
def test_verify_compares_ranks_and_names_the_one_that_differs(everyone, update_on, split_over):
    network = Network(everyone, update_on=update_on, split_over=split_over)
    own = network.step.part(16) if split_over == "ranks" else slice(None)
    images, labels = (array[own] for array in batches(16, 1)[0])
    network.step(images, labels)
    before = network.store.checksum()
    report = tm.verify(network.step, (images, labels))
    assert report.new_values == len(network.step.cut.updated)
    assert network.store.checksum() == before
    last = everyone.ranks[-1].number
    if last > 0:
        assert str(report).endswith(f"; {last + 1} ranks hold the same values")
        bias = network.store["out.bias"]
        if everyone.rank == last:
            bias.set_value(bias.get_value() + np.float32(1e-6))
        with pytest.raises(tm.DivergenceError, match=rf"verify\(\): out\.bias is on rank {last} .* on rank 0"):
            tm.verify(network.step, (images, labels))


def test_parts_that_are_not_those_of_the_whole_are_refused_on_all_ranks(everyone):
    network = Network(everyone, update_on="device", split_over="ranks")
    (images, labels), before = batches(16, 1)[0], network.store.checksum()
    count = 3 if everyone.rank == 0 else 4
    if everyone.cluster is not None:
        with pytest.raises(ValueError, match=r"the ranks gave 3, 4.* they should give 4, 4|gave 3, 4.* give 4, 3"):
            network.step(images[:count], labels[:count])
    assert network.store.checksum() == before
    part = network.step.part(16)
    network.step(images[part], labels[part])
    assert len(set(of_all(everyone, network.store.checksum()))) == 1


@pytest.mark.parametrize("nonfinite", ["raise", "skip"])
def test_a_shard_that_is_not_finite_changes_nothing_on_any_rank(everyone, nonfinite):
    network = Network(everyone, update_on="device", nonfinite=nonfinite)
    (images, labels), before = batches(16, 1)[0], network.store.checksum()
    images[-1, 0, 0, 0] = np.nan
    if nonfinite == "skip":
        assert network.step(images, labels)["skipped"] == 1
    else:
        with pytest.raises(tm.NonFiniteError, match=r"shards \[3\] gave non-finite averages"):
            network.step(images, labels)
    assert network.store.checksum() == before


def test_what_is_wrong_with_one_rank_s_examples_is_said_on_all(everyone):
    network = Network(everyone, update_on="device", split_over="ranks")
    (images, labels), part = batches(16, 1)[0], network.step.part(16)
    labels[-1] = 10
    is_last = everyone.rank == everyone.ranks[-1].number
    before = network.store.checksum()
    with pytest.raises(ValueError if is_last else tm.RankError, match="label"):
        network.step(images[part], labels[part])
    assert network.store.checksum() == before
