"""One step of ResNets against torchvision's (``tests/reference/resnet_torch.py``), with weights in torch's layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytensor.tensor as pt
import pytest
import safetensors.numpy
from reference.resnet_weights import CASES, CLASSES, LABELS, entries, images, value

import theano_mgpu as tm

REFERENCE = Path(__file__).parents[1] / "reference" / "resnet_torch.npz"
# Of a parameter by its number of axes: filters and dense weights.
AXES = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}


def in_torchs_order(array):
    return array.transpose(AXES[array.ndim])


@pytest.fixture(scope="module")
def reference():
    with np.load(REFERENCE) as file:
        return dict(file)


def slow(*case):
    return pytest.param(*case, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("depth", "mode"),
    [
        *((18, "eval"), (18, "train"), slow(50, "train"), slow(50, "eval")),
        *(slow(34, "train"), slow(34, "eval"), slow(101, "train"), slow(101, "eval")),
    ],
)
def test_a_step_agrees_with_torchvision(reference, tmp_path, eight, depth, mode):
    expected = {name: reference[f"{depth}/{mode}/{name}"] for name in ("logits", "loss", "norms", "entries")}
    store = tm.ParameterStore()
    batch = pt.tensor("images", shape=(None, *CASES[depth][1:], 3), dtype="uint8")
    labels = pt.vector("labels", dtype="int32")
    logits = tm.models.resnet(store, batch, depth, CLASSES, train=mode == "train")
    loss = tm.nn.softmax_cross_entropy(logits, labels).mean()
    parameters = [store[name] for name in reference[f"{depth}/parameters"]]
    assert {variable.name for variable in parameters} == {variable.name for variable in store.trainable()}

    weights = {name: value(name, in_torchs_order(array).shape, depth) for name, array in store.get_values().items()}
    safetensors.numpy.save_file(weights, tmp_path / "weights.safetensors", metadata={"format": "pt"})
    assert store.load(tmp_path / "weights.safetensors", layout="torch").loaded == tuple(store)

    outputs = [logits, tm.average(loss), *tm.grad(loss, parameters)]
    step = tm.function([batch, labels], outputs, updates=store.updates(), contexts=eight[:1])
    result, value_of_loss, *gradients = step(images(*CASES[depth]), LABELS.astype("int32"))

    # Up to 101 layers in float32 against float64.
    np.testing.assert_allclose(result, expected["logits"], atol=1e-4 * np.abs(expected["logits"]).max())
    np.testing.assert_allclose(value_of_loss, expected["loss"], rtol=1e-4)
    norms = np.array([np.linalg.norm(np.asarray(gradient, "float64")) for gradient in gradients])
    np.testing.assert_allclose(norms, expected["norms"], rtol=1e-3)
    # Relative to the gradient's root mean square: single entries may be next to 0.
    sizes = np.sqrt([np.size(gradient) for gradient in gradients])
    for name, gradient, wanted, scale in zip(parameters, gradients, expected["entries"], norms / sizes, strict=True):
        ours = entries(in_torchs_order(np.asarray(gradient)))
        np.testing.assert_allclose(ours, wanted, atol=1e-2 * scale, err_msg=str(name))
    if mode == "train":
        for name, wanted in zip(reference[f"{depth}/statistics"], reference[f"{depth}/train/statistics"], strict=True):
            np.testing.assert_allclose(entries(store[name].get_value()), wanted, rtol=1e-4, atol=1e-5, err_msg=name)
    else:
        assert not store.updates()
