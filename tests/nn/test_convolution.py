"""Convolution: numpy and XLA against PyTorch, finite differences and each other."""

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from theano_mgpu.nn import conv2d
from theano_mgpu.nn.convolution import Conv2d, Conv2dFilterGradient, Conv2dInputGradient

SETTINGS = {
    "pointwise": ((2, 3, 4, 3), (1, 1, 3, 2), {}),
    "pointwise_stride": ((2, 5, 4, 2), (1, 1, 2, 3), {"stride": (2, 3)}),
    "padded": ((1, 4, 5, 2), (3, 3, 2, 2), {"padding": 1}),
    "stride": ((1, 6, 5, 2), (3, 2, 2, 2), {"stride": 2, "padding": ((1, 0), (0, 2))}),
    "dilation_groups": ((1, 6, 6, 4), (2, 3, 2, 2), {"dilation": 2, "groups": 2, "padding": "same"}),
}


def op_of(kind=Conv2d, **settings):
    """The op that conv2d builds, or a gradient with its settings."""
    channels = 4 * settings.get("groups", 1)
    y = conv2d(pt.zeros((1, 32, 32, channels)), pt.zeros((1, 1, 4, channels)), **settings)
    return kind(*y.owner.op.settings)


@pytest.mark.parametrize(("way", "dtype"), [("perform", "float64"), ("lower", "float32")])
def test_result_and_gradients_are_those_of_pytorch(ops, conv2d_case, way, dtype):
    case = {k: v if k == "settings" else v.astype(dtype) for k, v in conv2d_case.items()}
    x, w, g = case["x"], case["w"], case["g"]
    # Sums of at most 150 products of normal numbers.
    close = {"rtol": 0, "atol": 200 * np.finfo(dtype).eps}
    expected = [(Conv2d, (x, w), "y")]
    expected += [(Conv2dInputGradient, (x, w, g), "x_gradient"), (Conv2dFilterGradient, (x, w, g), "w_gradient")]
    for kind, values, name in expected:
        (result,) = getattr(ops, way)(op_of(kind, **case["settings"]), *values)
        assert result.dtype == dtype
        np.testing.assert_allclose(result, case[name], **close)


@pytest.mark.parametrize("name", SETTINGS)
def test_gradients_are_those_of_finite_differences(ops, name):
    x_shape, w_shape, options = SETTINGS[name]
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=x_shape), rng.normal(size=w_shape)
    ops.verify_gradient(lambda x, w: conv2d(x, w, **options), x, w)
    ops.verify_second_gradient(lambda x, w: conv2d(x, w, **options), x, w)


