"""The network of ``tests/reference/weights_torch.py`` in a store, and what is in the files that it made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytensor.tensor as pt
import pytest

from theano_mgpu import layers
from theano_mgpu.store import ParameterStore

REFERENCE = Path(__file__).parents[1] / "reference" / "weights_torch"


@pytest.fixture
def reference() -> Path:
    """The folder of files made by PyTorch."""
    return REFERENCE


@pytest.fixture
def expected() -> dict[str, np.ndarray]:
    """The state dict in them, in PyTorch's order of axes."""
    with np.load(REFERENCE / "expected.npz") as file:
        return dict(file)


@pytest.fixture
def store() -> ParameterStore:
    """Its convolution, batch norm and dense layer, and a generator."""
    store = ParameterStore(seed=1)
    x = pt.tensor("x", shape=(None, 5, 6, 2), dtype="float32")
    x = layers.batch_norm(store, "bn", layers.conv2d(store, "conv", x, 3, (3, 2)), train=False)
    layers.dense(store, "fc", layers.dropout(store, "drop", x, 0.5, train=False), 4)
    return store
