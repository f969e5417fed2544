"""What a caller may want to catch.

ArithmeticError
└── NonFiniteError        a step's update held NaN or infinity; no parameter was changed
ValueError
└── CutError              a graph that cannot be cut into a device part and a host part
NotImplementedError
└── UnsupportedGraphError a graph with a node that cannot run on the devices
"""

from __future__ import annotations

__all__ = ["CutError", "NonFiniteError", "UnsupportedGraphError"]


class NonFiniteError(ArithmeticError):
    """A step's update held NaN or infinity; no parameter was changed."""


class CutError(ValueError):
    """A graph cannot be cut: something above the averages depends on batch data without passing one."""


class UnsupportedGraphError(NotImplementedError):
    """A graph has a node that cannot be lowered, such as a shape that depends on the data."""
