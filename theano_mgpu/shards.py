"""Into how many shards a batch is cut: as many as were asked for, or as few as fit; more once memory ran out."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import jax

from theano_mgpu.drawing.summary import size as in_words
from theano_mgpu.errors import DeviceMemoryError, RankError
from theano_mgpu.plan import DeviceMemory
from theano_mgpu.preparation import LimitReached

__all__ = ["ShardCount", "is_out_of_memory"]

_ADVICE = (
    "No parameter was changed. Use smaller examples, a smaller model, tm.recompute(...), or a device with more memory."
)

Need = Callable[[int], DeviceMemory]  # of so many shards


class ShardCount:
    """How many shards a step cuts a batch into; ``asked`` is a number, or None for the smallest power of two that fits.

    ``now`` is what the last batch was cut into, or the next will be. ``agreed`` makes one number of what several
    processes find.
    """

    def __init__(
        self,
        step: str,
        asked: int | None,
        devices: int,
        agreed: Callable[[Callable[[], int]], int] = lambda find: find(),
    ) -> None:
        self._step = step
        self._asked = asked
        self._devices = devices
        self._agreed = agreed
        self._largest: int | None = None  # examples of a shard, since memory ran out
        self._chosen: dict[int, int] = {}  # for batches of so many examples
        self._to_tell = ""
        self.now = asked or _power_of_two(devices)

    def of(self, examples: int, need: Need, limit: Callable[[], int]) -> int:
        """For the batch of ``examples`` that runs next. Raises DeviceMemoryError where not one example fits."""
        self.now = self.foreseen(examples, need, limit)
        return self.now

    def foreseen(self, examples: int, need: Need, limit: Callable[[], int]) -> int:
        """The same, for a batch that runs later."""
        count = self._chosen.get(examples)
        if count is None:
            count = self._asked or self._agreed(lambda: self._smallest(examples, need, limit()))
            while self._largest is not None and -(-examples // count) > self._largest:
                count *= 2
            self._chosen[examples] = count
        return count

    @property
    def is_found(self) -> bool:
        """Whether the number is looked for, and was not asked for."""
        return self._asked is None

    def halve(self, examples: int, error: Exception) -> None:
        """Smaller shards from now on. Raises DeviceMemoryError where they hold one example already."""
        size = -(-examples // self.now)
        if size == 1:
            raise DeviceMemoryError(
                f"{self._step}(): not even shards of one example fit: {_reason(error)} {_ADVICE}"
            ) from error
        if self._largest is None:
            self._to_tell = (
                f"{self._step}(): out of memory with {self.now} shards of at most {size} examples: {_reason(error)} "
                "No parameter was changed, and the batch's gradient is the same with more: the step went on with "
            )
        self._largest = size // 2
        self._chosen.clear()

    def tell(self) -> None:
        """Warn, once, that shards were made smaller; said when they fit."""
        if self._to_tell:
            message, self._to_tell = f"{self._to_tell}{self.now}. So begin with shards={self.now}.", ""
            warnings.warn(message, RuntimeWarning, stacklevel=3)

    def _smallest(self, examples: int, need: Need, limit: int) -> int:
        count, least = _power_of_two(self._devices), None
        while True:
            needed, size = need(count), -(-examples // count)
            if needed.total <= limit:
                return count
            least = min(needed.total, least or needed.total)
            if size == 1:
                raise DeviceMemoryError(
                    f"{self._step}(): no number of shards fits, down to one example each: at least "
                    f"{in_words(least)} are needed on each device, the limit is {in_words(limit)}. {_ADVICE}"
                )
            # What grows with a shard halves with it, the rest stays: less is never needed, so no count is left out.
            grows = needed.inputs + needed.activations
            rest = needed.total - grows
            count *= 2
            while -(-examples // count) > 1 and rest + grows * -(-examples // count) / size > limit:
                count *= 2


def is_out_of_memory(error: Exception) -> bool:
    """Whether a device ran out of memory; JAX has no type of its own for it."""
    if isinstance(error, jax.errors.JaxRuntimeError):
        return "RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error).lower()
    return isinstance(error, LimitReached) or (isinstance(error, RankError) and error.out_of_memory)


def _power_of_two(least: int) -> int:
    return 1 << (least - 1).bit_length()


def _reason(error: Exception) -> str:
    text = str(error).strip().splitlines()[0]
    return text if text.endswith(".") else f"{text}."
