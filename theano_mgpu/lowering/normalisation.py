"""Batch normalisation on a device: the statistics in one pass over the images, the gradient in two."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from theano_mgpu.lowering.dispatch import lowers
from theano_mgpu.nn.normalisation import BatchNorm, BatchNormGradient, check_shapes

__all__: list[str] = []


@lowers(BatchNorm)
def batch_norm(op: BatchNorm, node: Any, **_: Any) -> Callable[..., tuple[jax.Array, jax.Array, jax.Array]]:
    def normalise(x: jax.Array, gamma: jax.Array, beta: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        check_shapes(x.shape, gamma.shape, beta.shape)
        axes = tuple(range(x.ndim - 1))
        wide = _wide(x)
        # E[x^2] - E[x]^2 needs one pass over x but loses all digits where the mean is large; shifted by any value of
        # the channel it keeps them.
        shift = wide[(0,) * (x.ndim - 1)]
        shifted = wide - shift
        mean_shifted = shifted.mean(axes)
        var = jnp.maximum((shifted * shifted).mean(axes) - mean_shifted * mean_shifted, 0)
        mean = shift + mean_shifted
        y = (wide - mean) * (_wide(gamma) * lax.rsqrt(var + op.eps)) + _wide(beta)
        return y.astype(x.dtype), mean.astype(gamma.dtype), var.astype(gamma.dtype)

    return normalise


@lowers(BatchNormGradient)
def batch_norm_gradient(
    op: BatchNormGradient, node: Any, **_: Any
) -> Callable[..., tuple[jax.Array, jax.Array, jax.Array]]:
    def gradient(
        x: jax.Array, gamma: jax.Array, mean: jax.Array, var: jax.Array, g: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        axes = tuple(range(x.ndim - 1))
        count = x.size // x.shape[-1]
        inverse = lax.rsqrt(_wide(var) + op.eps)
        centred, wide_g = _wide(x) - _wide(mean), _wide(g)
        beta_gradient = wide_g.sum(axes)
        gamma_gradient = (wide_g * centred).sum(axes) * inverse
        by_normalised = wide_g - beta_gradient / count - centred * (inverse * gamma_gradient / count)
        x_gradient = _wide(gamma) * inverse * by_normalised
        return x_gradient.astype(x.dtype), gamma_gradient.astype(gamma.dtype), beta_gradient.astype(gamma.dtype)

    return gradient


def _wide(x: jax.Array) -> jax.Array:
    """Sums are taken in at least single precision."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
