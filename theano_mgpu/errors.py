"""What a caller may want to catch.

ArithmeticError
├── DivergenceError       devices that should have the same bits have not
└── NonFiniteError        a step's update held NaN or infinity; no parameter was changed
ValueError
├── CutError              a graph that cannot be cut into a device part and a host part
├── DamagedCheckpointError a checkpoint's file is not what was saved
├── ImageError            bytes that are no image, a damaged one, or one with too many pixels
├── RanksDifferError      ranks of one mpirun with another graph, other shapes or other versions than the others
└── RecipeError           a recipe with a setting that is not known, of another type, or out of range
RuntimeError
├── RankError             another of mpirun's ranks failed, so that this one could not go on
└── RunInUseError         another process, or this one, trains in the same run folder
NotImplementedError
└── UnsupportedGraphError a graph with a node that cannot run on the devices
MemoryError
└── DeviceMemoryError     a device's memory does not hold one example, or a shard that cannot be made smaller
"""

from __future__ import annotations

__all__ = [
    "CutError",
    "DamagedCheckpointError",
    "DeviceMemoryError",
    "DivergenceError",
    "ImageError",
    "NonFiniteError",
    "RankError",
    "RanksDifferError",
    "RecipeError",
    "RunInUseError",
    "UnsupportedGraphError",
]


class DivergenceError(ArithmeticError):
    """Devices that should have the same bits have not."""


class NonFiniteError(ArithmeticError):
    """A step's update held NaN or infinity; no parameter was changed."""


class CutError(ValueError):
    """A graph cannot be cut: something above the averages depends on batch data without passing one."""


class DamagedCheckpointError(ValueError):
    """A checkpoint's file is cut short or changed: it does not hold what was saved."""


class ImageError(ValueError):
    """Bytes that are no image, a damaged one, or one with more pixels than allowed."""


class RanksDifferError(ValueError):
    """Ranks that mpirun started are about to run different things: another graph, other shapes, other versions."""


class RecipeError(ValueError):
    """A recipe has a setting that is not known, of another type, or out of range."""


class RankError(RuntimeError):
    """Another of mpirun's ranks failed in what all do together; no parameter was changed on any.

    ``rank`` is its number; ``out_of_memory`` says whether a device's memory was not enough.
    """

    def __init__(self, message: str, rank: int, *, out_of_memory: bool = False) -> None:
        super().__init__(message)
        self.rank = rank
        self.out_of_memory = out_of_memory


class RunInUseError(RuntimeError):
    """Another process, or this one, trains in the same run folder."""


class DeviceMemoryError(MemoryError):
    """A device's memory does not hold a shard, and it cannot be made smaller; no parameter was changed."""


class UnsupportedGraphError(NotImplementedError):
    """A graph has a node that cannot be lowered, such as a shape that depends on the data."""
