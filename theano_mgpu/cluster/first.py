"""What rank 0 alone does, with what comes of it on all ranks."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import TypeVar

from theano_mgpu.cluster.communication import Cluster, together

__all__ = ["by_first"]

Result = TypeVar("Result")


def by_first(cluster: Cluster | None, doing: str, call: Callable[[], Result]) -> Result:
    """What ``call`` gives on rank 0, on all ranks, for all of them to ask; of a process that is alone it is a call.

    Raises what it raises, and RankError on the other ranks; ``doing`` says what was done, as "while it read the file".
    The others need nothing that it reads. Arrays in it travel one by one, as all of them may be large.
    """
    if cluster is None:
        return call()
    value: Result | None = None
    with together(cluster, doing):
        if cluster.rank == 0:
            value = call()
    buffers: list[pickle.PickleBuffer] = []
    head = pickle.dumps(value, protocol=5, buffer_callback=buffers.append) if cluster.rank == 0 else b""
    head, count = cluster.from_first((head, len(buffers)))
    arrays = [cluster.from_first(bytearray(buffers[i].raw()) if buffers else None) for i in range(count)]
    received: Result = pickle.loads(head, buffers=arrays)
    return received
