"""A run's folder: a lock, so that one run at a time writes there, the metrics, and where the checkpoints are."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from theano_mgpu.cluster import Cluster, by_first
from theano_mgpu.errors import RunInUseError
from theano_mgpu.training.metrics import MetricsFile

__all__ = ["RunFolder"]


class RunFolder:
    """The folder of one training run, locked inside a ``with`` block.

        metrics.jsonl    a line for every logged step: ``folder.metrics``
        checkpoints/     ``folder.checkpoints``
        lock             which process trains here

    The system lets go of the lock when its process ends, also when it is killed, so a lock is never left behind.

    Entering makes the folder; inside, it may be entered again, by ``fit`` for instance. What was made is taken away
    again if nothing else was written there. Raises RunInUseError where another run is in the folder, naming its
    process, and OSError where it cannot be made or written.

    cluster: under mpirun ``contexts.cluster``. Rank 0 alone has the folder then, and writes there; the others enter it
    with rank 0, hear whether it could, and need not see its disk.
    """

    def __init__(self, path: str | os.PathLike[str], *, cluster: Cluster | None = None) -> None:
        self.path = Path(path)
        self._cluster = cluster
        self.metrics = MetricsFile(self.path / "metrics.jsonl")
        self.checkpoints = self.path / "checkpoints"
        self._lock: int | None = None
        self._made: list[Path] = []
        self._entered = 0

    def require_new(self) -> None:
        """Raises FileExistsError if a run has begun here."""
        self.by_first(self._require_new)

    def by_first(self, call: Callable[[], object]) -> None:
        """Call a function on the rank that has the folder, which is this process where there is no other."""

        def called() -> None:
            call()

        by_first(self._cluster, f"in the run's folder '{self.path}'", called)

    def _require_new(self) -> None:
        if self.metrics.position or any(self.checkpoints.glob("step-*.safetensors")):
            raise FileExistsError(
                f"'{self.path}' has a run in it. Go on with it by resume=True (theano-mgpu train --resume "
                f"{self.path}), or give another folder."
            )

    def __enter__(self) -> RunFolder:
        self._entered += 1
        if self._entered == 1:
            try:
                self.by_first(self._enter)
            except BaseException:
                self._entered = 0
                raise
        return self

    def _enter(self) -> None:
        lock = self.path / "lock"
        self._made = [path for path in (lock, self.path, *self.path.parents) if not path.exists()]
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise OSError(
                error.errno,
                f"RunFolder(): cannot write to the run's folder '{self.path}': {error.strerror}. Give another folder, "
                "or let this one be written to.",
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "another process"
            os.close(descriptor)
            raise RunInUseError(
                f"RunFolder(): in '{self.path}' a run is going on ({holder}). Stop it first, or give this one another "
                "folder."
            ) from error
        if not lock.exists() or not os.path.samestat(os.fstat(descriptor), lock.stat()):
            os.close(descriptor)
            raise RunInUseError(f"RunFolder(): another run was ending in '{self.path}' just now. Try once more.")
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        self._lock = descriptor

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._entered -= 1
        if self._lock is not None and not self._entered:
            os.ftruncate(self._lock, 0)
            if self._made and os.listdir(self.path) == ["lock"]:
                self._unmake()
            os.close(self._lock)
            self._lock = None

    def _unmake(self) -> None:
        """Away with the lock and the folders that were made for it, as far as nothing else is in them."""
        lock, *folders = self._made
        with contextlib.suppress(OSError):
            lock.unlink()
            for folder in folders:
                folder.rmdir()

    def __repr__(self) -> str:
        return f"<run folder '{self.path}'>"
