"""PyTensor graphs to XLA. ``lowers`` registers how an op of yours runs on the devices; ``require`` checks its data."""

from theano_mgpu.lowering.dispatch import lowers, require

__all__ = ["lowers", "require"]
