"""A network trained here, exported in torch's layout: torchvision's network gives the same logits."""

from __future__ import annotations

import numpy as np
import pytensor.tensor as pt
import pytest

import theano_mgpu as tm

MEAN, DEVIATION = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


@pytest.mark.slow
def test_torchvision_gives_the_logits_of_an_exported_network(tmp_path, eight):
    torch = pytest.importorskip("torch")
    torchvision = pytest.importorskip("torchvision")
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (8, 64, 64, 3)).astype("uint8")
    labels = np.arange(8, dtype="int32")

    store = tm.ParameterStore(seed=0)
    x, y = pt.tensor("images", shape=(None, 64, 64, 3), dtype="uint8"), pt.vector("labels", dtype="int32")
    loss = tm.nn.softmax_cross_entropy(tm.models.resnet(store, x, 18, 10, train=True), y).mean()
    params = store.trainable()
    updates = tm.updates.momentum(tm.grad(loss, params), params, learning_rate=0.01, momentum=0.9) | store.updates()
    train = tm.function([x, y], tm.average(loss), updates=updates, contexts=eight[:2])
    for _ in range(2):
        train(images, labels)
    predict = tm.function([x], tm.models.resnet(store, x, 18, 10, train=False), contexts=eight[:2])
    expected = predict(images)

    store.save(tmp_path / "trained.pth", layout="torch")
    network = torchvision.models.resnet18(num_classes=10)
    network.load_state_dict(torch.load(tmp_path / "trained.pth", weights_only=True), strict=True)
    network.eval()
    inputs = ((images / 255 - MEAN) / DEVIATION).transpose(0, 3, 1, 2).astype("float32")
    with torch.no_grad():
        logits = network(torch.tensor(inputs)).numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected).max())
