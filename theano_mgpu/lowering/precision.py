"""In which precision matrix products and convolutions run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from pytensor.graph.op import Op
from pytensor.tensor.blockwise import Blockwise
from pytensor.tensor.math import Dot

from theano_mgpu.nn.convolution import Conv2d, Conv2dFilterGradient, Conv2dInputGradient

__all__ = ["FLOAT32", "Precision", "named_precision"]

_PRODUCTS = (Dot, Conv2d, Conv2dInputGradient, Conv2dFilterGradient)


@dataclass(frozen=True)
class Precision:
    """``products``: the dtype that float32 operands of products and convolutions are rounded to, None for none."""

    name: str
    products: Any = None

    def narrow(self, op: Op, arguments: Sequence[Any]) -> list[Any]:
        core = op.core_op if isinstance(op, Blockwise) else op
        if self.products is None or not isinstance(core, _PRODUCTS):
            return list(arguments)
        return [
            a.astype(self.products) if isinstance(a, jax.Array) and a.dtype == jnp.float32 else a for a in arguments
        ]


FLOAT32 = Precision("float32")
_KNOWN = {"float32": FLOAT32, "bfloat16": Precision("bfloat16", jnp.bfloat16)}


def named_precision(name: str) -> Precision:
    """The precision of that name; ValueError listing the known ones."""
    if name not in _KNOWN:
        raise ValueError(f"precision: expected one of {', '.join(map(repr, _KNOWN))}, got {name!r}.")
    return _KNOWN[name]
