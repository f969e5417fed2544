"""Data on the devices gives the same bits as the batch sent, and of it only indices are sent."""

from __future__ import annotations

import pickle

import jax
import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from comparison import Graph, assert_close, compare_with_pytensor, plain, states
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pytensor.compile.mode import Mode

import theano_mgpu as tm
from theano_mgpu.pieces import Pieces
from theano_mgpu.programs import DeviceProgram

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (101, 2, 3), dtype="uint8")
LABELS = RNG.integers(0, 4, 101)
BATCHES = [np.array(rows, "int32") for rows in ([0, 3, 100, -1, -101, 50, 50, 7, 3, 1, 2], range(5), [99])]
OPTIONS = [
    (1, {"shards": 3}),
    (3, {"shards": 8}),
    (4, {"update_on": "device", "shards": 8}),
    *(pytest.param(devices, {}, marks=pytest.mark.slow) for devices in (1, 2, 8)),
]


def training(images, labels, rows) -> Graph:
    """A softmax regression with momentum; what it is given as images and labels are the batch's."""
    x, y = images.astype("float32").reshape((-1, 6)) / np.float32(255), labels.astype("int32")
    weight = pytensor.shared(np.zeros((6, 4), "float32"), name="weight")
    loss = tm.nn.softmax_cross_entropy(x @ weight, y).mean()
    updates = tm.updates.momentum(tm.grad(loss, [weight]), [weight], learning_rate=0.5, momentum=0.9)
    return Graph(rows, {"loss": tm.average(loss), "x": x}, updates=updates)


def on_the_devices() -> Graph:
    images, labels = tm.resident(IMAGES, LABELS, name=["images", "labels"])
    rows = pt.ivector("rows")
    return training(images[rows], labels[rows], [rows])


def sent() -> Graph:
    images, labels = pt.tensor("images", shape=(None, 2, 3), dtype="uint8"), pt.lvector("labels")
    return training(images, labels, [images, labels])


@pytest.fixture(scope="module")
def reference():
    return plain(on_the_devices, [[rows] for rows in BATCHES])


@pytest.mark.parametrize(("devices", "options"), OPTIONS, ids=str)
def test_a_step_over_indices_is_plain_pytensors_and_to_the_bit_that_of_sent_batches(eight, reference, devices, options):
    compare_with_pytensor(on_the_devices, reference, eight[:devices], **options)
    results = []
    for build, batches in (
        (on_the_devices, [[rows] for rows in BATCHES]),
        (sent, [[IMAGES[rows], LABELS[rows]] for rows in BATCHES]),
    ):
        graph = build()
        step = tm.function(graph.inputs, graph.outputs, updates=graph.updates, contexts=eight[:devices], **options)
        outputs = [step(*batch) for batch in batches]
        results.append((states(*graph.updates), [output["loss"].tobytes() for output in outputs]))
    assert results[0] == results[1]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int8", "uint16", "int64", "bool", "complex64"])
def test_rows_come_with_every_bit(eight, dtype):
    values = np.array([0.0, -0.0, 1.5, -3.0, 2.0**11, 1, 0], "float64")
    if np.dtype(dtype).kind == "f":
        values[-1] = np.nan
    data = (values * (1 - 1j) if dtype == "complex64" else values).astype(dtype)
    rows = pt.lvector("rows")
    for devices in (1, 4):
        step = tm.function([rows], tm.resident(data)[rows], contexts=eight[:devices])
        indices = np.arange(-7, 7)
        assert step(indices).dtype == dtype
        assert step(indices).tobytes() == data[indices].tobytes()


@settings(max_examples=15)
@given(
    data=arrays.arrays("int16", st.tuples(st.integers(1, 40), st.integers(1, 3))),
    picks=st.lists(st.integers(0, 10**6), min_size=1, max_size=12),
    devices=st.sampled_from([2, 3, 8]),
)
def test_any_data_is_looked_up_as_by_numpy(eight, data, picks, devices):
    rows = pt.lvector("rows")
    indices = np.array(picks) % (2 * len(data)) - len(data)
    step = tm.function([rows], tm.resident(data)[rows], contexts=eight[:devices])
    np.testing.assert_array_equal(step(indices), data[indices])


