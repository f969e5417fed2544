"""``Checkpoints``: a folder of checkpoints, written in the background from a copy."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import threading
import warnings
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Literal

import numpy as np

from theano_mgpu.cluster import Cluster, by_first
from theano_mgpu.errors import DamagedCheckpointError
from theano_mgpu.training.checkpoint_file import read_checkpoint, write_checkpoint
from theano_mgpu.training.state import Checkpoint, TrainingState

__all__ = ["Checkpoints"]

_NAME = re.compile(r"step-(\d+)\.safetensors")


class Checkpoints:
    """The checkpoints of one run, in a folder: ``step-00000120.safetensors``, and the best as ``best.safetensors``.

    folder: made where it is missing.
    keep: the number of checkpoints to keep, at least 1; the best is kept besides. With 1 there is none to go back to
        where the newest is damaged.
    on_error: what to do where one cannot be written, as on a full disk. "raise": OSError, from the next call of
        ``save``, ``check`` or ``wait``. "warn": a warning, and the run goes on. The checkpoints before stay whole.
    cluster: under mpirun ``contexts.cluster``. Rank 0 alone reads and writes then. ``newest`` and ``best`` are for all
        ranks to call, and give all what rank 0 has read. The other methods do nothing on other ranks; while rank 0 is
        in them, it may ask the others for what they have, who answer where they wait for it.

    A ``with`` block waits for what is being written.

    Raises OSError where the folder cannot be made, ValueError for ``keep`` below 1 or another ``on_error``.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        keep: int = 2,
        *,
        on_error: Literal["raise", "warn"] = "raise",
        cluster: Cluster | None = None,
    ) -> None:
        if isinstance(keep, bool) or not isinstance(keep, (int, np.integer)) or keep < 1:
            raise ValueError(f"Checkpoints(): 'keep' should be an integer of at least 1, not {keep!r}.")
        if on_error not in ("raise", "warn"):
            raise ValueError(f"Checkpoints(): 'on_error' should be 'raise' or 'warn', not {on_error!r}.")
        self.folder = Path(folder)
        self.keep = int(keep)
        self.on_error = on_error
        self._cluster = cluster
        self._writes = cluster is None or cluster.rank == 0
        by_first(cluster, f"in '{self.folder}'", lambda: self.folder.mkdir(parents=True, exist_ok=True))
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._buffers: dict[str, np.ndarray] = {}

    def save(self, step_number: int, state: TrainingState, *, best: bool = False) -> None:
        """Save the state after ``step_number`` steps, and as the best where ``best``.

        Returns when the state is copied; a thread writes the copy while training goes on. A second save waits for the
        first. What went wrong with the one before is reported first, as ``check`` does.
        """
        if not self._writes:
            return
        self.wait()
        state.advance(step=step_number)
        checkpoint = state.copied(self._buffers)
        self._buffers = dict(checkpoint.arrays)
        # No daemon: a process that ends writes its last checkpoint to the end.
        self._thread = threading.Thread(target=self._write, args=(checkpoint, best), name="checkpoint")
        self._thread.start()

    def reserve(self, state: TrainingState) -> None:
        """Take the memory for the copies now: new memory took ten times as long as the copy, 0.6 s for ResNet-50."""
        if self._writes:
            self._buffers = dict(state.copied().arrays)

    def check(self) -> None:
        """Report what went wrong with a save that has ended: OSError or a warning, as ``on_error`` says."""
        if self._thread is not None and self._thread.is_alive():
            return
        error, self._error = self._error, None
        if error is None:
            return
        if not isinstance(error, OSError):
            raise error
        last = next(iter(self.paths()), None)
        safe = f"'{last}' is whole" if last else "there is none before it"
        sentence = (
            f"save(): the checkpoint could not be written to '{self.folder}': {error.strerror or error}; {safe}. Make "
            "room or let the folder be written to."
        )
        if self.on_error == "warn":
            warnings.warn(f"{sentence} Training goes on without it.", RuntimeWarning, stacklevel=3)
            return
        raise OSError(error.errno, sentence) from error

    def wait(self) -> None:
        """Wait until what was saved is on the disk, and report as ``check`` does."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def paths(self) -> list[Path]:
        """The checkpoints' files, the newest first; ``best.safetensors`` is not among them."""
        found = self.folder.glob("step-*.safetensors")  # of a folder that has gone away, none
        return sorted((path for path in found if _NAME.fullmatch(path.name)), key=_step, reverse=True)

    def newest(self) -> Checkpoint | None:
        """The newest whole checkpoint, or None where there is no file of one.

        Warns of every damaged one that it passes over. Raises DamagedCheckpointError where all are damaged, and
        ValueError for one that a newer version of the package wrote.
        """
        return by_first(self._cluster, "while it read checkpoints", self._newest)

    def _newest(self) -> Checkpoint | None:
        paths = self.paths()
        for path in paths:
            try:
                checkpoint = read_checkpoint(path)
            except DamagedCheckpointError as error:
                warnings.warn(f"{error} The checkpoint before it is taken.", RuntimeWarning, stacklevel=4)
                continue
            return checkpoint
        if paths:
            raise DamagedCheckpointError(
                f"All {len(paths)} checkpoints in '{self.folder}' are damaged. Start a new run, or put a copy of a "
                "whole one there."
            )
        return None

    def best(self) -> Checkpoint | None:
        """The checkpoint that was last saved as the best, or None. Raises as ``read_checkpoint`` does."""
        path = self.folder / "best.safetensors"
        return by_first(
            self._cluster, f"while it read '{path}'", lambda: read_checkpoint(path) if path.exists() else None
        )

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.wait()
        elif self._thread is not None:
            self._thread.join()

    def _write(self, checkpoint: Checkpoint, best: bool) -> None:
        path = self.folder / f"step-{checkpoint.progress.step:08d}.safetensors"
        try:
            self._sweep()
            write_checkpoint(path, replace(checkpoint, path=path))
            if best:
                _link(path, self.folder / "best.safetensors")
            self._prune(checkpoint.progress.step)
        except Exception as error:
            self._error = error

    def _sweep(self) -> None:
        """Away with what a process left that was killed while it wrote: nobody else writes here."""
        for partial in self.folder.glob(".*.partial"):
            partial.unlink(missing_ok=True)

    def _prune(self, newest: int) -> None:
        """Later ones than the newest are damaged: they were passed over when the run went on from an earlier one."""
        paths = self.paths()
        later = [path for path in paths if _step(path) > newest]
        for path in [*later, *paths[len(later) + self.keep :]]:
            path.unlink(missing_ok=True)


def _step(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else -1


def _link(path: Path, best: Path) -> None:
    """A second name for a file, which replaces the old one whole; a copy where the file system has no links."""
    partial = best.with_name(f".{best.name}.{secrets.token_hex(4)}.partial")
    try:
        try:
            os.link(path, partial)
        except OSError:
            shutil.copyfile(path, partial)
        os.replace(partial, best)
    finally:
        partial.unlink(missing_ok=True)
