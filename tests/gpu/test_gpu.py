"""On a real GPU: run with ``pytest -m gpu``, as ``benchmarks/gpu.sh`` does; skipped where there is none."""

from __future__ import annotations

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.compile.mode import Mode

import theano_mgpu as tm

pytestmark = pytest.mark.gpu

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
LABELS = RNG.integers(0, 10, 8, dtype=np.int32)


@pytest.fixture(scope="module")
def gpus() -> tm.Contexts:
    try:
        return tm.contexts("cuda")
    except ValueError as error:
        pytest.skip(f"no GPU: {error}")


def mlp(seed: int) -> tuple[list, dict, dict, tm.ParameterStore]:
    """Inputs, outputs and momentum updates of a small classifier of images, and its store."""
    store = tm.ParameterStore(seed=seed)
    images = pt.tensor("images", shape=(None, 32, 32, 3), dtype="uint8")
    labels = pt.vector("labels", dtype="int32")
    x = images.astype("float32") / np.float32(255)
    x = tm.nn.relu(tm.layers.conv2d(store, "conv", x, 8, 3, stride=2, padding=1))
    x = tm.nn.max_pool2d(x, 2)
    logits = tm.layers.dense(store, "fc", x.flatten(2), 10)
    loss = tm.nn.softmax_cross_entropy(logits, labels).mean()
    params = store.trainable()
    updates = tm.updates.momentum(tm.grad(loss, params), params, learning_rate=0.05, momentum=0.9)
    return [images, labels], {"loss": tm.average(loss)}, updates, store


def train(contexts: tm.Contexts, steps: int = 3, **options: object) -> tuple[list[float], tm.ParameterStore]:
    inputs, outputs, updates, store = mlp(seed=1)
    step = tm.function(inputs, outputs, updates=updates, contexts=contexts, **options)
    return [float(step(IMAGES, LABELS)["loss"]) for _ in range(steps)], store


def largest_difference(one: tm.ParameterStore, other: tm.ParameterStore) -> float:
    """Relative to the parameter's largest entry."""
    theirs = other.get_values()
    return max(
        np.abs(value - theirs[name]).max() / np.abs(theirs[name]).max() for name, value in one.get_values().items()
    )


@pytest.fixture(scope="module")
def plain() -> tuple[list[float], tm.ParameterStore]:
    inputs, outputs, updates, store = mlp(seed=1)
    function = pytensor.function(inputs, outputs, updates=updates, mode=Mode(linker="py", optimizer="fast_compile"))
    return [float(function(IMAGES, LABELS)["loss"]) for _ in range(3)], store


@pytest.mark.parametrize("update_on", ["host", "device"])
@pytest.mark.parametrize("shards", [1, 4])
def test_steps_on_a_gpu_equal_plain_pytensor(gpus, plain, update_on: str, shards: int) -> None:
    losses, store = train(gpus[:1], update_on=update_on, shards=shards)
    # TF32, with 10 bits, stands in for float32 inside products and convolutions.
    np.testing.assert_allclose(losses, plain[0], rtol=2e-3)
    assert largest_difference(store, plain[1]) < 5e-3


@pytest.mark.parametrize("update_on", ["host", "device"])
def test_all_gpus_together_equal_one(gpus, update_on: str) -> None:
    if len(gpus) < 2:
        pytest.skip("one GPU only")
    losses, store = train(gpus, update_on=update_on, shards=8)
    alone, reference = train(gpus[:1], update_on=update_on, shards=8)
    np.testing.assert_allclose(losses, alone, rtol=1e-5)
    assert largest_difference(store, reference) < 1e-5


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_16_bits_train_near_float32(gpus, plain, precision: str) -> None:
    losses, _ = train(gpus[:1], precision=precision)
    assert losses[-1] < losses[0]
    np.testing.assert_allclose(losses, plain[0], rtol=5e-2)


def test_parameters_are_numpy_arrays_of_their_own_after_a_step(gpus) -> None:
    _, store = train(gpus[:1], steps=1)
    for param in store.trainable():
        value = param.get_value(borrow=True)
        assert isinstance(value, np.ndarray)
        assert value.flags.writeable


@pytest.mark.parametrize("update_on", ["host", "device"])
def test_a_value_set_between_steps_reaches_the_gpu(gpus, update_on: str) -> None:
    inputs, outputs, updates, store = mlp(seed=1)
    step = tm.function(inputs, outputs, updates=updates, contexts=gpus[:1], update_on=update_on)
    first = step(IMAGES, LABELS)["loss"]
    for variable in updates:
        variable.set_value(np.zeros_like(variable.get_value()))
    assert step(IMAGES, LABELS)["loss"] == pytest.approx(np.log(10), rel=1e-5)
    assert first != pytest.approx(np.log(10), rel=1e-5)
    assert store["fc.bias"].get_value().any()


def test_a_non_finite_step_changes_nothing(gpus) -> None:
    x = pt.vector("x", dtype="float32")
    w = pytensor.shared(np.ones((), "float32"), name="w")
    step = tm.function([x], updates={w: w - tm.grad((w * x).mean(), w)}, contexts=gpus[:1])
    with pytest.raises(tm.NonFiniteError, match="w"):
        step(np.array([1, np.nan], "float32"))
    assert w.get_value() == 1


def test_memory_reports_use_and_limit(gpus) -> None:
    memory = gpus[0].memory()
    assert 0 <= memory["bytes_in_use"] <= memory["bytes_limit"]
    assert "GiB" in str(gpus)
