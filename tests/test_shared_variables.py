"""Shared variables behave as in PyTensor, whoever wrote them last: a step, a plain function, or the user."""

from __future__ import annotations

import subprocess
import sys
import warnings

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from comparison import PYTHON, assert_close, states
from pytensor.compile.mode import Mode
from pytensor.tensor.random.utils import RandomStream

import theano_mgpu as tm

# One device may share the host's memory; several cannot all do.
PLACES = pytest.mark.parametrize(("devices", "update_on"), [(1, "host"), (1, "device"), (4, "host"), (4, "device")])
X = np.random.default_rng(0).standard_normal((10, 64)).astype("float32")
START = np.random.default_rng(1).standard_normal(64).astype("float32")


def weight_and_update() -> tuple:
    weight = pytensor.shared(START.copy(), name="weight")
    x = pt.matrix("x", dtype="float32")
    loss = ((x * weight).sum(1) ** 2).mean()
    return x, weight, {weight: weight - np.float32(0.01) * tm.grad(loss, weight)}


def in_place_update(weight, mode=PYTHON):
    """A plain function that decays the weight in its own memory."""
    return pytensor.function([], updates={weight: weight * np.float32(0.5)}, mode=mode)


def step_and_plain(devices: tm.Contexts, update_on: str) -> tuple:
    """Our step and PyTensor's, each with a weight of its own."""
    x, weight, updates = weight_and_update()
    step = tm.function([x], updates=updates, contexts=devices, update_on=update_on)
    x, reference, updates = weight_and_update()
    return step, weight, pytensor.function([x], updates=updates, mode=PYTHON), reference


@pytest.mark.parametrize(
    ("devices", "update_on", "linker"),
    [
        (1, "host", "py"),
        (1, "device", "py"),
        (4, "host", "py"),
        (4, "device", "py"),
        (1, "host", "cvm"),
        (4, "device", "cvm"),
        (4, "host", "numba"),
        (1, "device", "numba"),
    ],
)
def test_a_plain_update_between_two_steps_reaches_every_device(eight, devices, update_on, linker):
    """Also where it writes into the array that the step left, and by every linker of PyTensor."""
    step, weight, plain, reference = step_and_plain(eight[:devices], update_on)
    decay, decay_reference = in_place_update(weight, Mode(linker, "fast_run")), in_place_update(reference)
    for _ in range(3):
        step(X)
        plain(X)
        before = weight.get_value(borrow=True).ctypes.data
        decay()
        decay_reference()
        if linker == "py":
            assert weight.get_value(borrow=True).ctypes.data == before  # it worked in place
        assert_close(weight.get_value(), reference.get_value())


@PLACES
@pytest.mark.parametrize("borrow", [False, True])
def test_set_value_reaches_every_device(eight, devices, update_on, borrow):
    step, weight, plain, reference = step_and_plain(eight[:devices], update_on)
    for scale in (1, 2, -1):
        weight.set_value(START * np.float32(scale), borrow=borrow)
        reference.set_value(START * np.float32(scale))
        step(X)
        plain(X)
        assert_close(weight.get_value(), reference.get_value())


@PLACES
def test_a_borrowed_array_changed_in_place_reaches_every_device(eight, devices, update_on):
    """Both the array lent to the variable and the one borrowed from it."""
    step, weight, plain, reference = step_and_plain(eight[:devices], update_on)
    lent = aligned(START)
    weight.set_value(lent, borrow=True)
    evaluate = tm.function([step_input := pt.matrix(dtype="float32")], step_input * weight, contexts=eight[:devices])
    assert_close(evaluate(X), X * START)
    lent *= np.float32(2)
    assert_close(evaluate(X), X * (START * np.float32(2)))
    reference.set_value(START * np.float32(2))
    step(X)
    plain(X)
    weight.get_value(borrow=True)[:] += np.float32(1)
    reference.set_value(reference.get_value() + np.float32(1))
    step(X)
    plain(X)
    assert_close(weight.get_value(), reference.get_value())


@PLACES
def test_get_value_is_a_numpy_array_to_write_into(eight, devices, update_on):
    step, weight, _, _ = step_and_plain(eight[:devices], update_on)
    for _ in range(2):
        step(X)
        for value in (weight.get_value(), weight.get_value(borrow=True), weight.container.storage[0]):
            assert type(value) is np.ndarray
            assert value.flags.writeable
            assert value.dtype == np.float32
        kept = weight.get_value()
        weight.get_value()[:] = 0  # a copy
        np.testing.assert_array_equal(weight.get_value(), kept)


@PLACES
def test_a_value_read_after_a_step_stays_what_it_was(eight, devices, update_on):
    """Later steps write no array that somebody holds."""
    step, weight, _, _ = step_and_plain(eight[:devices], update_on)
    held = []
    for _ in range(4):
        value = weight.get_value(borrow=True)
        held.append((value, value.copy()))
        step(X)
    for value, kept in held:
        np.testing.assert_array_equal(value, kept)


