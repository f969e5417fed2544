"""``fit``: the training loop, over parts that stand alone. Copy it and change it."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from signal import Signals
from typing import Any, Literal

from theano_mgpu.cluster import Cluster, by_first, together
from theano_mgpu.data.batches import BatchSource
from theano_mgpu.schedules import Schedule
from theano_mgpu.step import Step
from theano_mgpu.store import ParameterStore
from theano_mgpu.training.checkpoints import Checkpoints
from theano_mgpu.training.limits import Limits, judged
from theano_mgpu.training.live_display import LiveDisplay
from theano_mgpu.training.metrics import Means, Stopwatch, numbers_of
from theano_mgpu.training.prefetch import Prefetch
from theano_mgpu.training.run_folder import RunFolder
from theano_mgpu.training.signals import Interrupted, StopSignals
from theano_mgpu.training.state import Progress, TrainingState

__all__ = ["Callback", "Evaluation", "Fitted", "begin", "fit", "interrupted"]

#: Called without arguments; gives metrics by name.
Evaluation = Callable[[], Mapping[str, float]]

#: Called with each line of metrics; training ends where it returns True.
Callback = Callable[[Mapping[str, Any]], Any]


@dataclass(frozen=True)
class Fitted:
    """How a run ended. ``stopped_by``: "epochs", "max_steps", "patience", "callback" or "time_limit"."""

    progress: Progress
    metrics: Mapping[str, Any]
    stopped_by: str
    checksum: str


def fit(
    step: Step,
    batches: BatchSource,
    *,
    store: ParameterStore,
    run: str | os.PathLike[str] | RunFolder,
    resume: bool = False,
    learning_rate: Schedule | None = None,
    epochs: float | None = None,
    max_steps: int | None = None,
    time_limit: float | None = None,
    log_every: int = 10,
    evaluations: Mapping[str, Evaluation] | None = None,
    evaluate_every: int | None = None,
    best: str | None = None,
    patience: int | None = None,
    checkpoint_every: int | None = None,
    keep: int = 2,
    on_save_error: Literal["raise", "warn"] = "raise",
    must_match: Mapping[str, Any] | None = None,
    callbacks: Iterable[Callback] = (),
    progress: bool = True,
) -> Fitted:
    """Train, with metrics, evaluations and checkpoints in a run's folder; or go on with a run that was stopped.

        step = tm.function([images, labels, rate], {"loss": tm.average(loss)}, updates=updates, shards=8)
        batches = tm.training.Batches(train, batch_size=64, seed=0)
        evaluations = {"val": lambda: tm.training.evaluate(predict, val, 64)}
        schedule = tm.schedules.warmup_cosine(0.1, total_steps=5000)
        tm.training.fit(step, batches, store=store, run="runs/one", learning_rate=schedule, epochs=90,
                        evaluations=evaluations, best="val_top1")

    step: called with a batch's arrays, then with the learning rate where there is one. Its outputs are a dict of
        averages ("loss", "top1"), or the loss alone.
    batches: ``Batches``, or anything with its ``batches_from``. A thread fetches them, two ahead of the step at the
        most, and sends them to devices that have a memory of their own.
    store: the parameters; ``store.checksum()`` of it ends the metrics.
    run: a folder for ``metrics.jsonl`` and ``checkpoints/``; one run at a time. Or a ``RunFolder``, entered already.
    resume: go on from the newest whole checkpoint there, or from the start where there is none. The outcome is the same
        to the bit as without a stop, on any number of devices; give ``shards`` to every ``tm.function``, those of the
        evaluations included, since they depend on the devices by default.
    learning_rate: a function of the number of the step, from 0, as in ``tm.schedules``; asked a step or two ahead.
    epochs, max_steps: the length of the whole run, what was done before a stop included. time_limit: in seconds, for
        this call; the run is saved and may go on.
    log_every: steps between lines of metrics. A line has means over the examples since the last one, and mean seconds
        a step, of which the first compiles; it is written where evaluations are, too.
    evaluations: functions without arguments, at the end of each epoch and of the run, or every ``evaluate_every``
        steps; what they give stands in the metrics under "NAME_metric". For averaged parameters (``tm.updates.ema``)
        give one on a step with ``givens=average.shadows``.
    best: the metric, such as "val_top1", whose best is kept as a checkpoint; larger is better but for names that end in
        "loss". patience: end after so many evaluations without a better one.
    checkpoint_every: steps between checkpoints; at the end of each epoch by default. ``keep`` of them stay.
    on_save_error: "raise" or "warn" where a checkpoint or a line of metrics cannot be written.
    must_match: what a resumed run must have in common: ``{"classes": names}``.
    callbacks: functions of a line of metrics, a dict; the run ends where one returns True. Of rank 0 alone.
    progress: a live display where standard error is a terminal, else a plain line there for each line of metrics.

    Under mpirun all ranks call it, with the same arguments. Rank 0 alone has the run's folder, shows, and decides when
    the run ends; evaluations run on all ranks, and rank 0's count. With ``split_over="ranks"`` in the step each rank
    fetches its part of every batch, else all fetch all. A signal to any rank stops all, and what one of them raises
    stops all, the others by RankError. A run may go on on other numbers of ranks.

    Returns how it ended. SIGTERM and SIGINT finish the step, save, say how to go on, and raise ``Interrupted``, which
    ends the process.

    Raises ValueError naming the argument, or where the batches end; FileExistsError for a folder with a run in it
    without ``resume``; RunInUseError; OSError where the disk does not take a line or a checkpoint; and what the step
    raises.
    """
    limits = Limits(epochs, max_steps, time_limit, patience)
    callbacks = tuple(callbacks)
    _check(limits, log_every, evaluate_every, checkpoint_every, evaluations, best, patience)
    state = TrainingState(step, store, must_match=must_match)
    cluster, is_first = step.contexts.cluster, step.contexts.rank == 0
    with (
        _folder(run, cluster) as folder,
        Checkpoints(folder.checkpoints, keep, on_error=on_save_error, cluster=cluster) as checkpoints,
        Prefetch(step, batches, learning_rate) as ahead,
    ):
        at = cluster.at if cluster else _nowhere  # what is said of this rank if it dies or hangs
        at(phase="starting the run", run=str(folder.path))
        begin(state, folder, checkpoints, resume=resume)
        checkpoints.reserve(state)
        means, watch, line = Means(state.progress.sums), Stopwatch(), _last(folder, cluster)
        source = ahead.going_on(state.progress)
        stopped_by, began = limits.finished(state.progress), state.progress.step
        saved = began
        display = LiveDisplay(shown=progress and is_first, contexts=step.contexts)
        with StopSignals(says=is_first) as signals, display as live:
            while stopped_by is None:
                number = state.progress.step + 1
                at(number, "waiting for its batch")
                with together(cluster, f"with the batch of step {number}") as told:
                    checkpoints.check()
                    given, asked = None, limits.asked(signals.received) if number > began + 1 else None
                    if asked is None and (given := watch.timed("wait", next, source, None)) is None:
                        raise ValueError(
                            f"fit(): 'batches' ended after step {number - 1}. batches_from() should go on, epoch after "
                            "epoch, until the run has what it was asked for."
                        )
                    told.own = asked, len(given.batch) if given else 0
                stopped_by = next((asked for asked, _ in told.everyone if asked), None)
                if stopped_by or given is None:
                    break
                batch, skipped = given.batch, step.skipped
                examples = sum(own for _, own in told.everyone) if step.takes_parts else len(batch)
                at(phase="computing")
                outputs = numbers_of(watch.timed("step", step, *given.arguments))
                watch.count(examples, step.seconds, step.rank_seconds)
                if step.skipped == skipped:  # the loss of a step that was left out is no number
                    means.add(outputs, examples)
                state.advance(step=number, cursor=batch.cursor, epoch=batch.epoch)
                stopped_by = limits.finished(state.progress)

                ends_epoch = batch.epoch == int(batch.epoch)
                evaluated: dict[str, float] = {}
                if stopped_by or (number % evaluate_every == 0 if evaluate_every else ends_epoch):
                    at(phase="evaluating")
                    evaluated = _evaluated(evaluations, cluster, number)
                    state.advance(**(judged(state.progress, evaluated, best) if evaluated else {}))
                    stopped_by = limits.finished(state.progress)

                is_best = bool(evaluated) and state.progress.best_step == number
                saves = is_best or (number % checkpoint_every == 0 if checkpoint_every else ends_epoch)
                logs = stopped_by or evaluated or number % log_every == 0
                if logs:
                    line = {"step": number, "epoch": batch.epoch, "loss": None, "top1": None, **means.taken()}
                    line |= {"learning_rate": given.learning_rate} if learning_rate else {}
                    line |= watch.taken() | evaluated
                if logs or saves:
                    at(phase="saving")
                    with together(cluster, f"with what is kept of step {number}") as told:
                        if logs and is_first:
                            _record(folder, line, on_save_error)
                            told.own = True in [callback(line) for callback in callbacks]
                        if saves and is_first:
                            _save(checkpoints, state, folder, means, best=is_best)
                    saved = number if saves else saved
                    stopped_by = stopped_by or ("callback" if told.everyone[0] else None)
                live.update(number, line, limits.total_steps(state.progress))
            with together(cluster, f"with what is kept of step {state.progress.step}"):
                if saved != state.progress.step and is_first:
                    _save(checkpoints, state, folder, means)
                checkpoints.wait()
        assert stopped_by is not None
        if stopped_by in Signals.__members__:
            signals.received = Signals[stopped_by]
            raise interrupted(signals, state, folder)
        checksum = store.checksum()
        if stopped_by != "time_limit":
            line = {"step": state.progress.step, "epoch": state.progress.epoch, **line}
            line |= {"final": True, "checksum": checksum, "stopped_by": stopped_by}
            folder.by_first(lambda: _record(folder, line, on_save_error))
        return by_first(cluster, "at its end", lambda: Fitted(state.progress, line, stopped_by, checksum))


def begin(state: TrainingState, folder: RunFolder, checkpoints: Checkpoints, *, resume: bool) -> None:
    """Go on from the newest whole checkpoint, or begin in an empty folder."""
    if not resume:
        folder.require_new()
    newest = checkpoints.newest()
    if newest is not None:
        with together(state.step.contexts.cluster, "while it went back to a checkpoint"):
            state.restore(newest)
    folder.by_first(lambda: folder.metrics.truncate(state.progress.metrics_position))


def interrupted(signals: StopSignals, state: TrainingState, folder: RunFolder) -> Interrupted:
    """What ends a run that was stopped by a signal; it is said on standard error as well."""
    assert signals.received is not None
    sentence = (
        f"Stopped by {signals.received.name} after step {state.progress.step} (epoch {state.progress.epoch:.2f}); the "
        f"run is saved in '{folder.path}'. Go on with fit(..., run='{folder.path}', resume=True), or on the command "
        f"line with theano-mgpu train --resume {folder.path}"
    )
    if state.step.contexts.rank == 0:
        print(sentence, file=sys.stderr, flush=True)
    return Interrupted(signals.received, sentence)


def _folder(run: str | os.PathLike[str] | RunFolder, cluster: Cluster | None) -> RunFolder:
    return run if isinstance(run, RunFolder) else RunFolder(run, cluster=cluster)


def _nowhere(step: int | None = None, phase: str | None = None, run: str | None = None) -> None:
    """Where nobody watches."""


def _evaluated(evaluations: Mapping[str, Evaluation] | None, cluster: Cluster | None, number: int) -> dict[str, float]:
    if not evaluations:
        return {}
    with together(cluster, f"while it evaluated after step {number}") as told:
        told.own = {
            f"{name}_{metric}": value
            for name, evaluation in evaluations.items()
            for metric, value in evaluation().items()
        }
    found: dict[str, float] = told.everyone[0]
    return found


def _save(
    checkpoints: Checkpoints, state: TrainingState, folder: RunFolder, means: Means, *, best: bool = False
) -> None:
    state.advance(metrics_position=folder.metrics.position, sums=means.sums)
    checkpoints.save(state.progress.step, state, best=best)


def _record(folder: RunFolder, line: Mapping[str, Any], on_error: str) -> None:
    try:
        folder.metrics.append(line)
    except OSError as error:
        if on_error == "raise":
            raise
        warnings.warn(f"fit(): {error.strerror} Until then it goes on without.", RuntimeWarning, stacklevel=3)


def _last(folder: RunFolder, cluster: Cluster | None) -> dict[str, Any]:
    lines = by_first(cluster, "with the run's metrics", folder.metrics.lines)
    return lines[-1] if lines else {}


def _check(
    limits: Limits,
    log_every: int,
    evaluate_every: int | None,
    checkpoint_every: int | None,
    evaluations: Mapping[str, Evaluation] | None,
    best: str | None,
    patience: int | None,
) -> None:
    numbers = {"log_every": log_every, "evaluate_every": evaluate_every, "checkpoint_every": checkpoint_every}
    for name, value in numbers.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ValueError(f"fit(): '{name}' should be an integer of at least 1, not {value!r}.")
    if best is not None and not evaluations:
        raise ValueError(f"fit(): best='{best}' needs 'evaluations' that give it.")
    if patience is not None and best is None:
        raise ValueError(
            "fit(): 'patience' counts evaluations without a better one: say by 'best' which metric counts."
        )
