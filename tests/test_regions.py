"""``recompute`` in plain PyTensor, where a region is its block: values, derivatives, form, and what is refused."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from comparison import PYTHON
from pytensor.gradient import pushforward, verify_grad
from pytensor.graph.basic import equal_computations

import theano_mgpu as tm
from theano_mgpu.regions import Region, Return

x = pt.matrix("x", dtype="float64")
y = pt.matrix("y", dtype="float64")
SQUARE = np.random.default_rng(0).standard_normal((3, 3))


def cubes(x):
    return pt.tanh(x) ** 3 @ x


def test_a_region_is_its_block():
    result = pytensor.function([x], tm.recompute(cubes)(x), mode=PYTHON)(SQUARE)
    np.testing.assert_allclose(result, np.tanh(SQUARE) ** 3 @ SQUARE, rtol=1e-12)


def test_gradients_agree_with_finite_differences():
    rng = np.random.default_rng(1)
    both = tm.recompute(lambda x, y: [cubes(x), x * y])
    verify_grad(
        lambda x, y: pt.sin(both(x, y)[0]).sum() + both(y, x)[1].sum(), [SQUARE, SQUARE.T], rng=rng, mode=PYTHON
    )


def test_derivatives_of_derivatives_agree_with_finite_differences():
    def penalty(x):
        return (pytensor.grad(tm.recompute(cubes)(x).sum(), x) ** 2).sum()

    verify_grad(penalty, [SQUARE], rng=np.random.default_rng(1), mode=PYTHON)


@pytest.mark.parametrize("use_op", [True, False])
def test_derivatives_forward_are_the_blocks(use_op):
    tangent = pt.matrix("tangent", dtype="float64")
    ours, stock = (
        pushforward(f(x), x, tangent, use_op_pushforward=use_op) for f in (tm.recompute(lambda x: x**3), lambda x: x**3)
    )
    one, other = pytensor.function([x, tangent], [ours, stock], mode=PYTHON)(SQUARE, SQUARE.T)
    np.testing.assert_array_equal(one, other)


def test_the_backward_pass_of_a_region_returns_once_with_all_cotangents():
    first, second, _ = tm.recompute(lambda x: (x * 2, (x**2).sum(), x + 1))(x)
    gradient = pytensor.grad(first.sum() + second, x)
    found = {v.owner for v in pytensor.graph.traversal.ancestors([gradient]) if v.owner}
    (back,) = [node for node in found if isinstance(node.op, Return)]
    assert [v.type.ndim for v in back.outputs] == [2, 0]


def test_shapes_are_known_without_computing():
    wide = pt.tensor("wide", shape=(None, 3), dtype="float32")
    result = tm.recompute(lambda x: x[:, :2])(wide)
    assert result.type.shape == (None, 2)
    shape = pytensor.function([wide], result.shape, mode=PYTHON)
    assert list(shape(np.zeros((5, 3), "float32"))) == [5, 2]
    assert not [n for n in shape.maker.fgraph.toposort() if type(n.op).__name__ in ("Enter", "Leave")]


def test_results_have_the_blocks_form():
    class Pair(NamedTuple):
        one: object
        two: object

    def block(x, y):
        return Pair(x, [y, (x + y,)])

    pair = tm.recompute(block)(x, y=y)
    assert isinstance(pair, Pair)
    assert isinstance(pair.two, list)
    assert isinstance(pair.two[1], tuple)
    values = pytensor.function([x, y], [pair.one, pair.two[0], pair.two[1][0]], mode=PYTHON)(SQUARE, SQUARE.T)
    for value, expected in zip(values, (SQUARE, SQUARE.T, SQUARE + SQUARE.T), strict=True):
        np.testing.assert_array_equal(value, expected)


def test_integers_and_generators_are_arguments_too():
    rng = pytensor.shared(np.random.default_rng(0), name="rng")
    labels = pt.ivector("labels")

    def block(x, labels, rng):
        next_rng, noise = rng.normal(size=x.shape)
        return next_rng, x[labels] * (1 + noise[labels])

    next_rng, result = tm.recompute(block)(x, labels, rng)
    gradient = pytensor.grad(result.sum(), x)
    draw = pytensor.function([x, labels], gradient, updates={rng: next_rng}, mode=PYTHON)
    expected = np.random.default_rng(0)
    for _ in range(2):
        noise = expected.normal(size=(3, 3))
        got = draw(SQUARE, np.array([0, 2], "int32"))
        np.testing.assert_array_equal(got, [1 + noise[0], np.zeros(3), 1 + noise[2]])


def test_calls_of_one_block_are_regions_of_their_own():
    block = tm.recompute(cubes)
    assert not equal_computations([block(x)], [block(x)])
    assert Region("a") != Region("a")
    merged = pytensor.function([x], [block(x), block(x)], mode=PYTHON).maker.fgraph
    assert sum(type(node.op).__name__ == "Enter" for node in merged.apply_nodes) == 2


@pytest.mark.parametrize("block", [None, 3, x])
def test_a_block_is_a_function(block):
    with pytest.raises(TypeError, match=r"recompute\(\): expected a function .* got .*second call"):
        tm.recompute(block)


@pytest.mark.parametrize(
    ("arguments", "keywords", "found"),
    [
        ((), {}, r"recompute\(cubes\)\(\): expected at least one variable"),
        ((np.ones(3),), {}, "argument 1 should be a symbolic variable, not ndarray"),
        ((x, True), {}, "argument 2 should be a symbolic variable, not bool True"),
        ((x,), {"train": False}, "train should be a symbolic variable, not bool False"),
        ((pt.constant(np.ones((2, 2))),), {}, "argument 1 should be a symbolic variable, not the constant"),
        (([x, x],), {}, "argument 1 should be a symbolic variable, not list"),
    ],
)
def test_arguments_are_variables(arguments, keywords, found):
    with pytest.raises(TypeError, match=found):
        tm.recompute(cubes)(*arguments, **keywords)


@pytest.mark.parametrize("result", [None, np.ones(3), [], {"x": x}, (x, 1.0)])
def test_results_are_variables(result):
    def block(x):
        return result

    with pytest.raises(TypeError, match=r"recompute\(block\)\(\): block should return a variable.* but returned"):
        tm.recompute(block)(x)
