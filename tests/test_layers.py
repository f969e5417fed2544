"""Layers: their parameters, what they register, and numpy's formulas."""

from __future__ import annotations

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.compile.mode import Mode

from theano_mgpu import layers, nn
from theano_mgpu.store import ParameterStore

PYTHON = Mode("py", None)
IMAGE_SHAPE = (None, 8, 8, 4)


def evaluate(inputs, output, *values, updates=None):
    return pytensor.function(inputs, output, updates=updates, mode=PYTHON)(*values)


def image_batch(shape=IMAGE_SHAPE):
    return pt.tensor("x", shape=shape, dtype="float32")


@pytest.fixture
def values():
    return np.random.default_rng(0).normal(1, 2, (3, 8, 8, 4)).astype("float32")


def randomised(store):
    """Other values than the initial zeros and ones."""
    rng = np.random.default_rng(1)
    store.set_values({name: rng.uniform(0.5, 2, value.shape) for name, value in store.get_values().items()})
    return store.get_values()


def test_conv2d_is_the_operation_with_a_weight_and_a_bias_from_the_store(values):
    store, x = ParameterStore(), image_batch()
    options = {"stride": 2, "padding": (1, 2), "dilation": 2, "groups": 2}
    y = layers.conv2d(store, "conv", x, 6, (3, 5), **options)
    assert {name: store[name].type.shape for name in store} == {"conv.weight": (3, 5, 2, 6), "conv.bias": (6,)}
    assert (store["conv.weight"].tag.decay, store["conv.bias"].tag.decay) == (True, False)
    assert (store["conv.bias"].get_value() == 0).all()
    set_values = randomised(store)
    plain = nn.conv2d(x, pt.constant(set_values["conv.weight"]), **options)
    np.testing.assert_allclose(
        evaluate([x], y, values), evaluate([x], plain, values) + set_values["conv.bias"], rtol=1e-5
    )


def test_conv2d_begins_as_he_normal_without_a_bias_where_it_is_switched_off():
    store = ParameterStore()
    layers.conv2d(store, "conv", image_batch((None, 8, 8, 32)), 64, 3, bias=False)
    assert list(store) == ["conv.weight"]
    assert store["conv.weight"].get_value().std() == pytest.approx(np.sqrt(2 / (9 * 32)), rel=0.02)


def test_dense_is_a_matrix_product_and_a_bias():
    store, x = ParameterStore(), image_batch((None, 5))
    y = layers.dense(store, "fc", x, 3)
    assert {name: store[name].type.shape for name in store} == {"fc.weight": (5, 3), "fc.bias": (3,)}
    assert (store["fc.weight"].tag.decay, store["fc.bias"].tag.decay) == (True, False)
    assert (y.type.dtype, y.type.shape) == ("float32", (None, 3))
    set_values = randomised(store)
    rows = np.arange(10, dtype="float32").reshape(2, 5)
    np.testing.assert_allclose(
        evaluate([x], y, rows), rows @ set_values["fc.weight"] + set_values["fc.bias"], rtol=1e-5
    )


def test_dense_takes_an_initialiser_and_can_do_without_a_bias():
    store, x = ParameterStore(), image_batch((None, 7, 5))
    y = layers.dense(store, "fc", x, 3, init=0.5, bias=False)
    assert list(store) == ["fc.weight"]
    np.testing.assert_allclose(evaluate([x], y, np.ones((2, 7, 5), "float32")), np.full((2, 7, 3), 2.5))


@pytest.mark.parametrize("sync", [False, True])
def test_batch_norm_in_training_follows_the_formula_and_moves_the_averages(values, sync):
    store, x = ParameterStore(), image_batch()
    y = layers.batch_norm(store, "bn", x, train=True, sync=sync, momentum=0.25, eps=1e-2)
    before = randomised(store)
    result = evaluate([x], y, values, updates=store.updates())

    wide = values.astype("float64")
    mean, var = wide.mean((0, 1, 2)), wide.var((0, 1, 2))
    expected = (wide - mean) / np.sqrt(var + 1e-2) * before["bn.weight"] + before["bn.bias"]
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)
    unbiased = wide.var((0, 1, 2), ddof=1)
    after = store.get_values()
    np.testing.assert_allclose(after["bn.running_mean"], 0.75 * before["bn.running_mean"] + 0.25 * mean, rtol=1e-5)
    np.testing.assert_allclose(after["bn.running_var"], 0.75 * before["bn.running_var"] + 0.25 * unbiased, rtol=1e-5)
    np.testing.assert_array_equal(after["bn.weight"], before["bn.weight"])


def test_batch_norm_in_evaluation_uses_the_running_statistics_and_registers_nothing(values):
    store, x = ParameterStore(), image_batch()
    layers.batch_norm(store, "bn", x, train=True)
    names, updates = list(store), store.updates()
    y = layers.batch_norm(store, "bn", x, train=False)
    assert (list(store), store.updates()) == (names, updates)
    p = randomised(store)
    expected = (values - p["bn.running_mean"]) / np.sqrt(p["bn.running_var"] + 1e-5) * p["bn.weight"] + p["bn.bias"]
    assert y.type.dtype == "float32"
    np.testing.assert_allclose(evaluate([x], y, values), expected, rtol=1e-4, atol=1e-5)


def test_batch_norm_begins_as_the_standard_normalisation():
    store = ParameterStore()
    layers.batch_norm(store, "bn", image_batch(), train=False)
    assert {name: value.tolist() for name, value in store.get_values().items()} == {
        "bn.weight": [1] * 4,
        "bn.bias": [0] * 4,
        "bn.running_mean": [0] * 4,
        "bn.running_var": [1] * 4,
    }
    assert [variable.name for variable in store.trainable()] == ["bn.weight", "bn.bias"]
    assert not any(store[name].tag.decay for name in store)


