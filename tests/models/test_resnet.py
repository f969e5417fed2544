"""ResNets: parameter counts and names, and PyTorch's numbers on the same parameters."""

from __future__ import annotations

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.compile.mode import Mode

import theano_mgpu as tm
from theano_mgpu import nn
from theano_mgpu.models import resnet
from theano_mgpu.store import ParameterStore

PYTHON = Mode("py", None)


def image_batch(shape=(None, 32, 32, 3), dtype="uint8"):
    return pt.tensor("images", shape=shape, dtype=dtype)


def count(store):
    return sum(variable.get_value(borrow=True).size for variable in store.trainable())


@pytest.mark.parametrize(
    ("depth", "parameters"),
    [(18, 11_689_512), (34, 21_797_672), (50, 25_557_032), (101, 44_549_160), (152, 60_192_808)],
)
def test_imagenet_networks_have_torchvisions_number_of_parameters(depth, parameters):
    store = ParameterStore()
    logits = resnet(store, image_batch((None, None, None, 3)), depth, 1000, train=False)
    assert count(store) == parameters
    assert (logits.type.dtype, logits.type.shape) == ("float32", (None, 1000))


@pytest.mark.parametrize("depth", [20, 32, 44, 56, 110])
def test_cifar_networks_have_the_papers_number_of_parameters(depth):
    store = ParameterStore()
    resnet(store, image_batch(), depth, 10, train=False)
    n = (depth - 2) // 6
    # 6n + 1 convolutions of 3x3, a scale and a shift after each, and the last layer; shortcuts have no parameters.
    weights = [3 * 16, *[16 * 16] * 2 * n, 16 * 32, *[32 * 32] * (2 * n - 1), 32 * 64, *[64 * 64] * (2 * n - 1)]
    scales = 2 * (16 * (2 * n + 1) + 32 * 2 * n + 64 * 2 * n)
    assert len(weights) == depth - 1
    assert count(store) == 9 * sum(weights) + scales + 64 * 10 + 10
    assert (depth, count(store)) in {(20, 269_722), (32, 464_154), (44, 658_586), (56, 853_018), (110, 1_727_962)}


@pytest.mark.parametrize(("depth", "last", "blocks"), [(18, "bn2", 8), (50, "bn3", 16), (20, "bn2", 9)])
def test_zero_init_residual_begins_with_every_block_as_its_shortcut(depth, last, blocks):
    plain, zero = ParameterStore(), ParameterStore()
    resnet(plain, image_batch(), depth, 10, train=True)
    resnet(zero, image_batch(), depth, 10, train=True, zero_init_residual=True)
    differing = {
        name for name, value in plain.get_values().items() if not np.array_equal(value, zero[name].get_value())
    }
    assert {name.split(".", 2)[2] for name in differing} == {f"{last}.weight"}
    assert len(differing) == blocks
    assert not any(zero[name].get_value().any() for name in differing)


def normalisation(name):
    return [f"{name}.{part}" for part in ("weight", "bias", "running_mean", "running_var")]


@pytest.mark.parametrize(
    ("depth", "convolutions", "blocks"), [(18, 2, (2, 2, 2, 2)), (50, 3, (3, 4, 6, 3)), (20, 2, (3, 3, 3))]
)
def test_parameter_names_are_torchvisions(depth, convolutions, blocks):
    store = ParameterStore()
    resnet(store, image_batch(), depth, 10, train=False)
    expected = ["conv1.weight", *normalisation("bn1"), "fc.weight", "fc.bias"]
    for stage, count_of_blocks in enumerate(blocks, start=1):
        for block in range(count_of_blocks):
            name = f"layer{stage}.{block}"
            for i in range(1, convolutions + 1):
                expected += [f"{name}.conv{i}.weight", *normalisation(f"{name}.bn{i}")]
            if depth != 20 and block == 0 and (stage > 1 or depth == 50):
                expected += [f"{name}.downsample.0.weight", *normalisation(f"{name}.downsample.1")]
    assert sorted(store) == sorted(expected)


