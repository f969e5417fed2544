"""The side of the square images of each epoch: one number, or growing from a first to a last."""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["ImageSizes"]

_STEP = 32
# FFCV's 16 epochs of ResNet-18 reach the last size after 13.
_GROWN = 13 / 16


@dataclass(frozen=True)
class ImageSizes:
    """``first`` up to epoch ``begin``, ``last`` from epoch ``end`` on, and multiples of 32 on a line between.

    Leclerc et al., "FFCV: accelerating training by removing data bottlenecks", CVPR 2023: ``get_resolution``.
    """

    first: int
    last: int
    begin: int = 0
    end: int = 0

    @classmethod
    def parse(cls, given: int | str, epochs: int | None) -> ImageSizes:
        """From 224, "128:224", or "160:192@11:13", which grows from epoch 11 to 13. Raises ValueError."""
        if isinstance(given, int) and not isinstance(given, bool) and given >= 1:
            return cls(given, given)
        match = re.fullmatch(r"(\d+):(\d+)(?:@(\d+):(\d+))?", given) if isinstance(given, str) else None
        if match is None:
            raise ValueError(
                "pipeline(): 'image_size' should be an integer of at least 1, two sizes such as '128:224', or two "
                f"sizes and the epochs between which it grows, '160:192@11:13'; not {given!r}."
            )
        first, last = int(match[1]), int(match[2])
        if not 0 < first <= last or first % _STEP or last % _STEP:
            raise ValueError(
                f"pipeline(): 'image_size' is {given!r}; the sizes should be multiples of {_STEP}, the smaller first."
            )
        if match[3] is not None:
            if int(match[3]) > int(match[4]):
                raise ValueError(f"pipeline(): 'image_size' is {given!r}; the earlier epoch comes first.")
            return cls(first, last, int(match[3]), int(match[4]))
        if epochs is None:
            raise ValueError(
                f"pipeline(): image_size={given!r} grows with the epochs. Say by 'epochs' how many there will be."
            )
        return cls(first, last, 0, round(_GROWN * epochs))

    def at(self, epoch: int) -> int:
        """Of an epoch, counted from 0."""
        if epoch >= self.end:
            return self.last
        if epoch <= self.begin:
            return self.first
        between = self.first + (self.last - self.first) * (epoch - self.begin) / (self.end - self.begin)
        return round(between / _STEP) * _STEP
