"""Random draws that PyTensor does not lower to JAX, or does with other probabilities.

PyTensor's lowering of a random variable splits the generator's key and asks ``jax_sample_fn`` for the draw itself. Its
draw of categories takes logit(p) for the logarithm of p, which is right for equal probabilities only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytensor.tensor.random.basic as random
from jax.random import beta, cauchy, gamma, normal, poisson, uniform

from theano_mgpu.lowering.dispatch import jax_sample_fn

__all__ = ["Draw", "draws"]

Draw = Callable[..., jax.Array]


def draws(op: type[random.RandomVariable]) -> Callable[[Draw], Draw]:
    """Registers draw(key, size, dtype, *parameters); size is that of the parameters together if there is none."""

    def register(draw: Draw) -> Draw:
        def sampler(op: random.RandomVariable, node: Any) -> Draw:
            def sample(key: jax.Array, size: tuple[int, ...] | None, dtype: str, *parameters: jax.Array) -> jax.Array:
                if size is None:
                    batches = [
                        jnp.shape(p)[: jnp.ndim(p) - n] for p, n in zip(parameters, op.ndims_params, strict=True)
                    ]
                    size = jnp.broadcast_shapes(*batches)
                return draw(key, size, dtype, *parameters).astype(dtype)

            return sample

        jax_sample_fn.register(op, sampler)
        return draw

    return register


@draws(random.CategoricalRV)
def _(key, size, dtype, p):
    return jax.random.categorical(key, jnp.log(p), shape=size)


@draws(random.BernoulliRV)
def _(key, size, dtype, p):
    return jax.random.bernoulli(key, p, size)


@draws(random.BinomialRV)
def binomial(key, size, dtype, n, p):
    return jax.random.binomial(key, n, p, size)


@draws(random.BetaBinomialRV)
def _(key, size, dtype, n, a, b):
    of_beta, of_binomial = jax.random.split(key)
    return binomial(of_binomial, size, dtype, n, beta(of_beta, a, b, size))


@draws(random.NegBinomialRV)
def _(key, size, dtype, n, p):
    """Failures before the n-th success: a Poisson draw whose rate is drawn from a gamma distribution."""
    of_gamma, of_poisson = jax.random.split(key)
    return poisson(of_poisson, gamma(of_gamma, n, size) * (1 - p) / p, size)


@draws(random.GeometricRV)
def _(key, size, dtype, p):
    return jax.random.geometric(key, p, size)


@draws(random.TriangularRV)
def _(key, size, dtype, left, mode, right):
    return jax.random.triangular(key, left, mode, right, size, dtype)


@draws(random.HalfNormalRV)
def _(key, size, dtype, loc, scale):
    return loc + scale * jnp.abs(normal(key, size, dtype))


@draws(random.HalfCauchyRV)
def _(key, size, dtype, loc, scale):
    return loc + scale * jnp.abs(cauchy(key, size, dtype))


@draws(random.LogNormalRV)
def _(key, size, dtype, mean, sigma):
    return jnp.exp(mean + sigma * normal(key, size, dtype))


@draws(random.WeibullRV)
def _(key, size, dtype, shape):
    return jax.random.weibull_min(key, 1, shape, size, dtype)


@draws(random.WaldRV)
def _(key, size, dtype, mean, scale):
    return scale * jax.random.wald(key, mean / scale, size, dtype)


@draws(random.InvGammaRV)
def _(key, size, dtype, shape, scale):
    return scale / gamma(key, shape, size, dtype)


@draws(random.GenGammaRV)
def _(key, size, dtype, alpha, p, scale):
    return scale * gamma(key, alpha / p, size, dtype) ** (1 / p)


@draws(random.TruncExponentialRV)
def _(key, size, dtype, b, loc, scale):
    return loc - scale * jnp.log1p(jnp.expm1(-b) * uniform(key, size, dtype))