@pytest.mark.parametrize("sync", [False, True])
def test_batch_norm_of_one_entry_keeps_finite_averages(sync):
    store, x = ParameterStore(), image_batch((None, 4))
    y = layers.batch_norm(store, "bn", x, train=True, sync=sync)
    evaluate([x], y, np.full((1, 4), 3, "float32"), updates=store.updates())
    np.testing.assert_allclose(store["bn.running_mean"].get_value(), np.full(4, 0.3), rtol=1e-6)
    np.testing.assert_allclose(store["bn.running_var"].get_value(), np.full(4, 0.9), rtol=1e-6)


def test_the_moving_averages_depend_on_the_batch_through_averages_alone():
    store, x = ParameterStore(), image_batch()
    layers.batch_norm(store, "bn", x, train=True)
    layers.batch_norm(store, "bn_sync", x, train=True, sync=True)
    for variable, new_value in store.updates().items():
        above, stack = set(), [new_value]
        while stack:
            node = stack.pop()
            above.add(node)
            if node.owner is not None and type(node.owner.op).__name__ not in ("Average", "Total"):
                stack += node.owner.inputs
        assert x not in above, variable.name


def test_dropout_draws_anew_each_step_and_is_the_identity_in_evaluation():
    store, x = ParameterStore(), image_batch((None, 50))
    y = layers.dropout(store, "drop", x, 0.25, train=True)
    step = pytensor.function([x], y, updates=store.updates(), mode=PYTHON)
    ones = np.ones((40, 50), "float32")
    first, second = step(ones), step(ones)
    assert set(np.unique(first)) == {np.float32(0), np.float32(4 / 3)}
    # 2,000 draws: a standard error of 1 %.
    assert (first == 0).mean() == pytest.approx(0.25, abs=0.05)
    assert not np.array_equal(first, second)
    assert layers.dropout(store, "drop", x, 0.25, train=False) is x


def test_dropout_makes_the_same_store_for_training_and_evaluation():
    checksums = set()
    for train in (True, False):
        store = ParameterStore(seed=4)
        layers.dropout(store, "drop", image_batch(), 0.5, train=train)
        checksums.add(store.checksum())
    assert len(checksums) == 1
    assert checksums != {ParameterStore(seed=4).checksum()}


@pytest.mark.parametrize(
    "layer", [layers.batch_norm, lambda *arguments, train: layers.dropout(*arguments, 0.5, train=train)]
)
@pytest.mark.parametrize("train", [1, None, pt.iscalar("train")])
def test_train_is_a_bool(layer, train):
    with pytest.raises(TypeError, match=r"\('layer'\): 'train' should be True or False"):
        layer(ParameterStore(), "layer", image_batch(), train=train)


LAYERS = {
    "conv2d": lambda store, x: layers.conv2d(store, "layer1.0", x, 8, 3),
    "batch_norm": lambda store, x: layers.batch_norm(store, "layer1.0", x, True),
    "dense": lambda store, x: layers.dense(store, "layer1.0", x, 8),
}


@pytest.mark.parametrize("layer", LAYERS)
def test_unknown_channels_name_the_layer_the_shape_and_the_remedy(layer):
    store = ParameterStore()
    with pytest.raises(ValueError, match=rf"{layer}\('layer1\.0'\).*\(None, 8, 8, None\).*shape=.*specify_shape"):
        LAYERS[layer](store, image_batch((None, 8, 8, None)))
    assert len(store) == 0


def test_a_flattened_image_names_the_reshape_that_keeps_its_channels():
    x = image_batch((None, 8, 8, 3))
    with pytest.raises(ValueError, match=r"dense\('fc'\): .*x\.reshape\(\(-1, channels\)\) does not"):
        layers.dense(ParameterStore(), "fc", x.flatten(2), 10)
    assert layers.dense(ParameterStore(), "fc", x.reshape((-1, 8 * 8 * 3)), 10).type.shape == (None, 10)


@pytest.mark.parametrize("layer", LAYERS)
def test_too_few_axes_are_refused_by_the_layers_name(layer):
    with pytest.raises(ValueError, match=rf"{layer}\('layer1\.0'\): x should have .* axes"):
        LAYERS[layer](ParameterStore(), image_batch((4,)))


@pytest.mark.parametrize(
    ("build", "found"),
    [
        (lambda store, x: layers.conv2d(store, "n", x, 0, 3), r"conv2d\('n'\): 'filters'"),
        (lambda store, x: layers.conv2d(store, "n", x, 6, 3, groups=3), "4 channels and 6 filters.*3 groups"),
        (lambda store, x: layers.conv2d(store, "n", x, 6, 0), "size"),
        (lambda store, x: layers.dense(store, "n", x, 1.5), r"dense\('n'\): 'units'"),
        (lambda store, x: layers.batch_norm(store, "n", x, True, momentum=2), "'momentum'"),
        (lambda store, x: layers.dropout(store, "n", x, 1.0, False), r"dropout\('n'\): 'rate'"),
    ],
)
def test_settings_out_of_range_are_refused_before_anything_is_made(build, found):
    store = ParameterStore()
    with pytest.raises(ValueError, match=found):
        build(store, image_batch())
    assert len(store) == 0


def test_one_batch_norm_applied_twice_in_a_graph_is_refused():
    store = ParameterStore()
    layers.batch_norm(store, "bn", image_batch(), train=True)
    with pytest.raises(ValueError, match=r"'bn\.running_mean' has an update already"):
        layers.batch_norm(store, "bn", image_batch(), train=True)
