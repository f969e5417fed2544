"""The loss scale of ``precision="float16"``: so large that gradients do not vanish, so small that none overflow.

Gradients below 6e-8 are zero in float16. So the backward pass begins with the scale instead of 1, and the averages are
divided by it; a step that overflows is left out and halves it, a row of good steps doubles it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from theano_mgpu.finite import are_finite
from theano_mgpu.mirror import fetched, host_device

__all__ = ["LossScale"]


class LossScale:
    """One step's loss scale, on the host; it changes with a step's commit alone.

    The rule is that of Micikevicius et al., "Mixed precision training", ICLR 2018, section 3.2, with PyTorch's
    constants (``torch.amp.GradScaler``), but for ``first``, the largest scale that the paper used. All are powers of
    two, so that scaling changes no digit.
    """

    first = 2.0**15
    largest = 2.0**24
    #: Good steps in a row after which the scale is doubled.
    patience = 2000

    def __init__(self) -> None:
        self._value = self.first
        self._good_steps = 0

    @property
    def value(self) -> float:
        return self._value

    @value.setter
    def value(self, value: Any) -> None:
        is_number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value) or value <= 0:
            raise ValueError(f"loss_scale: expected a positive number, such as step.loss_scale gave, got {value!r}.")
        self._value, self._good_steps = float(value), 0

    @property
    def good_steps(self) -> int:
        """Good steps in a row since the scale was last changed."""
        return self._good_steps

    def go_on(self, value: float, good_steps: int) -> None:
        """Set the scale and the good steps in a row to what a checkpoint has kept."""
        self.value = value
        self._good_steps = int(good_steps)

    def excuses(self, gradients: Sequence[Sequence[Any]], values_are_finite: bool) -> bool:
        """Whether a step is left out because its gradients, or new values, overflowed and a smaller scale may help.

        ``gradients``: of each array of gradients the parts to be summed, on the host or on the devices.
        """
        return self._value > 1 and not (values_are_finite and _are_finite([a for parts in gradients for a in parts]))

    def follow(self, left_out: bool) -> None:
        """After a step: half of the scale, down to 1, where it was left out; twice after ``patience`` good ones."""
        self._good_steps = 0 if left_out else self._good_steps + 1
        if left_out:
            self._value = min(self._value, max(self._value / 2, 1.0))
        elif self._good_steps == self.patience:
            self._value, self._good_steps = max(self._value, min(self._value * 2, self.largest)), 0


def _are_finite(arrays: Sequence[Any]) -> bool:
    if all(isinstance(array, np.ndarray) or array.devices() == {host_device()} for array in arrays):
        return all(are_finite([a if isinstance(a, np.ndarray) else fetched([a])[0] for a in arrays]))
    return bool(fetched([_finite_on_devices(list(arrays))])[0])


@jax.jit
def _finite_on_devices(arrays: list[jax.Array]) -> jax.Array:
    return jnp.stack([jnp.isfinite(array).all() for array in arrays]).all()