@given(st.data())
@settings(max_examples=8, deadline=None)
def test_lowering_agrees_with_perform_on_any_shape(ops, data):
    def draw(low, high):
        return data.draw(st.integers(low, high))

    groups, size, dilation = draw(1, 2), (draw(1, 3), draw(1, 3)), (draw(1, 2), draw(1, 2))
    window = [(s - 1) * d + 1 for s, d in zip(size, dilation, strict=True)]
    padding = data.draw(st.sampled_from([0, 1, ((0, 2), (1, 0)), "same"]))
    options = {"stride": (draw(1, 3), draw(1, 3)), "dilation": dilation, "groups": groups, "padding": padding}
    rng = np.random.default_rng(draw(0, 99))
    x = rng.normal(size=(draw(1, 2), draw(window[0], 8), draw(window[1], 8), groups * draw(1, 2)))
    w = rng.normal(size=(*size, x.shape[3] // groups, groups * draw(1, 2)))
    (y,) = ops.perform(op_of(**options), x, w)
    g = rng.normal(size=y.shape)
    ops.compare_lowering(op_of(**options), x, w)
    ops.compare_lowering(op_of(Conv2dInputGradient, **options), x, w, g)
    ops.compare_lowering(op_of(Conv2dFilterGradient, **options), x, w, g)


def test_gradient_of_a_filter_that_xla_aborts_on(ops):
    options = {"stride": (3, 2), "dilation": (2, 1), "padding": 1}
    x, w, g = np.ones((1, 7, 4, 1)), np.ones((3, 2, 1, 1)), np.arange(6.0).reshape(1, 2, 3, 1)
    ops.compare_lowering(op_of(Conv2dInputGradient, **options), x, w, g)


@pytest.mark.parametrize(("length", "stride", "expected"), [(7, 2, 4), (8, 3, 3), (5, 1, 5)])
def test_same_padding_gives_length_over_stride_and_pads_the_bottom_first(ops, length, stride, expected):
    x = np.arange(1.0, length + 1).reshape(1, length, 1, 1)
    w = np.ones((2, 1, 1, 1))
    (y,) = ops.perform(op_of(stride=stride, padding="same"), x, w)
    padded = np.append(x.ravel(), 0) if stride == 1 or (expected - 1) * stride + 2 > length else x.ravel()
    np.testing.assert_array_equal(y.ravel(), [padded[i * stride] + padded[i * stride + 1] for i in range(expected)])


def test_half_precision_is_summed_in_single(ops):
    # In half precision 2048 + 1 is 2048.
    x, w = np.ones((1, 1, 1, 4096), "float16"), np.ones((1, 1, 4096, 1), "float16")
    assert ops.perform(op_of(), x, w)[0] == 4096


def test_shapes_are_known_before_running(ops):
    x, w = pt.tensor4("x"), pt.tensor4("w")
    y = conv2d(x, w, stride=2, padding=1, dilation=(1, 2))
    values = {x: np.zeros((3, 9, 8, 2)), w: np.zeros((3, 2, 2, 5))}
    shape = pytensor.function([x, w], y.shape, mode=ops.mode)
    assert not any(isinstance(node.op, Conv2d) for node in shape.maker.fgraph.toposort())
    assert tuple(shape(*values.values())) == ops.evaluate(y, values).shape == (3, 5, 4, 5)
    static = conv2d(pt.tensor(shape=(None, 9, 8, 2)), pt.tensor(shape=(3, 3, 2, 5)), padding="same", stride=2)
    assert static.type.shape == (None, 5, 4, 5)


def test_an_empty_batch_gives_an_empty_result_and_no_gradient(ops):
    x, w, g = np.zeros((0, 4, 4, 2)), np.ones((3, 3, 2, 3)), np.zeros((0, 2, 2, 3))
    for run in (ops.perform, ops.lower):
        assert run(op_of(), x, w)[0].shape == g.shape
        assert run(op_of(Conv2dInputGradient), x, w, g)[0].shape == x.shape
        np.testing.assert_array_equal(run(op_of(Conv2dFilterGradient), x, w, g)[0], 0 * w)


@pytest.mark.parametrize(
    ("x_shape", "w_shape", "options", "message"),
    [
        ((1, 8, 8, 3), (3, 3, 4, 8), {}, r"axis 2 is .* x has shape \(1, 8, 8, 3\), w has shape \(3, 3, 4, 8\)"),
        ((1, 8, 8, 4), (3, 3, 2, 3), {"groups": 2}, "multiple of groups"),
        ((1, 2, 8, 3), (3, 3, 3, 8), {}, r"no window of size \(3, 3\) .* \(2, 8\)"),
    ],
)
def test_shapes_that_do_not_fit_are_named(ops, x_shape, w_shape, options, message):
    with pytest.raises(ValueError, match=rf"conv2d\(\): .*{message}"):
        conv2d(pt.tensor(shape=x_shape), pt.tensor(shape=w_shape), **options)
    op, x, w = op_of(**options), np.zeros(x_shape), np.zeros(w_shape)
    with pytest.raises(ValueError, match=message):
        op.perform(None, [x, w], [[None]])
    with pytest.raises(ValueError, match=message):
        ops.lower(op, x, w)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stride": 0}, "stride is an int of at least 1"),
        ({"dilation": (1, 2, 3)}, "dilation is an int"),
        ({"padding": -1}, "padding is an int of at least 0"),
        ({"padding": "full"}, "padding is .*'full'"),
        ({"padding": ((1, 1), (1, 1), (1, 1))}, r"padding is \(\(top, bottom\), \(left, right\)\)"),
        ({"groups": 0}, "groups is an int of at least 1"),
    ],
)
def test_settings_that_make_no_sense_are_named(options, message):
    with pytest.raises(ValueError, match=rf"conv2d\(\): {message}"):
        conv2d(pt.tensor4(), pt.tensor4(), **options)


def test_dtypes_must_be_equal_floats():
    x, w = pt.tensor4(dtype="float32"), pt.tensor4(dtype="float64")
    with pytest.raises(TypeError, match=r'x has dtype float32 and w has dtype float64.*\.astype\("float32"\)'):
        conv2d(x, w)
    with pytest.raises(TypeError, match=r'x has dtype uint8.*x\.astype\("float32"\)'):
        conv2d(x.astype("uint8"), w)
    with pytest.raises(ValueError, match=r"w has 2 axes.*expected 4"):
        conv2d(x, pt.matrix(dtype="float32"))