@pytest.mark.parametrize(
    ("depth", "stem", "filters"),
    [
        (18, None, (7, 7, 3, 64)),
        (18, "cifar", (3, 3, 3, 64)),
        (20, None, (3, 3, 3, 16)),
        (20, "imagenet", (7, 7, 3, 16)),
    ],
)
def test_the_stem_follows_the_depth_unless_asked_for(depth, stem, filters):
    store = ParameterStore()
    resnet(store, image_batch(), depth, 10, train=False, stem=stem)
    assert store["conv1.weight"].type.shape == filters


def test_weights_are_decayed_and_scales_and_shifts_are_not():
    store = ParameterStore()
    resnet(store, image_batch(), 18, 10, train=False)
    for name in store:
        variable = store[name]
        assert variable.tag.decay == (variable.type.ndim > 1), name
        assert variable.tag.trainable == ("running" not in name), name
        if name.endswith("weight") and variable.type.ndim == 1:
            assert (variable.get_value() == 1).all()


def test_convolutions_begin_with_the_variance_of_torchvisions_initialisation():
    store = ParameterStore()
    resnet(store, image_batch(), 18, 10, train=False)
    deviation = store["layer2.0.conv1.weight"].get_value().std()
    assert deviation == pytest.approx(np.sqrt(2 / (3 * 3 * 128)), rel=0.01)


def test_the_evaluation_graph_uses_the_same_variables_and_registers_nothing():
    store = ParameterStore()
    training = resnet(store, image_batch(), 20, 10, train=True)
    variables, updates = [store[name] for name in store], store.updates()
    assert {variable.name for variable in updates} == {name for name in store if "running" in name}
    evaluation = resnet(store, image_batch(), 20, 10, train=False)
    assert [store[name] for name in store] == variables
    assert store.updates() == updates

    def shared(*graphs):
        return {v for v in pytensor.graph.traversal.graph_inputs(graphs) if isinstance(v, type(variables[0]))}

    assert shared(evaluation) == set(variables)
    assert shared(training) == set(store.trainable())
    assert shared(training, *updates.values()) == set(variables)


# The numbers below are PyTorch 2.13's in float64, from a network written after torchvision's, with these parameters.


def scrambled(size, offset):
    i = np.arange(size, dtype="uint64") + np.uint64(offset)
    return (i * i * np.uint64(2654435761) + i * np.uint64(40503)) % np.uint64(2**32) / 2**32


def fixed_value(name, shape):
    uniform = scrambled(int(np.prod(shape)), 1000 * len(name) + sum(name.encode())).reshape(shape)
    if name.endswith("running_var") or (len(shape) == 1 and name.endswith("weight")):
        return 0.5 + uniform
    return (uniform - 0.5) * (1 if len(shape) == 1 else np.sqrt(12 / np.prod(shape[:-1])))


def fixed_images(examples, size):
    return (scrambled(examples * size * size * 3, 7) * 256).astype("uint8").reshape(examples, size, size, 3)


def filled_store(depth, images, train=False, stem=None):
    store = ParameterStore()
    logits = resnet(store, images, depth, 5, train, stem=stem)
    store.set_values({name: fixed_value(name, store[name].type.shape) for name in store})
    return store, logits


EVALUATED = {
    (20, "cifar", 8): [
        [0.307677101, 0.833882645, 1.689990307, -0.886298383, 0.496340668],
        [1.005331017, 0.248940399, 1.20562074, -0.667379784, 1.022929529],
    ],
    (18, "cifar", 8): [
        [1.344508364, 0.513209648, 0.708073424, 0.664306133, 1.289223852],
        [0.670571344, 0.463444101, 1.450170634, 0.169607802, 1.38027031],
    ],
    (50, "imagenet", 32): [
        [-1.834514457, 2.655038961, -1.857776751, -0.720326787, -1.604351177],
        [-2.41196264, 2.445804215, -2.132105619, -0.593359858, -1.169363395],
    ],
}


@pytest.mark.parametrize(("depth", "stem", "size"), EVALUATED)
def test_evaluation_agrees_with_pytorch(depth, stem, size):
    images = image_batch((None, None, None, 3))
    _, logits = filled_store(depth, images, stem=stem)
    evaluate = pytensor.function([images], logits, mode=PYTHON)
    # float32 through up to 50 layers against float64.
    np.testing.assert_allclose(evaluate(fixed_images(2, size)), EVALUATED[depth, stem, size], rtol=1e-4, atol=1e-4)


