"""Dropout."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytensor.tensor as pt
from pytensor.tensor.random.type import RandomType
from pytensor.tensor.variable import TensorVariable

__all__ = ["dropout"]


def dropout(x: Any, rate: float, rng: Any) -> tuple[Any, TensorVariable]:
    """Inverted dropout: each entry is zero with probability ``rate``, else divided by ``1 - rate``.

    Parameters:
        x: any shape, a float dtype.
        rate: at least 0 and less than 1; with 0 nothing is drawn.
        rng: a random generator, as from ``pytensor.shared(numpy.random.default_rng(seed))``.

    Returns the generator's next state and the result: compile with ``updates={rng: next_rng}`` to draw anew each call.
    Raises ValueError for the rate, TypeError for an integer x or for an rng that is no generator.

    Srivastava et al., "Dropout: a simple way to prevent neural networks from overfitting", JMLR 15, 2014.
    """
    x = pt.as_tensor_variable(x)
    if not 0 <= rate < 1:
        raise ValueError(f"dropout(): rate is at least 0 and less than 1; it came as {rate!r}.")
    if not x.type.dtype.startswith("float"):
        raise TypeError(f'dropout(): x has dtype {x.type.dtype}; expected a float. Convert with x.astype("float32").')
    if not isinstance(getattr(rng, "type", None), RandomType):
        raise TypeError(
            f"dropout(): rng is a random generator variable; it came as {rng!r}. "
            "Make one with pytensor.shared(numpy.random.default_rng(seed))."
        )
    if rate == 0:
        return rng, x
    next_rng, kept = rng.bernoulli(np.float32(1 - rate), size=x.shape)
    scale = np.asarray(1 / (1 - rate), x.type.dtype)
    return next_rng, pt.switch(kept, x * scale, np.zeros((), dtype=x.type.dtype))