@PLACES
def test_variables_given_each_others_values_share_no_memory(eight, devices, update_on):
    """{a: b, b: a}, {c: a}: a plain update in place of one of them leaves the others alone."""
    x = pt.matrix("x", dtype="float32")
    a, b, c, d = (pytensor.shared(aligned(np.full(64, i, "float32")), name="abcd"[i], borrow=True) for i in range(4))
    mean = tm.average(x.mean(0))
    updates = {a: b, b: a, c: a, d: mean}
    step = tm.function([x], tm.average(x.mean()), updates=updates, contexts=eight[:devices], update_on=update_on)
    step(X)
    values = [variable.get_value() for variable in (a, b, c)]
    for variable in (a, b, c, d):
        in_place_update(variable)()
    for variable, value in zip((a, b, c), values, strict=True):
        assert_close(variable.get_value(), value * np.float32(0.5))
    step(X)
    assert_close(a.get_value(), np.full(64, 0, "float32"))
    assert_close(b.get_value(), np.full(64, 0.5, "float32"))
    assert_close(c.get_value(), np.full(64, 0.5, "float32"))


@PLACES
def test_variables_with_one_new_value_share_no_memory(eight, devices, update_on):
    x = pt.matrix("x", dtype="float32")
    a, b = (pytensor.shared(np.zeros(64, "float32"), name=name) for name in "ab")
    mean = tm.average(x.mean(0))
    step = tm.function([x], updates={a: mean, b: mean}, contexts=eight[:devices], update_on=update_on)
    step(X)
    in_place_update(a)()
    assert_close(b.get_value(), X.mean(0))
    assert_close(a.get_value(), X.mean(0) * np.float32(0.5))


@PLACES
def test_an_input_written_to_a_variable_stays_the_callers(eight, devices, update_on):
    """Neither sees what becomes of the other; nor does a constant that a variable was set to."""
    x, new = pt.matrix("x", dtype="float32"), pt.vector("new", dtype="float32")
    large = np.arange(300_000, dtype="float32")
    a, b = pytensor.shared(START.copy(), name="a"), pytensor.shared(np.zeros(300_000, "float32"), name="b")
    step = tm.function(
        [x, new],
        tm.average(x.mean()),
        updates={a: new, b: pt.constant(large)},
        broadcast=[new],
        contexts=eight[:devices],
        update_on=update_on,
    )
    given = aligned(START * 3)
    step(X, given)
    given[:] = 0
    np.testing.assert_array_equal(a.get_value(), START * 3)
    in_place_update(a)()
    in_place_update(b)()
    assert not given.any()
    step(X, given)
    np.testing.assert_array_equal(b.get_value(), large)


@PLACES
def test_variables_of_every_kind_are_updated(eight, devices, update_on):
    """Scalars, integers, booleans, empty ones, and arrays that lie in memory by columns."""
    x = pt.matrix("x", dtype="float32")
    values = {
        "scalar": np.float32(0.5),
        "integer": np.int64(2**40),
        "boolean": np.array([True, False]),
        "empty": np.zeros((0, 3), "float32"),
        "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    }
    variables = {name: pytensor.shared(value, name=name, borrow=True) for name, value in values.items()}
    scalar, integer, boolean, empty, columns = variables.values()
    updates = {
        scalar: scalar + tm.average(x.mean()),
        integer: integer + tm.total(x.shape[0]),
        boolean: pt.invert(boolean),
        empty: empty * 2,
        columns: columns + 1,
    }
    step = tm.function([x], updates=updates, contexts=eight[:devices], update_on=update_on)
    count = in_place_update(scalar)
    for _ in range(2):
        step(X)
    count()
    step(X)
    expected = np.float32((0.5 + 2 * X.mean()) / 2 + X.mean())
    assert_close(scalar.get_value(), expected)
    assert integer.get_value() == 2**40 + 30
    assert boolean.get_value().tolist() == [False, True]
    assert empty.get_value().shape == (0, 3)
    np.testing.assert_array_equal(columns.get_value(), np.arange(6.0).reshape(2, 3) + 3)


@PLACES
def test_a_step_is_over_when_it_returns(eight, devices, update_on):
    """JAX computes behind the caller's back; a value read at once, and one that must be finite, is the whole one."""
    x = pt.matrix("x", dtype="float32")
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((500, 500)))[0].astype("float32")
    start = np.zeros((500, 500), "float32")
    weight = pytensor.shared(start, name="weight")
    new = weight + tm.average(x.mean())
    for _ in range(12):
        new = new @ turn
    step = tm.function([x], updates={weight: new}, contexts=eight[:devices], update_on=update_on)
    expected = np.full_like(start, X.mean())
    for _ in range(12):
        expected = expected @ turn
    for _ in range(2):
        weight.set_value(start)
        with pytest.raises(tm.NonFiniteError):
            step(X * np.float32(np.nan))
        step(X)
        np.testing.assert_allclose(weight.get_value(borrow=True), expected, rtol=0, atol=1e-5 * abs(expected).max())