def test_every_way_to_index_and_every_other_use_is_right(eight):
    """Also of all the data at once, below the cut and above."""

    def build():
        images = tm.resident(IMAGES, name="images")
        rows, pairs, one = pt.bvector("rows"), pt.lmatrix("pairs"), pt.iscalar("one")
        outputs = [
            images[rows, 1:],
            images[rows, :, 0],
            images[rows, ::-1, rows % 3],
            (images.astype("float32") / np.float32(255))[rows],
            images[pairs].sum((2, 3)),
            images[one],
            images[5:9],
            images,
            images.mean(0),
            tm.average(rows.mean() * images.astype("float64").mean()),
            tm.average((images[rows].astype("float64") - images.mean(0)).mean(0)),
            images[rows].shape[0] * pt.ones_like(rows),
        ]
        return Graph([rows, pairs, one], outputs)

    # Each shard sees its own number of examples in the last output: four shards of two.
    batch = [np.arange(-4, 4, dtype="int8"), np.arange(16).reshape(8, 2), -3]
    expected = plain(build, [batch])
    expected.outputs[0][-1] = np.full(8, 2)
    for devices, update_on in ((4, "host"), (4, "device")):
        compare_with_pytensor(build, expected, eight[:devices], shards=4, update_on=update_on)


def test_look_ups_never_make_a_device_hold_all(eight, monkeypatch):
    monkeypatch.setattr(Pieces, "whole", lambda self: pytest.fail("all rows were gathered"))
    graph = on_the_devices()
    tm.function(graph.inputs, graph.outputs, updates=graph.updates, contexts=eight[:4])(BATCHES[0])
    images, rows = tm.resident(IMAGES), pt.ivector("rows")
    scaled = ((images.astype("float32") - np.float32(3)) / np.float32(255)).dimshuffle(0, 2, 1)
    step = tm.function([rows], scaled[rows], contexts=eight[:2])
    assert_close(step(BATCHES[0]), np.swapaxes((IMAGES[BATCHES[0]] - np.float32(3)) / np.float32(255), 1, 2))


# What is sent


class Sent:
    """Counts the bytes that steps hand to the devices."""

    def __init__(self, monkeypatch):
        self.bytes = 0
        make, run = jax.make_array_from_callback, DeviceProgram.__call__

        def counted(shape, sharding, callback, **options):
            return make(shape, sharding, lambda index: self.count(callback(index)), **options)

        def counted_call(program, turn, inputs, shared):
            for leaf in jax.tree.leaves((inputs, shared)):
                self.count(leaf)
            return run(program, turn, inputs, shared)

        monkeypatch.setattr(jax, "make_array_from_callback", counted)
        monkeypatch.setattr(DeviceProgram, "__call__", counted_call)

    def count(self, value):
        if isinstance(value, np.ndarray):
            self.bytes += value.nbytes
        return value

    def of(self, step, *arguments) -> int:
        before = self.bytes
        step(*arguments)
        return self.bytes - before


@pytest.mark.parametrize("devices", [1, 2, 8])
@pytest.mark.parametrize("update_on", ["host", "device"])
def test_of_the_data_only_indices_are_sent(eight, monkeypatch, devices, update_on):
    images, labels = tm.resident(IMAGES, LABELS)
    rows = pt.ivector("rows")
    graph = training(images[rows], labels[rows], [rows])
    options = {"contexts": eight[:devices], "update_on": update_on}
    step = tm.function([rows], graph.outputs, updates=graph.updates, **options)
    evaluate = tm.function([rows], tm.average(images[rows].mean() + labels[rows].mean()), **options)
    above = tm.function([rows], [tm.average(rows.mean()), images.mean()], **options)
    indices, sent = np.arange(64, dtype="int32"), Sent(monkeypatch)
    assert sent.of(step, indices) >= IMAGES.nbytes + LABELS.nbytes
    assert sent.of(evaluate, indices[:32]) < IMAGES.nbytes  # steps share what is there; its weights are placed once
    above(indices)
    assert sent.of(evaluate, indices[:32]) == 32 * 4
    assert sent.of(above, indices) == 64 * 4
    # Parameters are mirrored on every device, and on the host's own not sent but the first time.
    parameters = 6 * 4 * 4
    mirrored = sent.of(step, indices) - 64 * 4
    assert mirrored <= 3 * parameters * devices
    sent_batches = tm.function([x := pt.tensor3("x", dtype="uint8")], tm.average(x.mean()), **options)
    sent_batches(IMAGES[:64])
    assert sent.of(sent_batches, IMAGES[:64]) == IMAGES[:64].nbytes  # what is counted, is counted


