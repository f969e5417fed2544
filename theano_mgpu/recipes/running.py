"""A recipe from its data to its report: what ``theano-mgpu train`` does."""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from theano_mgpu.cluster import Cluster, by_first, together
from theano_mgpu.devices import Contexts, contexts
from theano_mgpu.recipes.building import Training, build
from theano_mgpu.recipes.datasets import Dataset, open_dataset
from theano_mgpu.recipes.files import write_recipe
from theano_mgpu.recipes.learning_rate import scaling_sentence
from theano_mgpu.recipes.settings import Recipe
from theano_mgpu.report import describe_machine, write_report
from theano_mgpu.training import Checkpoints, Examination, Fitted, RunFolder, TensorBoard, TrainingState, examine, fit
from theano_mgpu.weights import write_whole

__all__ = ["Outcome", "resolved", "train"]


@dataclass(frozen=True)
class Outcome:
    """How a run ended. ``stopped_by`` is as ``fit`` has it; the metrics are the last evaluation's, from 0 to 1.
    ``bad_images`` counts those that were found broken on the way.
    """

    run: str
    stopped_by: str
    steps: int
    epochs: float
    seconds: float
    metrics: dict[str, float | None]
    checksum: str
    report: str
    bad_images: int

    def __str__(self) -> str:
        rates = {name: value for name, value in self.metrics.items() if name.endswith(("top1", "top5"))}
        shown = ", ".join(f"{name} {value:.1%}" for name, value in rates.items() if value is not None)
        lines = [
            f"{self.steps:,} steps, {self.epochs:.2f} epochs in {self.seconds:,.0f} s{': ' if shown else ''}{shown}"
        ]
        if self.stopped_by == "time_limit":
            lines.append(f"the time limit was reached; theano-mgpu train --resume {self.run} goes on")
        if self.bad_images:
            lines.append(f"{self.bad_images} broken images were left out, each named above")
        return "\n".join([*lines, f"parameters: {self.run}/checkpoints", f"report: {self.report}"])


def train(recipe: Recipe, run: str | Path, *, resume: bool = False, say: Callable[[str], None] = print) -> Outcome:
    """Train as a recipe says, in the folder ``run``, evaluate, and write the report.

    ``say`` is called with lines about what goes on. Raises what reading the data, building and ``tm.training.fit``
    raise; FileExistsError for a folder with a run in it, unless ``resume``.

    Under mpirun all ranks call it; rank 0 alone says something, and has the folder. All need the data.
    """
    started = time.monotonic()
    devices = contexts(recipe.contexts)
    cluster = devices.cluster
    recipe = resolved(recipe, devices).set(output=str(run))
    with ExitStack() as stack:
        folder = stack.enter_context(RunFolder(run, cluster=cluster))
        if not resume:
            folder.require_new()
        dataset = _dataset(recipe, cluster)
        with together(cluster, "while it built the network"):
            training = stack.enter_context(build(recipe, dataset, devices))
        for line in _introduction(recipe, dataset, devices, training) if devices.rank == 0 else ():
            say(line)
        must_match = _must_match(recipe, dataset)
        if resume:
            _require_same_run(training, folder, must_match)
        folder.by_first(lambda: _describe(folder.path, recipe, devices, training))
        fitted = _fitted(recipe, training, folder, resume, must_match)
        report = _examined(training, folder, dataset.classes)
        bad_images = _bad_images(training, cluster)
    metrics = {name: value for name, value in fitted.metrics.items() if name.startswith(("val_", "ema_"))}
    return Outcome(
        str(folder.path),
        fitted.stopped_by,
        fitted.progress.step,
        fitted.progress.epoch,
        time.monotonic() - started,
        metrics,
        fitted.checksum,
        str(report),
        bad_images,
    )


def resolved(recipe: Recipe, devices: Contexts) -> Recipe:
    """The recipe with the number of shards that the devices give it: a run that goes on elsewhere keeps it."""
    return recipe if recipe.shards is not None else recipe.set(shards=sum(devices.counts))


def _dataset(recipe: Recipe, cluster: Cluster | None) -> Dataset:
    """The data, which all ranks open and have alike. Rank 0 is the first, and may have to write it to the disk."""
    with together(cluster, "while it opened the data"):
        dataset = open_dataset(recipe) if cluster is None or cluster.rank == 0 else None
    with together(cluster, "while it opened the data") as told:
        dataset = dataset or open_dataset(recipe)
        told.own = hashlib.blake2b(repr((dataset.classes, dataset.description())).encode(), digest_size=16).digest()
    for rank, digest in enumerate(told.everyone):
        if digest != told.everyone[0]:
            raise ValueError(
                f"'data' is '{recipe.data}', which is not the same on all ranks: rank {rank} finds other images, or "
                "others of a class, than rank 0. Give all the same files, in a folder that they share or a copy on "
                "each."
            )
    return dataset


