"""Theano's ``givens={x: data[i * size : (i + 1) * size]}``: rows are looked up, in batches as plain PyTensor's."""

from __future__ import annotations

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from comparison import Graph, assert_close, compare_with_pytensor, plain, states

import theano_mgpu as tm

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (103, 6), dtype="uint8")
LABELS = RNG.integers(0, 4, 103)
SIZE = 20

KINDS = {
    "resident": tm.resident,
    "shared": lambda *given, name: [pytensor.shared(v, name=n) for v, n in zip(given, name, strict=True)],
}


def classic(kind: str = "resident") -> Graph:
    """The training function of Theano's tutorials: labels are cast to int32 once, batches are slices by a number."""
    images, labels = KINDS[kind](IMAGES, LABELS, name=["images", "labels"])
    labels = pt.cast(labels, "int32")
    index, x, y = pt.lscalar("index"), pt.matrix("x", dtype="float32"), pt.ivector("y")
    weight = pytensor.shared(np.zeros((6, 4), "float32"), name="weight")
    cost = tm.nn.softmax_cross_entropy(x @ weight, y).mean()
    return Graph(
        [index],
        tm.average(cost),
        updates=[(weight, weight - np.float32(0.1) * tm.grad(cost, weight))],
        givens={
            x: images[index * SIZE : (index + 1) * SIZE].astype("float32") / np.float32(255),
            y: labels[index * SIZE : (index + 1) * SIZE],
        },
    )


@pytest.mark.parametrize("kind", list(KINDS))
def test_the_classic_training_function_runs_as_in_pytensor(eight, kind):
    """The last slice is clipped to three examples: fewer than shards."""
    reference = plain(lambda: classic(kind), [[0], [4], [5]])
    for devices, options in (
        (1, {}),
        (1, {"shards": 3}),
        (3, {"shards": 4}),
        (4, {"update_on": "device", "shards": 8}),
        (8, {}),
    ):
        step = compare_with_pytensor(lambda: classic(kind), reference, eight[:devices], **options)
        assert len(step.cut.split) == 1  # the rows, which both slices share


BOUNDS = {
    "negative": lambda data, i, n: data[-i - 5 : -i - 1],
    "from the start": lambda data, i, n: data[:i],
    "to the end": lambda data, i, n: data[i + 90 :],
    "beyond the end": lambda data, i, n: data[i + 90 : i + 110],
    "before the start": lambda data, i, n: data[-1000 : i + 4],
    "step of one": lambda data, i, n: data[i : i + 4 : 1],
    "by the data's length": lambda data, i, n: data[data.shape[0] - i : data.shape[0]],
    "by a shared number": lambda data, i, n: data[n : n + i],
    "with other axes": lambda data, i, n: data[i : i + 4, 1:4],
    "other axes after": lambda data, i, n: data[i : i + 4][:, ::-1],
    "axes moved": lambda data, i, n: data.reshape((-1, 2, 3)).dimshuffle(0, 2, 1)[i : i + 4].reshape((-1, 6)),
    "standardised": lambda data, i, n: ((data - data.mean(0)) / data.std(0))[i : i + 4],
    "fixed": lambda data, i, n: data[3:20],
}


@pytest.mark.parametrize("bounds", list(BOUNDS))
def test_any_bounds_give_numpys_rows(eight, bounds):
    def build():
        data = tm.resident(IMAGES, name="data")
        i, n, x = pt.iscalar("i"), pytensor.shared(np.int64(7), name="n"), pt.matrix("x", dtype="float64")
        outputs = (
            [tm.average(x.mean(0)), tm.total(x.sum(0) + i)] if bounds == "fixed" else [x + i, tm.average(x.mean(0))]
        )
        if bounds == "fixed":
            outputs = [tm.average(x.mean(0) + i)]
        return Graph([i], outputs, givens={x: BOUNDS[bounds](data, i, n).astype("float64")})

    compare_with_pytensor(build, [[3], [6]], eight[:3])


def test_a_shared_counter_moves_the_slice(eight):
    def build():
        data, count, x = tm.resident(LABELS, name="data"), pytensor.shared(np.int64(0), name="count"), pt.lvector("x")
        return Graph([], [x * 2], updates={count: count + 1}, givens={x: data[count * SIZE : (count + 1) * SIZE]})

    compare_with_pytensor(build, [[], [], []], eight[:2])


def test_a_slice_and_a_sent_batch_are_split_alike(eight):
    data, i, x, y = tm.resident(LABELS, name="data"), pt.iscalar("i"), pt.lvector("x"), pt.lvector("y")
    step = tm.function([i, y], tm.average((x * y).mean()), givens={x: data[i : i + 10]}, contexts=eight[:4])
    sent = np.arange(10)
    assert_close(step(3, sent), (LABELS[3:13] * sent).mean())
    with pytest.raises(ValueError, match="the slice for 'x' has 3 rows but 'y' has 10"):
        step(100, sent)


def test_an_empty_slice_is_named_and_changes_nothing(eight):
    graph = classic()
    step = tm.function(graph.inputs, graph.outputs, updates=graph.updates, givens=graph.givens, contexts=eight[:2])
    step(0)
    before = states(*dict(graph.updates))
    with pytest.raises(ValueError, match=r"step\(\): the slice \[120:140\] for 'x' is empty: images has 103 rows"):
        step(6)
    assert states(*dict(graph.updates)) == before


def test_slices_of_other_lengths_are_named(eight):
    i, x, y = pt.iscalar("i"), pt.lvector("x"), pt.lvector("y")
    images, labels = pytensor.shared(LABELS, name="images"), pytensor.shared(LABELS[:95], name="labels")
    outputs = tm.average((x * y).mean())
    same = {x: images[i : i + 10], y: labels[i : i + 10]}
    step = tm.function([i], outputs, givens=same, contexts=eight[:2])
    assert_close(step(80), (LABELS[80:90] ** 2).mean())
    with pytest.raises(
        ValueError, match=r"\[90:100\] for 'y' ends in labels after 5 of 95 rows, but for 'x' in images"
    ):
        step(90)
    other = {x: images[i : i + 10], y: labels[i : i + 9]}
    with pytest.raises(ValueError, match="the slice for 'y' has 9 rows but the slice for 'x' has 10"):
        tm.function([i], outputs, givens=other, contexts=eight[:2])(0)
    resident = {x: tm.resident(LABELS, name="long")[i : i + 10], y: tm.resident(LABELS[:95], name="short")[i : i + 10]}
    with pytest.raises(
        ValueError, match=r"looks rows up in (long|short), which has (103|95) rows, and in (long|short), which"
    ):
        tm.function([i], outputs, givens=resident, contexts=eight[:2])


def test_a_slice_with_a_step_says_how_to_write_it():
    data, i, x = tm.resident(LABELS, name="data"), pt.iscalar("i"), pt.lvector("x")
    with pytest.raises(ValueError, match=r"the slice for 'x' has a step.*rows = pt.ivector\('rows'\).*data\[rows\]"):
        tm.function([i], tm.average(x.mean()), givens={x: data[i : i + 10 : 2]}, contexts="cpu:8")


def test_an_unused_given_is_left_alone_and_an_unused_number_is_named():
    data, i, x, y = tm.resident(LABELS, name="data"), pt.iscalar("i"), pt.lvector("x"), pt.lvector("y")
    with pytest.raises(ValueError, match="'i' is not used"):
        tm.function([y, i], tm.average(y.mean()), givens={x: data[i : i + 10]}, contexts="cpu:8")
