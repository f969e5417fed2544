"""What a run's folder holds of a report's ingredients; what is missing or cannot be read stays out, with its reason."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from theano_mgpu.training import Checkpoints, Examination, MetricsFile, read_checkpoint

__all__ = ["Run", "read_run"]

Result = TypeVar("Result")
_FILTERS = "conv1.weight"


@dataclass(frozen=True)
class Run:
    """A run, as far as its folder tells.

    lines: of metrics, each step once. last: the final line of a run that is finished. process: who trains there now, or
    did when it was killed; going_on: whether that process is alive, None where it is on another machine. filters: the
    first layer's, (height, width, channels, filters), of the checkpoint ``filters_of``. missing: why there is none of
    an ingredient, by its name.
    """

    name: str
    lines: list[dict[str, Any]]
    last: Mapping[str, Any] | None
    written: float
    process: str
    going_on: bool | None
    recipe: str | None
    machine: dict[str, Any] | None
    cut: str | None
    filters: np.ndarray | None
    filters_of: str
    examined: Examination | None
    missing: Mapping[str, str]


def read_run(folder: Path) -> Run:
    """Read what there is.

    Raises FileNotFoundError for a folder that is missing or holds no run, and ValueError for metrics that are none.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"write_report(): there is no folder '{folder}'. Give the folder of a run.")
    metrics = MetricsFile(folder / "metrics.jsonl")
    if not metrics.path.exists() and not (folder / "lock").exists():
        raise FileNotFoundError(
            f"write_report(): '{folder}' holds no run: there is no 'metrics.jsonl' in it. Give the folder that was "
            "given to fit(run=...)."
        )
    lines = _lines(metrics)
    last = lines[-1] if lines and lines[-1].get("final") else None
    process, going_on = _process(folder / "lock")
    missing: dict[str, str] = {}

    def ingredient(name: str, read: Callable[[], Result | None]) -> Result | None:
        """None, and the reason in ``missing``, where it is not there or not what it should be."""
        try:
            found = read()
        except FileNotFoundError:
            found = None
        except (OSError, ValueError) as error:
            missing[name] = f"It could not be read: {str(error).rstrip('.')}."
            return None
        if found is None:
            missing[name] = ""
        return found

    checkpoint = _checkpoint_path(folder)
    return Run(
        name=folder.resolve().name,
        lines=[line for line in lines if not line.get("final")],
        last=last,
        written=max((path.stat().st_mtime for path in (metrics.path, folder / "lock") if path.exists()), default=0.0),
        process=process,
        going_on=going_on,
        recipe=ingredient("recipe", (folder / "recipe.toml").read_text),
        machine=ingredient("machine", lambda: dict(json.loads((folder / "machine.json").read_text()))),
        cut=ingredient("cut", (folder / "cut.svg").read_text),
        filters=ingredient("filters", lambda: _filters(checkpoint)),
        filters_of=checkpoint.stem if checkpoint else "",
        examined=ingredient("examined", lambda: Examination.load(folder / "evaluation.npz")),
        missing=missing,
    )


def _lines(metrics: MetricsFile) -> list[dict[str, Any]]:
    try:
        lines = metrics.lines()
        whole = all(isinstance(line, dict) and isinstance(line.get("step"), int) for line in lines)
    except ValueError:
        whole = False
    if not whole:
        raise ValueError(
            f"write_report(): '{metrics.path}' holds lines that are no metrics: each should be a JSON object with a "
            '"step".'
        )
    return lines


def _process(lock: Path) -> tuple[str, bool | None]:
    """What the lock says, as ``RunFolder`` writes it: nothing once a run has ended by itself.

    The lock itself is left alone: even to try it would refuse a run that begins just then.
    """
    try:
        process = lock.read_text(errors="replace").strip()
    except OSError:
        return "", False
    words = process.split()
    if len(words) != 4 or not words[1].isdecimal():
        return process, False
    if words[3] != socket.gethostname():
        return process, None
    try:
        os.kill(int(words[1]), 0)
    except ProcessLookupError:
        return process, False
    except PermissionError:
        return process, True
    return process, True


def _checkpoint_path(folder: Path) -> Path | None:
    """The best one, else the newest."""
    if not (folder / "checkpoints").is_dir():
        return None
    best = folder / "checkpoints" / "best.safetensors"
    return best if best.exists() else next(iter(Checkpoints(folder / "checkpoints").paths()), None)


def _filters(path: Path | None) -> np.ndarray | None:
    """(height, width, channels, filters), float32, or None where a network does not begin with a convolution."""
    if path is None:
        return None
    filters = read_checkpoint(path).arrays.get(_FILTERS)
    if filters is None or filters.ndim != 4 or filters.shape[2] not in (1, 3):
        return None
    return filters.astype("float32")
