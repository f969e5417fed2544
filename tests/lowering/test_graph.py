"""Graphs that PyTensor's JAX mode takes, and those that it refuses for symbolic sizes alone, below the cut."""

from __future__ import annotations

import warnings

import jax
import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from comparison import PYTHON, Graph, assert_close, compare_with_pytensor, plain
from pytensor.compile.builders import OpFromGraph
from pytensor.compile.sharedvalue import SharedVariable
from pytensor.graph.traversal import ancestors
from pytensor.raise_op import Assert
from pytensor.tensor.special import log_softmax, softmax

import theano_mgpu as tm
from theano_mgpu.cut import cut
from theano_mgpu.lowering.graph import lower

try:
    from pytensor.conditional.op import ifelse
except ImportError:  # PyTensor up to 3.2
    from pytensor.ifelse import ifelse

# Ten examples over three devices: shards of 4, 3 and 3.
X = np.random.default_rng(0).standard_normal((10, 6)).astype("float32")
W = np.random.default_rng(1).standard_normal(6).astype("float32")


def matrix_graph(outputs) -> Graph:
    """``outputs(x, w)`` of a batch and a shared vector."""
    x, w = pt.matrix("x", dtype="float32"), pytensor.shared(W, name="w")
    return Graph([x], list(outputs(x, w)))