@pytest.mark.parametrize(("rows_held", "own"), [(128, 4), (100, 3)])
def test_simulated_devices_read_the_hosts_own_memory(eight, rows_held, own):
    """32 rows of two bytes each, the last with 28 zeros behind them if there are only 100."""
    images, rows = tm.resident(np.arange(rows_held, dtype="int16")), pt.ivector("rows")
    tm.function([rows], images[rows], contexts=eight[:4])(np.arange(8, dtype="int32"))
    (held, pieces), *others = images.placed.values()
    assert not others
    assert held is images.get_value(borrow=True)
    addresses = [shard.data.unsafe_buffer_pointer() for shard in pieces.array.addressable_shards]
    assert len(set(addresses) & {held.ctypes.data + i * 32 * 2 for i in range(4)}) == own


# Whoever writes the data


@pytest.mark.parametrize("devices", [1, 4])
def test_other_data_reaches_the_devices_whoever_set_it(eight, devices):
    images, rows = tm.resident(IMAGES.astype("float32"), name="images"), pt.ivector("rows")
    step = tm.function([rows], [images[rows], tm.average(images.mean())], contexts=eight[:devices])
    indices = np.array([0, 3, -1, 2], "int32")

    def is_current():
        looked_up, mean = step(indices)
        value = images.get_value()
        return looked_up.tobytes() == value[indices].tobytes() and np.isclose(mean, value.mean(dtype="float64"))

    assert is_current()
    for rows_now in (101, 100, 37):  # padded alike, but another length
        images.set_value(RNG.standard_normal((rows_now, 2, 3)).astype("float32"), borrow=True)
        assert is_current()
        with pytest.raises(IndexError, match=f"images has {rows_now} rows.* {rows_now} to {rows_now}"):
            step(np.full(4, rows_now, "int32"))
    double = pytensor.function([], updates={images: images * 2}, mode=Mode("py", "fast_compile"))
    for _ in range(2):
        double()
        assert is_current()
    images.get_value(borrow=True)[:] += 1  # what a plain function left, may be written into
    assert is_current()


def test_the_array_is_a_copy_and_read_only():
    given_array = IMAGES.copy()
    images = tm.resident(given_array)
    given_array[:] = 0
    np.testing.assert_array_equal(images.get_value(), IMAGES)
    with pytest.raises(ValueError, match="read-only"):
        images.get_value(borrow=True)[:] = 0
    images.get_value()[:] = 0  # a copy
    np.testing.assert_array_equal(images.get_value(), IMAGES)
    columns = tm.resident(np.asfortranarray(IMAGES.astype(">i4")))
    np.testing.assert_array_equal(columns.get_value(), IMAGES)


def test_data_that_is_on_devices_can_be_pickled(eight):
    images, rows = tm.resident(IMAGES, name="images"), pt.ivector("rows")
    tm.function([rows], images[rows], contexts=eight[:2])(BATCHES[0])
    loaded = pickle.loads(pickle.dumps(images))
    np.testing.assert_array_equal(loaded.get_value(), IMAGES)
    result = tm.function([rows], loaded[rows], contexts=eight[:2])(BATCHES[0])
    np.testing.assert_array_equal(result, IMAGES[BATCHES[0]])


# Bad input


@pytest.mark.parametrize("update_on", ["host", "device"])
@pytest.mark.parametrize("index", [101, -(2**31)])
def test_an_index_outside_is_named_and_changes_nothing(eight, index, update_on):
    graph = on_the_devices()
    step = tm.function(graph.inputs, graph.outputs, updates=graph.updates, contexts=eight[:4], update_on=update_on)
    step(BATCHES[0])
    before = states(*graph.updates)
    # The last shard's.
    with pytest.raises(
        IndexError, match=rf"step\(\): (images|labels) has 101 .* from {index} to {index}\..* from -101 to 100"
    ):
        step(np.array([0, 0, 0, 1, index], "int32"))
    assert states(*graph.updates) == before


