"""What a training run is made of, by names that do not change from process to process: it can be copied and set."""

from __future__ import annotations

import itertools
import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from pytensor.compile.sharedvalue import SharedVariable

from theano_mgpu import weights
from theano_mgpu.resident_data import ResidentData
from theano_mgpu.step import Step
from theano_mgpu.store import ParameterStore

__all__ = ["Checkpoint", "Progress", "TrainingState"]

#: So many differences are listed; the others are counted.
_LISTED = 20


@dataclass(frozen=True)
class Progress:
    """Where a run is, apart from its shared variables.

    ``step`` counts the steps taken, ``cursor`` is where the data goes on, ``epoch`` how many epochs that is,
    ``metrics_position`` the length of ``metrics.jsonl`` in bytes. ``sums`` are the metrics since the last line there.
    ``best`` is the best evaluation's metric, of ``best_step``; ``since_best`` counts the evaluations after it.
    """

    step: int = 0
    cursor: int = 0
    epoch: float = 0.0
    metrics_position: int = 0
    best: float | None = None
    best_step: int | None = None
    since_best: int = 0
    sums: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoint:
    """A run's whole state as values: what a checkpoint's file holds. Nothing in it counts devices.

    ``arrays`` are the shared variables' values by name, ``generators`` the random generators' states as JSON,
    ``counts`` what ``step.counts`` gives, ``shards`` the number of pieces a batch was cut into, and ``must_match`` what
    has to be the same where training goes on, such as the names of the classes.
    """

    progress: Progress
    arrays: Mapping[str, np.ndarray]
    generators: str
    counts: Mapping[str, Any]
    shards: int | None
    must_match: Mapping[str, Any]
    path: Path | None = None