def _bad_images(training: Training, cluster: Cluster | None) -> int:
    """Of all ranks, each once."""
    own = training.train.bad_numbers, training.val.bad_numbers
    everyone = cluster.gathered(own) if cluster else [own]
    return sum(len(frozenset().union(*of_ranks)) for of_ranks in zip(*everyone, strict=True))


def _introduction(recipe: Recipe, dataset: Dataset, devices: Contexts, training: Training) -> list[str]:
    numbers = sum(param.get_value(borrow=True).size for param in training.steps.store.trainable())
    steps = training.train.batches_per_epoch
    return [
        f"{dataset.name}: {len(dataset.classes):,} classes, {len(dataset.train):,} training and "
        f"{len(dataset.val):,} validation images",
        f"{recipe.model}: {numbers:,} parameters, on {_places(devices)}, batches of {recipe.batch_size} in "
        f"{recipe.shards} shards",
        f"{recipe.epochs:g} epochs of {steps:,} steps; {scaling_sentence(recipe)}",
        f"run: {recipe.output}",
    ]


def _places(devices: Contexts) -> str:
    if devices.cluster is None:
        return ", ".join(devices.names)
    hosts = dict.fromkeys(rank.host for rank in devices.ranks)
    return f"{sum(devices.counts)} devices of {len(devices.ranks)} ranks on {', '.join(hosts)}"


def _must_match(recipe: Recipe, dataset: Dataset) -> dict[str, Any]:
    """What makes it the same run: the data's cursor counts batches of this size, in an order of this seed."""
    same = {name: getattr(recipe, name) for name in ("batch_size", "seed", "optimizer")}
    return {"classes": list(dataset.classes), "network": recipe.model} | same | dataset.description()


def _require_same_run(training: Training, folder: RunFolder, must_match: dict[str, Any]) -> None:
    """Before anything of the run is written over. Raises ValueError that says what differs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fit warns, and restores once more
        cluster = training.steps.train.contexts.cluster
        newest = Checkpoints(folder.checkpoints, cluster=cluster).newest()
        if newest is not None:
            state = TrainingState(training.steps.train, training.steps.store, must_match=must_match)
            with together(cluster, "while it went back to a checkpoint"):
                state.restore(newest)


def _describe(folder: Path, recipe: Recipe, devices: Contexts, training: Training) -> None:
    """What the run is, beside what it measures: recipe, machine and the cut's picture."""
    write_recipe(folder / "recipe.toml", recipe)
    machine = json.dumps(describe_machine(devices), indent=1)
    write_whole(folder / "machine.json", lambda file: file.write(machine.encode()))
    training.steps.train.draw(folder / "cut.svg")


def _examined(training: Training, folder: RunFolder, classes: Sequence[str]) -> Path:
    """The report, and what it shows of the network's answers. Raises OSError where the disk does not take them."""
    examination = examine(training.predict, training.val, classes)
    cluster = training.predict.contexts.cluster
    return by_first(cluster, "while it wrote the report", lambda: _reported(examination, folder))


def _reported(examination: Examination, folder: RunFolder) -> Path:
    try:
        examination.save(folder.path / "evaluation.npz")
        return write_report(folder.path)
    except OSError as error:
        where = f"'{error.filename}': " if error.filename else ""
        raise OSError(
            error.errno,
            f"the network is trained and saved in '{folder.checkpoints}', but its report could not be written: "
            f"{where}{error.strerror}. Make room or let it be written to; "
            f"theano-mgpu train --resume {folder.path} makes up for it.",
        ) from error


def _fitted(recipe: Recipe, training: Training, folder: RunFolder, resume: bool, must_match: dict[str, Any]) -> Fitted:
    with ExitStack() as stack:
        callbacks = []
        if recipe.tensorboard:
            callbacks.append(stack.enter_context(TensorBoard(folder.path / "tensorboard")))
        return fit(
            training.steps.train,
            training.train,
            store=training.steps.store,
            run=folder,
            resume=resume,
            learning_rate=training.schedule,
            epochs=recipe.epochs,
            max_steps=recipe.max_steps,
            time_limit=recipe.time_limit,
            log_every=recipe.log_every,
            evaluations=training.evaluations,
            evaluate_every=recipe.evaluate_every,
            best=training.best,
            patience=recipe.patience,
            checkpoint_every=recipe.checkpoint_every,
            keep=recipe.keep,
            on_save_error=recipe.on_save_error,
            must_match=must_match,
            callbacks=callbacks,
        )