def test_float_images_are_taken_as_normalised():
    images = image_batch((None, 8, 8, 3), "float64")
    _, logits = filled_store(20, images)
    normalised = (fixed_images(2, 8) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    result = pytensor.function([images], logits, mode=PYTHON)(normalised)
    np.testing.assert_allclose(result, EVALUATED[20, "cifar", 8], rtol=1e-4, atol=1e-4)


def convolutions(logits):
    """Stride, groups and the channels that go in, of each convolution of a graph."""
    nodes = pytensor.graph.traversal.toposort([logits])
    found = [(node.op, node.inputs[0].type.shape[-1]) for node in nodes if type(node.op).__name__ == "Conv2d"]
    return [(op.stride[0], op.groups, channels) for op, channels in found]


@pytest.mark.parametrize(
    ("depth", "blurred"),
    [
        # Not the stem, which has three channels; in each later stage a block's 3x3 convolution and its shortcut.
        (18, [64, 64, 128, 128, 256, 256]),
        (50, [128, 256, 256, 512, 512, 1024]),
        # Shortcuts without parameters have no convolution.
        (20, [16, 32]),
    ],
)
def test_what_goes_into_wide_convolutions_of_stride_2_is_blurred(depth, blurred):
    images = image_batch((None, 64, 64, 3))
    plain, blurring = (resnet(ParameterStore(), images, depth, 10, False, blur_pool=blur) for blur in (False, True))
    assert all(groups == 1 for _, groups, _ in convolutions(plain))
    found = convolutions(blurring)
    assert sorted(channels for _, groups, channels in found if groups > 1) == blurred
    assert all((stride, groups) == (1, channels) for stride, groups, channels in found if groups > 1)
    assert sorted(channels for stride, _, channels in found if stride == 2 and channels >= 16) == blurred
    assert len(found) - len(blurred) == len(convolutions(plain))


def test_blurring_leaves_the_parameters_as_they_are():
    stores = [ParameterStore(), ParameterStore()]
    for store, blur in zip(stores, (False, True), strict=True):
        resnet(store, image_batch(), 18, 10, train=True, blur_pool=blur)
    plain, blurred = (store.get_values() for store in stores)
    assert list(plain) == list(blurred)
    for name, value in plain.items():
        np.testing.assert_array_equal(value, blurred[name], err_msg=name)


def test_a_blur_is_1_2_1_over_4_along_both_axes_with_zeros_around():
    """Computed by numpy on what goes into one convolution, compared with what that one sees."""
    images = image_batch((None, 8, 8, 3))
    store = ParameterStore()
    logits = resnet(store, images, 20, 5, False, blur_pool=True)
    store.set_values({name: fixed_value(name, store[name].type.shape) for name in store})
    nodes = [node for node in pytensor.graph.traversal.toposort([logits]) if type(node.op).__name__ == "Conv2d"]
    ((before, blurred), *_) = [(node.inputs[0], node.outputs[0]) for node in nodes if node.op.groups > 1]
    assert any(node.inputs[0] is blurred and node.op.stride == (2, 2) for node in nodes)
    given, found = pytensor.function([images], [before, blurred], mode=PYTHON)(fixed_images(2, 8))
    padded = np.pad(given.astype(float), [(0, 0), (1, 1), (1, 1), (0, 0)])
    rows = (padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]) / 4
    expected = (rows[:, :, :-2] + 2 * rows[:, :, 1:-1] + rows[:, :, 2:]) / 4
    assert given.shape == found.shape == (2, 8, 8, 16)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_training_agrees_with_pytorch_in_logits_gradients_and_moving_averages():
    images, labels = image_batch((None, 8, 8, 3)), pt.vector("labels", dtype="int32")
    store, logits = filled_store(20, images, train=True)
    names = ["conv1.weight", "layer2.0.conv1.weight", "layer3.2.bn2.weight", "fc.weight"]
    loss = nn.softmax_cross_entropy(logits, labels).mean()
    gradients = pytensor.grad(loss, [store[name] for name in names])
    step = pytensor.function([images, labels], [logits, *gradients], updates=store.updates(), mode=PYTHON)
    result, *gradients = step(fixed_images(4, 8), np.arange(4, dtype="int32"))

    expected = [
        [-0.007416785, 0.547817513, 1.045216086, 2.744294874, 0.03660055],
        [0.830900424, -0.466414248, 2.053751804, 1.775172903, -0.85538467],
        [-0.606319957, 0.652162169, 1.683261872, 1.662273202, 0.854809556],
        [0.707821848, 0.719527566, 2.227132885, 1.829199256, 0.09612932],
    ]
    # Statistics of 16 entries in the last stage enlarge float32's rounding.
    np.testing.assert_allclose(result, expected, rtol=1e-3, atol=1e-3)
    norms = [np.sqrt(np.square(gradient, dtype="float64").sum()) for gradient in gradients]
    np.testing.assert_allclose(norms, [8.25404503, 7.08403489, 0.193151957, 5.16006336], rtol=2e-3)
    for name, values in {
        "bn1.running_mean": [-0.113673069, -0.400978984, 0.348772899],
        "bn1.running_var": [0.990452193, 0.836409783, 0.8779106],
        "layer3.2.bn2.running_var": [0.889925707, 0.840893421, 0.949286912],
        "layer2.0.bn1.running_mean": [-0.342347733, 0.385250984, -0.269074261],
    }.items():
        np.testing.assert_allclose(store[name].get_value()[:3], values, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"depth": 19}, r"'depth' should be one of 18, 34, 50, 101, 152, 20, 32, 44, 56, 110, not 19"),
        ({"stem": "mnist"}, "'stem' should be 'imagenet' or 'cifar', not 'mnist'"),
        ({"num_classes": 0}, "'num_classes' should be a positive integer, not 0"),
        ({"num_classes": 2.0}, "'num_classes' should be a positive integer"),
        ({"images": image_batch((None, 32, 3))}, r"four axes.*\(None, 32, 3\)"),
        ({"images": image_batch((None, 32, 32, None))}, "known number of channels.*specify_shape"),
        ({"images": image_batch((None, 32, 32, 1))}, "uint8 with 1 channels"),
        ({"images": image_batch(dtype="int64")}, "not int64"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_made(options, found):
    store = ParameterStore()
    with pytest.raises(ValueError, match=rf"resnet\(\).*{found}"):
        resnet(**{"store": store, "images": image_batch(), "depth": 18, "num_classes": 10, "train": True} | options)
    assert len(store) == 0


def training_step(depth, size, contexts, recompute):
    store = ParameterStore(seed=0)
    images, labels = image_batch((None, size, size, 3)), pt.ivector("labels")
    logits = resnet(store, images, depth=depth, num_classes=5, train=True, recompute=recompute)
    loss = tm.nn.softmax_cross_entropy(logits, labels).mean()
    params = store.trainable()
    updates = tm.updates.sgd(tm.grad(loss, params), params, learning_rate=0.01) | store.updates()
    return store, tm.function([images, labels], tm.average(loss), updates=updates, contexts=contexts)


def test_recomputed_blocks_give_the_same_bits_in_half_the_memory(eight):
    """A third was measured."""
    bits, memory = [], []
    for recompute in (False, True):
        store, step = training_step(20, 32, eight[:2], recompute)
        for _ in range(2):
            step(fixed_images(8, 32), np.arange(8, dtype="int32") % 5)
        bits.append([value.tobytes() for value in store.get_values().values()])
        memory.append(step._assembly.program._temporary_bytes)
    assert bits[0] == bits[1]
    assert memory[1] < 0.5 * memory[0]


@pytest.mark.slow
def test_a_recomputed_resnet50_takes_less_than_six_tenths_of_the_memory(eight):
    """0.28 was measured."""
    memory = []
    for recompute in (False, True):
        _, step = training_step(50, 224, eight[:1], recompute)
        step(fixed_images(4, 224), np.arange(4, dtype="int32"))
        memory.append(step._assembly.program._temporary_bytes)
    assert memory[1] < 0.6 * memory[0]


@pytest.mark.parametrize("recompute", [1, None])
def test_recompute_is_a_bool(recompute):
    with pytest.raises(TypeError, match="'recompute' should be True or False"):
        resnet(ParameterStore(), image_batch(), 20, 10, train=True, recompute=recompute)


@pytest.mark.parametrize("train", [1, None, pt.iscalar("train")])
def test_train_is_a_bool(train):
    with pytest.raises(TypeError, match="'train' should be True or False"):
        resnet(ParameterStore(), image_batch(), 20, 10, train)
