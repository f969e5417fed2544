"""Activation functions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytensor.tensor as pt
from pytensor.tensor.variable import TensorVariable

__all__ = ["relu"]


def relu(x: Any) -> TensorVariable:
    """The rectified linear unit, max(x, 0), of any shape. Its gradient at 0 is 0; NaN stays NaN.

    Nair and Hinton, "Rectified linear units improve restricted Boltzmann machines", ICML 2010.
    """
    x = pt.as_tensor_variable(x)
    # The gradient of maximum(x, 0) would be 1 at 0; `x > 0` would turn NaN to 0.
    zero = np.zeros((1,) * x.type.ndim, dtype=x.type.dtype)
    return pt.switch(x <= zero, zero, x)
