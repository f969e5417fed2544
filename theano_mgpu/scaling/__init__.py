"""How long a step takes on many nodes: a model of equations, without a device or a network."""

from theano_mgpu.scaling.charts import draw_scaling
from theano_mgpu.scaling.model import Exchange, Machines, Point, Work, curve, device_update, host_update, step_seconds
from theano_mgpu.scaling.units import bandwidth, in_bits, in_bytes, in_seconds, seconds

__all__ = [
    "Exchange",
    "Machines",
    "Point",
    "Work",
    "bandwidth",
    "curve",
    "device_update",
    "draw_scaling",
    "host_update",
    "in_bits",
    "in_bytes",
    "in_seconds",
    "seconds",
    "step_seconds",
]