class TrainingState:
    """The state of a run: every shared variable of a step and a store, the step's counts, and the ``progress``.

    step: the training step; what its update rules keep is found through it, and so are averaged (EMA) parameters.
    store: its parameters and generators are held too where the step does not use them.
    must_match: values that JSON can hold and that must be equal where training goes on: ``{"classes": [...]}``.

    Variables go by their own names. Of several with one name, and of those without, the second is ``"name#2"``, in the
    order of the store, then of the step's updates, then of its graph: the same program gives the same names. Data on
    the devices (``tm.resident``) is no state.

    Raises TypeError where ``must_match`` holds what JSON cannot.
    """

    def __init__(self, step: Step, store: ParameterStore, *, must_match: Mapping[str, Any] | None = None) -> None:
        try:
            self.must_match: dict[str, Any] = json.loads(json.dumps(dict(must_match or {})))
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"TrainingState(): 'must_match' should hold numbers, text, lists and dicts of them: {error}."
            ) from error
        self.step = step
        self.variables = _named(step, store)
        self.progress = Progress()

    def copied(self, buffers: Mapping[str, np.ndarray] | None = None) -> Checkpoint:
        """A copy of everything; into ``buffers`` where they fit, which saves the time of taking new memory."""
        arrays, generators = {}, {}
        for name, variable in self.variables.items():
            value = variable.get_value(borrow=True)
            if isinstance(value, np.random.Generator):
                generators[name] = value
            else:
                arrays[name] = _copy(np.asarray(value), (buffers or {}).get(name))
        return Checkpoint(
            self.progress,
            arrays,
            weights.generator_states(generators),
            self.step.counts,
            self.step.shards if self.step.cut.split else None,
            self.must_match,
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go back to what a checkpoint holds, whatever devices the step runs on.

        Raises ValueError that lists what differs: variables that one side lacks, other shapes or dtypes, values of
        ``must_match``. Nothing is changed then. Warns where the batch is cut into another number of shards, since the
        bits will not be those of a run that was never stopped.
        """
        problems: list[str] = []
        generators = weights.generators_from(checkpoint.generators, problems)
        problems += [*_unmatched(checkpoint.must_match, self.must_match), *self._misfits(checkpoint, generators)]
        if problems:
            more = f"; and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
            where = f"'{checkpoint.path}'" if checkpoint.path else "a checkpoint"
            raise ValueError(
                f"restore(): {where} is of another training run than this one; nothing was changed, because "
                f"{'; '.join(problems[:_LISTED])}{more}. Build the same network and update rule over the same data, "
                "or start a new run."
            )
        for name, value in checkpoint.arrays.items():
            self.variables[name].set_value(np.array(value), borrow=True)
        for name, generator in generators.items():
            self.variables[name].set_value(generator, borrow=True)
        self.step.counts = checkpoint.counts
        self.progress = checkpoint.progress
        other_shards = self.step.cut.split and checkpoint.shards not in (None, self.step.shards)
        if other_shards and self.step.contexts.rank == 0:
            warnings.warn(
                f"restore(): the checkpoint is of a run with {checkpoint.shards} shards, this step has "
                f"{self.step.shards}: training goes on, but not to the same bits. "
                f"tm.function(..., shards={checkpoint.shards}) would, on any number of devices.",
                stacklevel=2,
            )

    def advance(self, **changes: Any) -> None:
        """Set entries of ``progress``."""
        self.progress = replace(self.progress, **changes)

    def _misfits(self, checkpoint: Checkpoint, generators: Mapping[str, np.random.Generator]) -> Iterator[str]:
        held = [*checkpoint.arrays, *generators]
        yield from (f"'{name}' is missing in the checkpoint" for name in self.variables if name not in held)
        yield from (f"'{name}' of the checkpoint is not in this run" for name in held if name not in self.variables)
        for name, variable in self.variables.items():
            own = variable.get_value(borrow=True)
            if isinstance(own, np.random.Generator):
                if name in checkpoint.arrays:
                    yield f"'{name}' is an array in the checkpoint, a random generator here"
            elif name in generators:
                yield f"'{name}' is a random generator in the checkpoint, an array here"
            elif name in checkpoint.arrays and _kind(checkpoint.arrays[name]) != _kind(np.asarray(own)):
                yield f"'{name}' is {_kind(checkpoint.arrays[name])} in the checkpoint, {_kind(np.asarray(own))} here"


def _named(step: Step, store: ParameterStore) -> dict[str, SharedVariable]:
    in_order = [*(store[name] for name in store), *store.generators().values()]
    in_order += [*step.cut.updated, *step.cut.generators, *step.get_shared()]
    named: dict[str, SharedVariable] = {}
    for variable in dict.fromkeys(in_order):
        if isinstance(variable, ResidentData):
            continue
        name = first = variable.name or "unnamed"
        count = 1
        while name in named:
            count += 1
            name = f"{first}#{count}"
        named[name] = variable
    return named


def _copy(value: np.ndarray, buffer: np.ndarray | None) -> np.ndarray:
    if buffer is None or (buffer.shape, buffer.dtype) != (value.shape, value.dtype):
        return np.array(value, order="C")
    np.copyto(buffer, value)
    return buffer


def _kind(value: np.ndarray) -> str:
    return f"{value.dtype} {value.shape}"


def _unmatched(saved: Mapping[str, Any], own: Mapping[str, Any]) -> Iterator[str]:
    for key in dict.fromkeys([*saved, *own]):
        there, here = saved.get(key), own.get(key)
        if there == here:
            continue
        if isinstance(there, dict) and isinstance(here, dict):
            different = [entry for entry in dict.fromkeys([*there, *here]) if there.get(entry) != here.get(entry)]
            shown = (f"'{entry}' {_or_none(there, entry)}, here {_or_none(here, entry)}" for entry in different)
            more = f" and {len(different) - _LISTED} more" if len(different) > _LISTED else ""
            yield f"{key}: in the checkpoint {'; '.join(itertools.islice(shown, _LISTED))}{more}"
            continue
        if isinstance(there, list) and isinstance(here, list):
            gone = [entry for entry in there if entry not in here]
            new = [entry for entry in here if entry not in there]
            if gone or new:
                yield f"{key}: only in the checkpoint {_few(gone)}, only here {_few(new)}"
                continue
        yield f"{key}: {there!r} in the checkpoint, {here!r} here"


def _or_none(entries: Mapping[str, Any], key: str) -> str:
    return str(entries[key]) if key in entries else "none"


def _few(entries: list[Any]) -> str:
    shown = ", ".join(map(repr, entries[:_LISTED])) or "nothing"
    return f"{shown} and {len(entries) - _LISTED} more" if len(entries) > _LISTED else shown
