"""PyTensor graphs to XLA. ``lowers`` registers how an op of yours runs on the devices; ``require`` checks its data."""

from theano_mgpu.lowering import (
    convolution,
    draws,
    losses,
    normalisation,
    pooling,
    recomputation,
)  # each registers its ops
from theano_mgpu.lowering.dispatch import lowers, require

__all__ = ["convolution", "draws", "losses", "lowers", "normalisation", "pooling", "recomputation", "require"]
