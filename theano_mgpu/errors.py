"""What a caller may want to catch.

ArithmeticError
├── DivergenceError       devices that should have the same bits have not
└── NonFiniteError        a step's update held NaN or infinity; no parameter was changed
ValueError
├── CutError              a graph that cannot be cut into a device part and a host part
└── ImageError            bytes that are no image, a damaged one, or one with too many pixels
NotImplementedError
└── UnsupportedGraphError a graph with a node that cannot run on the devices
MemoryError
└── DeviceMemoryError     a device's memory does not hold one example, or a shard that cannot be made smaller
"""

from __future__ import annotations

__all__ = ["CutError", "DeviceMemoryError", "DivergenceError", "ImageError", "NonFiniteError", "UnsupportedGraphError"]


class DivergenceError(ArithmeticError):
    """Devices that should have the same bits have not."""


class NonFiniteError(ArithmeticError):
    """A step's update held NaN or infinity; no parameter was changed."""


class CutError(ValueError):
    """A graph cannot be cut: something above the averages depends on batch data without passing one."""


class ImageError(ValueError):
    """Bytes that are no image, a damaged one, or one with more pixels than allowed."""


class DeviceMemoryError(MemoryError):
    """A device's memory does not hold a shard, and it cannot be made smaller; no parameter was changed."""


class UnsupportedGraphError(NotImplementedError):
    """A graph has a node that cannot be lowered, such as a shape that depends on the data."""
