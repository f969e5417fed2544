"""Normalising images: numpy's formula, and what is refused."""

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

from theano_mgpu.nn import normalise_images


def images(dtype="uint8", channels=3):
    return pt.tensor("images", shape=(None, 4, 5, channels), dtype=dtype)


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_pixels_get_mean_and_deviation_of_imagenet(ops, dtype):
    x = images(dtype)
    values = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3)).astype(dtype)
    y = normalise_images(x)
    assert (y.type.dtype, y.type.shape) == ("float32", (None, 4, 5, 3))
    expected = (values / 255.0 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(ops.evaluate(y, {x: values}), expected, rtol=1e-5, atol=1e-6)


def test_mean_and_deviation_may_be_others(ops):
    x = images(channels=1)
    values = np.arange(20, dtype="uint8").reshape(1, 4, 5, 1)
    y = normalise_images(x, mean=(0.1307,), std=(0.3081,))
    np.testing.assert_allclose(ops.evaluate(y, {x: values}), (values / 255 - 0.1307) / 0.3081, rtol=1e-5)


def test_gradients_reach_float_images(ops):
    x = images("float32")
    gradient = pytensor.grad(normalise_images(x).sum(), x)
    expected = np.broadcast_to(1 / (255 * np.array([0.229, 0.224, 0.225])), (2, 4, 5, 3))
    np.testing.assert_allclose(ops.evaluate(gradient, {x: np.ones((2, 4, 5, 3), "float32")}), expected, rtol=1e-5)


def test_arguments_that_make_no_sense_are_named():
    with pytest.raises(ValueError, match=r"normalise_images\(\): images have shape \(None,\); expected \(examples"):
        normalise_images(pt.vector())
    with pytest.raises(TypeError, match=r"images have dtype int64; expected uint8 or a float"):
        normalise_images(images("int64"))
    with pytest.raises(ValueError, match="images have 1 channels, but mean and std 3"):
        normalise_images(images(channels=1))
    for mean, std in (((0.5, 0.5), (1, 1, 1)), ((0.5,) * 3, (1, 0, 1)), (0.5, 0.5)):
        with pytest.raises(ValueError, match="mean and std are one number a channel each, std above 0"):
            normalise_images(images(), mean=mean, std=std)