def test_a_variable_may_change_its_shape_between_steps(eight):
    weight = pytensor.shared(START, name="weight")
    x = pt.matrix("x", dtype="float32")
    step = tm.function([x], x * weight, contexts=eight[:2])
    assert step(X).shape == (10, 64)
    weight.set_value(START[:3])
    assert_close(step(X[:, :3]), X[:, :3] * START[:3])


# Random generators


def draws(eight: tm.Contexts, devices: int, shards: int, update_on: str = "host") -> tuple:
    generator = pytensor.shared(np.random.default_rng(3), name="generator")
    x = pt.matrix("x", dtype="float32")
    following, noise = pt.random.uniform(size=x.shape, rng=generator, dtype="float64", return_next_rng=True)
    options = {"contexts": eight[:devices], "shards": shards, "update_on": update_on}
    return tm.function([x], noise, updates={generator: following}, **options), generator


def test_shards_draw_different_numbers_and_steps_go_on(eight):
    step, generator = draws(eight, 4, 4)
    first, second = step(X[:8]), step(X[:8])
    assert np.unique(np.concatenate([first, second])).size == 2 * 8 * 64
    assert abs(first.mean() - 0.5) < 0.05
    assert abs(first.var() - 1 / 12) < 0.02
    resumed, fresh = draws(eight, 4, 4)
    fresh.set_value(generator.get_value())
    np.testing.assert_array_equal(resumed(X[:8]), step(X[:8]))


def test_draws_depend_on_the_shard_and_not_on_the_device(eight):
    places = ((1, "host"), (2, "device"), (4, "host"))
    results = [draws(eight, devices, 4, update_on)[0](X[:8]) for devices, update_on in places]
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


def test_a_generator_set_back_draws_the_same_again(eight):
    step, generator = draws(eight, 2, 2)
    start = generator.get_value()
    first = step(X)
    generator.set_value(start)
    np.testing.assert_array_equal(step(X), first)
    assert (step(X) != first).any()


def test_a_generator_without_an_update_stays(eight):
    generator = pytensor.shared(np.random.default_rng(3), name="generator")
    x = pt.matrix("x", dtype="float32")
    _, noise = pt.random.uniform(size=x.shape, rng=generator, dtype="float32", return_next_rng=True)
    before = states(generator)
    step = tm.function([x], noise, contexts=eight[:2])
    np.testing.assert_array_equal(step(X), step(X))
    assert states(generator) == before


def test_default_updates_are_applied_as_in_pytensor(eight):
    """``RandomStream`` writes none into updates=; a mask drawn once for all steps would be silent."""
    data = pytensor.shared(X, name="data")
    x, index = pt.matrix("x", dtype="float32"), pt.ivector("index")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTensor is going to drop these streams
        noise = RandomStream(1).uniform(size=x.shape)
    step = tm.function([index], noise, givens={x: data[index]}, contexts=eight[:2])
    rows = np.arange(6, dtype="int32")
    first, second = step(rows), step(rows)
    assert np.unique([first, second]).size == 2 * 6 * 64
    assert len(step.cut.generators) == 1


@pytest.mark.parametrize("update_on", ["host", "device"])
def test_a_draw_above_the_cut_is_one_for_the_batch(eight, update_on):
    generator, total = pytensor.shared(np.random.default_rng(3), name="generator"), pytensor.shared(np.zeros(3))
    x = pt.matrix("x", dtype="float32")
    following, noise = pt.random.normal(0, 1, size=(3,), rng=generator, return_next_rng=True)
    updates = {generator: following, total: total + noise}
    step = tm.function([x], [noise, tm.average(x.mean())], updates=updates, contexts=eight[:2], update_on=update_on)
    first, second = step(X)[0], step(X)[0]
    assert (first != second).all()
    assert_close(total.get_value(), first + second)


def test_a_plain_function_advances_the_same_generator(eight):
    step, generator = draws(eight, 2, 2)
    following, noise = pt.random.normal(0, 1, size=(3,), rng=generator, return_next_rng=True)
    plain = pytensor.function([], noise, updates={generator: following}, mode=PYTHON)
    results = [step(X), step(X)]
    numbers = [plain(), plain()]
    results += [step(X)]
    assert np.unique(results).size == 3 * X.size
    assert np.unique(numbers).size == 6


# The process


def test_importing_changes_no_flag_of_jax_makes_no_device_and_warns_of_nothing():
    program = """
import jax
from jax._src import xla_bridge
before = dict(jax.config.values)
import theano_mgpu
after = dict(jax.config.values)
assert before == after, {name for name in after if before.get(name) != after[name]}
assert not xla_bridge.backends_are_initialized()
import theano_mgpu.lowering.graph, jax.numpy
assert jax.numpy.arange(2.0).dtype == "float32"
"""
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, timeout=120, capture_output=True)


def aligned(values: np.ndarray) -> np.ndarray:
    """A copy at an address that JAX can take over without copying."""
    space = np.zeros(values.nbytes + 64, "uint8")
    start = -space.ctypes.data % 64
    array = space[start : start + values.nbytes].view(values.dtype).reshape(values.shape)
    array[...] = values
    return array