@pytest.mark.parametrize("dtype", ["uint8", "uint32", "uint64", "int64"])
def test_an_index_outside_is_found_in_every_dtype(eight, dtype):
    rows = pt.vector("rows", dtype=dtype)
    step = tm.function([rows], tm.resident(IMAGES, name="images")[rows], contexts=eight[:2])
    np.testing.assert_array_equal(step(np.array([0, 100], dtype)), IMAGES[[0, 100]])
    with pytest.raises(IndexError, match="images has 101 rows"):
        step(np.array([0, np.iinfo(dtype).max], dtype))


def test_a_single_index_outside_is_named(eight):
    one, x = pt.iscalar("one"), pt.vector("x")
    mean = tm.resident(IMAGES, name="images")[one].mean()
    step = tm.function([one, x], [mean, tm.average(x.mean())], contexts=eight[:2])
    assert np.isclose(step(3, [1.0, 2])[0], IMAGES[3].mean())
    with pytest.raises(IndexError, match="images has 101 rows, but is looked up at indices from 200 to 200"):
        step(200, [1.0, 2])


def test_data_of_other_lengths_is_named():
    with pytest.raises(ValueError, match="'labels' has 99 rows but 'images' has 101"):
        tm.resident(IMAGES, LABELS[:99], name=["images", "labels"])
    with pytest.raises(ValueError, match="array 1 has 99 rows but array 0 has 101"):
        tm.resident(IMAGES, LABELS[:99])
    images, labels, rows = tm.resident(IMAGES, name="images"), tm.resident(LABELS[:99], name="labels"), pt.ivector("r")
    outputs = [images[rows], pt.cast(labels, "int32")[rows]]
    with pytest.raises(
        ValueError, match=r"r looks rows up in (images|labels), which has (101|99) rows, and in (images|labels)"
    ):
        tm.function([rows], outputs, contexts="cpu:8")


@pytest.mark.parametrize(
    ("arrays_given", "options", "error", "message"),
    [
        ((), {}, TypeError, "expected one array or several, got none"),
        (([1, 2],), {"name": "images"}, TypeError, "'images' must be a numpy array, got a list"),
        ((np.array(["a"]),), {}, TypeError, "array 0 must be an array of numbers, got dtype <U1"),
        ((np.array([None]),), {}, TypeError, "array of numbers, got dtype object"),
        ((np.float32(1),), {}, TypeError, "must be a numpy array, got a float32"),
        ((np.array(1.0),), {}, ValueError, "needs an axis of rows, got a 0-d array"),
        ((np.zeros((0, 3)),), {}, ValueError, r"array 0 of shape \(0, 3\) is empty"),
        ((LABELS, LABELS), {"name": "labels"}, ValueError, "name must be a list of 2 names, one an array"),
        ((LABELS,), {"name": 3}, ValueError, "name must be a word, got 3"),
    ],
)
def test_what_is_no_data_is_refused(arrays_given, options, error, message):
    with pytest.raises(error, match=message):
        tm.resident(*arrays_given, **options)


def test_set_value_refuses_what_is_no_such_data():
    images = tm.resident(IMAGES, name="images")
    for value, error in ((IMAGES[:, 0], TypeError), (IMAGES[:, :1], TypeError), (IMAGES[:0], ValueError)):
        with pytest.raises(error):
            images.set_value(value)
        np.testing.assert_array_equal(images.get_value(), IMAGES)


def test_a_step_cannot_update_the_data():
    images, x = tm.resident(LABELS, name="images"), pt.lvector("x")
    with pytest.raises(TypeError, match=r"updates: images is resident data, which steps only read"):
        tm.function([x], tm.average(x.mean()), updates={images: images + 1}, contexts="cpu:8")


def test_float_indices_are_refused_by_pytensor_itself():
    with pytest.raises(TypeError, match="integer"):
        tm.resident(IMAGES)[pt.fvector("rows")]
