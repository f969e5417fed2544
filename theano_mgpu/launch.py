"""Rounds launched a little ahead of the use of their results: devices stay busy, and memory does not fill."""

from __future__ import annotations

import functools
import itertools
import operator
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import jax

from theano_mgpu.devices import Contexts
from theano_mgpu.programs import ShardResults

__all__ = ["AHEAD", "launched_ahead", "rounds_at_a_time"]

AHEAD = 1  # rounds that may wait or run while the one before them is used

Launch = Callable[[], ShardResults]


def launched_ahead(rounds: Sequence[Launch], contexts: Contexts) -> Iterator[ShardResults]:
    """The rounds' results in order. A launch returns at once; what a single round gives may still be computed."""
    launched: deque[ShardResults] = deque()
    launchers = itertools.cycle(_launchers(len(rounds), contexts))
    for launch, launcher in zip(rounds, launchers, strict=False):
        launched.append(launcher(launch))
        if len(launched) > AHEAD:
            yield _ready(launched.popleft())
    yield from launched


def rounds_at_a_time(rounds: int, contexts: Contexts) -> int:
    """How many rounds' temporary memory a device holds."""
    return len(_launchers(rounds, contexts))


def _launchers(rounds: int, contexts: Contexts) -> Sequence[Callable[[Launch], ShardResults]]:
    """A simulated device runs what one thread launches in turn, and leaves a part of the cores idle; so use two.

    ResNet-20's eight rounds take 1.0 s instead of 1.4 on two cores. A single round another thread would only delay.
    """
    if rounds == 1 or len(contexts) > 1 or contexts.platform != "cpu" or os.cpu_count() == 1:
        return [operator.call]
    return [functools.partial(_launched_by, thread) for thread in _threads()]


def _launched_by(thread: ThreadPoolExecutor, launch: Launch) -> ShardResults:
    return thread.submit(_in_64_bits, launch).result()


def _in_64_bits(launch: Launch) -> ShardResults:
    with jax.enable_x64(True):  # not inherited by threads
        return launch()


def _ready(results: ShardResults) -> ShardResults:
    jax.block_until_ready((results.values, results.report.per_example))
    return results


@functools.cache
def _threads() -> list[ThreadPoolExecutor]:
    return [ThreadPoolExecutor(1, thread_name_prefix="theano_mgpu launch") for _ in range(2)]
