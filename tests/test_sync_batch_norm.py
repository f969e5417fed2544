"""Synchronised batch norm: any number of devices normalises as one does with the whole batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from comparison import Graph, assert_close, compare_with_pytensor, plain

import theano_mgpu as tm

REFERENCE = Path(__file__).parent / "reference" / "ops_torch.npz"
BOTH = pytest.mark.parametrize("update_on", ["host", "device"])


@BOTH
@pytest.mark.parametrize("devices", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("name", ["images", "rows"])
def test_forward_gradients_and_averages_are_pytorchs_on_the_whole_batch(eight, name, devices, update_on):
    """PyTorch's numbers of 4 images and of 7 rows, which most numbers of devices do not share evenly."""
    with np.load(REFERENCE) as file:
        case = {k.split("/")[2]: file[k] for k in file.files if k.startswith(f"batch_norm/{name}/")}
    values = {k: case[k].astype("float32") for k in ("x", "gamma", "beta", "g")}
    channels = len(values["gamma"])
    store = tm.ParameterStore()
    x = pt.tensor("x", shape=(None, *values["x"].shape[1:]), dtype="float32")
    g = pt.tensor("g", shape=x.type.shape, dtype="float32")
    y = tm.layers.batch_norm(store, "bn", x, train=True, sync=True, momentum=1.0, eps=1e-3)
    store.set_values({"bn.weight": values["gamma"], "bn.bias": values["beta"]})
    # A sum over examples has the weights of the mean undone, as a mean over the batch is what is averaged.
    count = tm.total(x.shape[0]).astype("float32")
    loss = (y * g).sum() / x.shape[0].astype("float32")
    params = [store["bn.weight"], store["bn.bias"]]
    gradients = {p: pytensor.shared(np.zeros(channels, "float32"), p.name) for p in params}
    updates = dict(zip(gradients.values(), (tm.grad(loss, p) * count for p in params), strict=True)) | store.updates()
    step = tm.function([x, g], y, updates=updates, contexts=eight[:devices], update_on=update_on)
    assert_close(step(values["x"], values["g"]), case["y"].astype("float32"), tolerance=1e-5)
    expected = {
        store["bn.running_mean"]: case["mean"],
        store["bn.running_var"]: case["unbiased_var"],
        gradients[params[0]]: case["gamma_gradient"],
        gradients[params[1]]: case["beta_gradient"],
    }
    for variable, value in expected.items():
        assert_close(variable.get_value(), value.astype("float32"), tolerance=2e-5)


def network() -> Graph:
    """Two synchronised normalisations, one of a convolution; two steps of momentum and of the moving averages."""
    store = tm.ParameterStore(seed=0)
    images, labels = pt.tensor("images", shape=(None, 6, 6, 3), dtype="float32"), pt.ivector("labels")
    h = tm.layers.conv2d(store, "conv", images, 4, 3, padding=1, bias=False)
    h = tm.nn.relu(tm.layers.batch_norm(store, "bn1", h, train=True, sync=True))
    h = tm.layers.batch_norm(
        store, "bn2", tm.layers.dense(store, "dense", tm.nn.global_avg_pool2d(h), 8, bias=False), train=True, sync=True
    )
    logits = tm.layers.dense(store, "fc", h, 3)
    loss = tm.nn.softmax_cross_entropy(logits, labels).mean()
    params = store.trainable()
    updates = tm.updates.momentum(tm.grad(loss, params), params, learning_rate=0.1, momentum=0.9) | store.updates()
    return Graph([images, labels], [tm.average(loss), logits], updates)


def batch(examples: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(examples)
    return rng.standard_normal((examples, 6, 6, 3)).astype("float32"), rng.integers(0, 3, examples, dtype="int32")


@pytest.fixture(scope="module")
def reference():
    return plain(network, [batch(examples) for examples in (16, 13, 5, 16)])


@BOTH
@pytest.mark.parametrize(
    ("devices", "shards"), [(4, 3), *(pytest.param(devices, None, marks=pytest.mark.slow) for devices in (2, 4, 8))]
)
def test_a_network_trains_as_plain_pytensor_does_on_the_whole_batch(eight, reference, devices, shards, update_on):
    compare_with_pytensor(network, reference, eight[:devices], shards=shards, update_on=update_on)


def test_without_it_each_shard_has_statistics_of_its_own(eight):
    """What the tests above would miss if there were one shard in truth."""
    x = pt.matrix("x", shape=(None, 2), dtype="float32")
    values = np.arange(16, dtype="float32").reshape(8, 2)
    found = {}
    for sync in (False, True):
        y = tm.layers.batch_norm(tm.ParameterStore(), "bn", x, train=True, sync=sync)
        found[sync] = tm.function([x], y, contexts=eight[:4])(values)
    np.testing.assert_allclose(found[False], np.tile([[-1, -1], [1, 1]], (4, 1)), atol=1e-4)
    assert_close(found[True], (values - values.mean(0)) / np.sqrt(values.var(0) + np.float32(1e-5)))


def test_several_rounds_are_an_error_that_says_why(eight):
    graph = network()
    step = tm.function(graph.inputs, updates=graph.updates, contexts=eight[:2], shards=4, name="train")
    before = [v.get_value() for v in graph.updates]
    with pytest.raises(
        ValueError, match=r"train\(\): .*synchronised batch norm.*in one round.*4 shards take more on 2"
    ):
        step(*batch(16))
    for variable, value in zip(graph.updates, before, strict=True):
        np.testing.assert_array_equal(variable.get_value(), value)


def test_a_plan_is_of_the_one_round_that_runs(eight):
    """Also where the batch does not divide evenly, which without it takes a round more."""
    graph = network()
    step = tm.function(graph.inputs, updates=graph.updates, contexts=eight[:4])
    assert step.plan(14).rounds == 1
    compiled = dict(step._assembly.preparation._compiled)
    step(*batch(14))
    assert step._assembly.preparation._compiled == compiled


def test_it_needs_a_batch_axis():
    vector = pt.vector("x", shape=(3,), dtype="float32")
    with pytest.raises(ValueError, match=r"batch_norm\('bn'\): x should have at least 2 axes, the channels last"):
        tm.layers.batch_norm(tm.ParameterStore(), "bn", vector, train=True, sync=True)
    with pytest.raises(ValueError, match=r"batch_norm\(\): expected x \(\.\.\., channels\) with at least 2 axes"):
        tm.nn.batch_norm(vector, vector, vector, sync=True)