def reshaped(x, w):
    pairs = x.reshape((x.shape[0] * x.shape[1] // 2, 2))
    loss = (pt.tanh(pairs * w[:2]) ** 2).mean()
    yield from (tm.average(loss), tm.grad(loss, w), pairs.reshape((x.shape[0], -1)))


def sliced(x, w):
    half = x[:, : x.shape[1] // 2] * w[: x.shape[1] // 2]
    loss = (half[: x.shape[0]] ** 2).mean()
    yield from (half[-x.shape[0] :], tm.average(loss), tm.grad(loss, w))


def sized(x, w):
    ones = pt.ones((x.shape[0], 2), dtype="float32")
    ranks = pt.arange(x.shape[1]).astype("float32")
    yield from (pt.concatenate([ones, x], axis=1), x * ranks, pt.zeros_like(x) + w, pt.tile(w, (x.shape[0], 2)))


def elementwise(x, w):
    chosen = pt.switch(x > 0, x, 0.1 * x)
    yield from (
        pt.clip(x, -1, 1),
        chosen,
        pt.sigmoid(x) * pt.log1p(pt.exp(x)),
        pt.erf(x),
        pt.isnan(x),
        x.astype("int32"),
    )


def along_axes(x, w):
    yield from (x.max(1), pt.argmax(x, axis=1), pt.sort(x, axis=1), pt.cumsum(x, axis=1), pt.logsumexp(x, axis=1))
    yield from (softmax(x, axis=1), x.std(1), (x > 0).any(1), x.prod(1), x.argsort(1))


def algebra(x, w):
    outer = x[:, :, None] * x[:, None, :]
    yield from (pt.matmul(outer, outer), outer @ w, pt.einsum("nij,j->ni", outer, w), pt.linalg.norm(x, axis=1))


def indexed(x, w):
    rows = pt.arange(x.shape[0])
    columns = pt.argmax(x, axis=1)
    loss = (x * w)[rows, columns].mean()
    yield from (
        x[rows, columns],
        x[:, ::-1],
        x[:, [0, 2, 2]],
        pt.set_subtensor(x[:, 1], 0),
        pt.inc_subtensor(x[:, :2], 1),
    )
    yield from (tm.average(loss), tm.grad(loss, w))


@pytest.mark.parametrize("outputs", [reshaped, sliced, sized, elementwise, along_axes, algebra, indexed])
def test_ops_of_pytensor_run_on_shards_of_two_sizes(eight, outputs):
    compare_with_pytensor(lambda: matrix_graph(outputs), [(X,)], eight[:3])


def recurrent() -> Graph:
    """A recurrent layer over a batch of unknown size and length."""
    weight = pytensor.shared(np.random.default_rng(2).standard_normal((3, 3)).astype("float32") / 3, name="weight")
    sequences = pt.tensor3("sequences", dtype="float32")  # (examples, time, features)
    start = pt.zeros((sequences.shape[0], 3), dtype="float32")
    states = pytensor.scan(
        lambda now, before: pt.tanh(now + before @ weight),
        sequences=[sequences.dimshuffle(1, 0, 2)],
        outputs_info=[start],
        return_updates=False,
    )
    loss = (states[-1] ** 2).mean()
    outputs = [states.dimshuffle(1, 0, 2), tm.average(loss)]
    return Graph([sequences], outputs, {weight: weight - np.float32(0.1) * tm.grad(loss, weight)})


def test_scan_and_its_gradient_run_over_a_batch_of_unknown_size(eight):
    sequences = np.random.default_rng(3).standard_normal((7, 5, 3)).astype("float32")
    compare_with_pytensor(recurrent, [(sequences,), (sequences[:4, :3],)], eight[:2])


def test_scan_over_known_numbers_alone_gives_a_known_number(eight):
    def outputs(x, w):
        steps = pytensor.scan(
            lambda i, total: total + i,
            sequences=[pt.arange(x.shape[1])],
            outputs_info=[pt.as_tensor(np.int64(0))],
            return_updates=False,
        )
        yield x * steps[-1].astype("float32")

    with pytensor.config.change_flags(mode="FAST_COMPILE"):  # the loop runs in Python while JAX traces
        compare_with_pytensor(lambda: matrix_graph(outputs), [(X,)], eight[:3])


def embedding(rows) -> Graph:
    table = pytensor.shared(np.random.default_rng(0).standard_normal((7, 4)).astype("float32"), name="table")
    index = pt.imatrix("index")
    vectors = rows(table, index)
    loss = (vectors**2).sum((1, 2)).mean()
    return Graph([index], [vectors, tm.average(loss)], {table: table - np.float32(0.1) * tm.grad(loss, table)})


@pytest.mark.parametrize(
    "rows",
    [
        lambda table, index: table[index],
        lambda table, index: table[index.reshape((-1,))].reshape((index.shape[0], index.shape[1], 4)),
        lambda table, index: pt.take(table, index, axis=0),
    ],
    ids=["matrix of indices", "flat", "take"],
)
def test_embeddings_and_their_gradients_run(eight, rows):
    """Rows that stand several times in a batch, in one shard or in two, add up."""
    index = np.array([[0, 1], [1, 1], [6, 0], [3, 2], [1, 5]], "int32")
    compare_with_pytensor(lambda: embedding(rows), [(index,), (index[:2],)], eight[:3])


@pytest.mark.parametrize("name", ["normal", "bernoulli", "integers"])
def test_draws_have_the_batchs_size(eight, name):
    generator = pytensor.shared(np.random.default_rng(3), name="generator")
    x = pt.matrix("x", dtype="float32")
    arguments = {"normal": (0, 1), "bernoulli": (0.5,), "integers": (0, 4)}[name]
    draw = getattr(pt.random, name)
    following, noise = draw(*arguments, size=x.shape, rng=generator, return_next_rng=True)
    found = tm.function([x], noise, updates={generator: following}, contexts=eight[:2])(X)
    assert (found.shape, found.dtype) == (X.shape, noise.dtype)
    mean, spread = {"normal": (0, 1), "bernoulli": (0.5, 0.5), "integers": (1.5, 1.12)}[name]
    assert abs(found.mean() - mean) < 4 * spread / np.sqrt(found.size)
    assert len({row.tobytes() for row in found.reshape(5, 12)}) == 5


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("update_on", ["host", "device"])
def test_large_constants_travel_as_arguments_in_their_own_dtype(eight, dtype, update_on):
    """XLA folds constants that it sees, slowly; and JAX makes float64 arrays float32 outside of its x64 mode."""
    table = np.random.default_rng(0).standard_normal((300_000,)).astype(dtype)

    def build() -> Graph:
        x, total = pt.matrix("x", dtype=dtype), pytensor.shared(np.zeros((), dtype), name="total")
        value = (x.mean() * pt.constant(table)).sum()
        return Graph([x], None, {total: total + tm.average(value) + pt.constant(table[::-1].copy())[7]})

    step = compare_with_pytensor(build, plain(build, [(X.astype(dtype),)]), eight[:2], update_on=update_on)
    assert [constant.dtype for constant in step._device_part.constants] == [dtype]
    (total,) = step.get_shared()
    exact = X.astype(dtype).mean() * table.sum(dtype="float64") + table[-8]
    assert total.get_value() == pytest.approx(exact, rel=1e-12 if dtype == "float64" else 1e-3)


def test_small_constants_stay_in_the_graph():
    x = pt.matrix("x", dtype="float32")
    assert lower(cut([x], [x * W], {}).device).constants == ()


# Assertions


@pytest.mark.parametrize("update_on", ["host", "device"])
@pytest.mark.parametrize("place", ["below the cut", "above the cut"])
def test_assertions_hold_on_the_devices(eight, place, update_on):
    """One failing example in the last shard is enough, and nothing is changed."""
    x = pt.matrix("x", dtype="float32")
    count = pytensor.shared(np.float32(0), name="count")
    positive = Assert("every {x} must be > 0")
    if place == "below the cut":
        outputs, new = positive(x, (x > 0).all()) * 2, count + 1
    else:
        low = tm.average(x.min())
        outputs, new = x * 2, count + positive(low, low > 0) / low
    step = tm.function([x], outputs, updates={count: new}, contexts=eight[:3], update_on=update_on)
    good, bad = np.abs(X) + 1, np.abs(X) + 1
    bad[-1, -1] = -1e3
    assert_close(step(good), good * 2)
    with pytest.raises(AssertionError, match=r"step\(\): every \{x\} must be > 0"):
        step(bad)
    assert count.get_value() == 1
    assert_close(step(good), good * 2)
    assert count.get_value() == 2


def test_assertions_about_shapes_are_checked_while_tracing(eight):
    x = pt.matrix("x", dtype="float32")
    step = tm.function([x], Assert("six columns")(x, pt.eq(x.shape[1], 6)) * 2, contexts=eight[:2])
    assert_close(step(X), X * 2)
    with pytest.raises(AssertionError, match="six columns"):
        step(X[:, :5])
    assert_close(step(X), X * 2)


def test_an_assertion_inside_a_loop_is_reported():
    """It has no way out of a compiled loop: a warning says so before anything runs."""
    x = pt.matrix("x", dtype="float32")
    states = pytensor.scan(
        lambda row, total: total + Assert("positive")(row, (row > 0).all()),
        sequences=[x.T],
        outputs_info=[pt.zeros((x.shape[0],), dtype="float32")],
        return_updates=False,
    )
    step = tm.function([x], states[-1], contexts="cpu0")
    with pytest.warns(UserWarning, match=r"Assert.*not checked inside a loop: positive"):
        step(X)


# Refused by name


def masked(x, k):
    chosen = x[x > 0]
    chosen.name = "chosen"
    return chosen.max()


def nonzero(x, k):
    return pt.nonzero(x)[0].sum()


def unique(x, k):
    return pt.unique(x).sum()


@pytest.mark.parametrize("shape_of_the_data", [masked, nonzero, unique])
def test_shapes_that_depend_on_the_data_are_refused_before_compiling(eight, shape_of_the_data):
    x, k = pt.matrix("x", dtype="float32"), pt.iscalar("k")
    value = shape_of_the_data(x, k)
    with pytest.raises(tm.UnsupportedGraphError, match=r"(?s)test_graph\.py.*depends on the data.*mask") as caught:
        tm.function([x], tm.average(value), contexts=eight[:2])
    if shape_of_the_data is masked:
        assert "chosen" in str(caught.value)


@pytest.mark.parametrize(
    "value",
    [
        lambda x, k: x[:, :k],
        lambda x, k: x.sum(1) + pt.arange(k).sum(),
        lambda x, k: pt.concatenate([x, pt.zeros((x.shape[0], k), dtype="float32")], axis=1),
    ],
    ids=["slice", "range", "zeros"],
)
def test_sizes_that_change_with_an_inputs_value_are_refused_with_their_line(eight, value):
    x, k = pt.matrix("x", dtype="float32"), pt.iscalar("k")
    step = tm.function([x, k], value(x, k), contexts=eight[:2])
    with pytest.raises(tm.UnsupportedGraphError, match=r"test_graph\.py"):
        step(X, 2)


def selections(x, w):
    positive = x * w
    yield from (tm.total(pt.where(positive > 0, positive, 0).sum()), tm.total(positive[positive > 0].sum()))


def test_masks_that_need_no_shape_of_the_data_run(eight):
    """``where``, which the refusal recommends, and sums of what a mask selects."""
    compare_with_pytensor(lambda: matrix_graph(selections), [(X,)], eight[:3])


# Graphs in graphs


def test_a_graph_as_an_op_runs_with_its_gradient(eight):
    def build() -> Graph:
        a, b = pt.matrix(dtype="float32"), pt.vector(dtype="float32")
        block = OpFromGraph([a, b], [pt.tanh(a * b), a.reshape((a.shape[0], -1)).sum(1)])
        graph = matrix_graph(lambda x, w: block(x, w))
        (x,), (hidden, _) = graph.inputs, graph.outputs
        w = next(v for v in ancestors([hidden]) if isinstance(v, SharedVariable))
        return Graph([x], [*graph.outputs, tm.grad((hidden**2).mean(), w)])

    compare_with_pytensor(build, [(X,)], eight[:3])


@pytest.mark.parametrize("sign", [1, -1])
def test_ifelse_takes_the_branch_that_its_condition_says(eight, sign):
    def build() -> Graph:
        graph = matrix_graph(lambda x, w: [x * w])
        (x,), (product,) = graph.inputs, graph.outputs
        w = next(v for v in ancestors([product]) if isinstance(v, SharedVariable))
        switch = pt.scalar("switch", dtype="float32")
        chosen = ifelse(switch > 0, product, pt.tanh(product))
        return Graph([x, switch], [chosen, tm.grad((chosen**2).mean(), w)])

    compare_with_pytensor(build, [(X, np.float32(sign))], eight[:3])


# Stability


def extreme_log_softmax(x):
    return -log_softmax(x, axis=1)[:, 0]


def written_out_log_softmax(x):
    return -pt.log(softmax(x, axis=1))[:, 0]


def softplus(x):
    return pt.log(1 + pt.exp(x)).sum(1)


def binary_cross_entropy(x):
    return -pt.log(pt.sigmoid(x)).sum(1) - pt.log(1 - pt.sigmoid(x)).sum(1)


@pytest.mark.parametrize("loss", [extreme_log_softmax, written_out_log_softmax, softplus, binary_cross_entropy])
def test_losses_of_logits_of_200_are_finite_as_in_plain_pytensor(eight, loss):
    """And so are their gradients; float32 exponentials overflow from 89 on."""

    def build() -> Graph:
        graph = matrix_graph(lambda x, w: [])
        weight = pytensor.shared(np.ones(3, "float32"), name="weight")
        (x,) = graph.inputs
        mean = loss(x * weight).mean()
        return Graph([x], [loss(x * weight), tm.average(mean), tm.grad(mean, weight)])

    logits = np.array([[200, -200, 0], [-200, 200, 5], [0, 1, -200], [200, 200, 200]], "float32")
    reference = plain(build, [(logits,)], mode=PYTHON)
    assert all(np.isfinite(output).all() for output in reference.outputs[0])
    compare_with_pytensor(build, reference, eight[:2])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_value_has_the_dtype_that_the_graph_declares(dtype):
    """Whatever JAX's promotion would make of it: outputs of mixed integers and floats, and of comparisons."""
    x, i = pt.matrix("x", dtype=dtype), pt.ivector("i")
    outputs = [x * i[:, None].astype("int8"), x.sum(1), i / 2, i**2, x > 0, x.mean(1), i + np.int64(1), -i]
    program = lower(cut([x, i], outputs, {}).device)
    arguments = {"x": X.astype(dtype), "i": np.arange(10, dtype="int32")}
    with jax.enable_x64(True):
        values = jax.jit(lambda *given: program.trace(given))(*(arguments[v.name] for v in program.graph.inputs))
    assert [value.dtype.name for value in values] == [output.dtype for output in outputs]


def test_lowering_warns_of_nothing():
    graph = matrix_graph(along_axes)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lower(cut(graph.inputs, graph.outputs, {}).device)
