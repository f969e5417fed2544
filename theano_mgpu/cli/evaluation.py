"""``theano-mgpu evaluate``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from tyro.conf import OmitArgPrefixes

from theano_mgpu.cli.parsing import answer, parsed
from theano_mgpu.cli.source import Source

__all__ = ["run"]


@dataclass(frozen=True)
class _Options:
    """Top-1, top-5 and loss of a trained network on validation images, each of them once, and per class."""

    source: OmitArgPrefixes[Source] = field(default_factory=Source)
    data: str | None = None
    """The images: a folder, a pack, "photos", "digits"; those of the run if not given."""
    batch_size: int | None = None
    """Images at a time; the run's if not given."""
    workers: int | None = None
    """Processes that decode images."""
    json: bool = False
    """Print JSON."""


def run(words: Sequence[str]) -> None:
    options = parsed(_Options, words, "evaluate")

    from theano_mgpu.recipes.building import validation_images
    from theano_mgpu.recipes.datasets import open_dataset
    from theano_mgpu.training import examine

    trained = options.source.read(split_over="ranks")
    if options.data is None and options.source.run is None:
        raise ValueError("--weights FILE is evaluated on images of yours: give --data DIR.")
    recipe = trained.recipe.set(
        data=trained.recipe.data if options.data is None else options.data,
        batch_size=trained.recipe.batch_size if options.batch_size is None else options.batch_size,
        workers=options.workers,
    )
    dataset = open_dataset(recipe)
    _require_classes(dataset.classes, trained.classes, named=options.source.run is not None)
    with validation_images(recipe, dataset) as images:
        examination = examine(trained.predict, images, dataset.classes)
    values = {
        "source": trained.source,
        "data": dataset.name,
        "examples": examination.examples,
        "loss": examination.loss,
        "top1": examination.top1,
        "top5": examination.top5_rate,
        "per_class": examination.per_class,
    }
    answer(values, str(examination), as_json=options.json)


def _require_classes(found: tuple[str, ...], known: tuple[str, ...], *, named: bool) -> None:
    """Labels are places in the list of classes: in another list they mean something else."""
    if len(found) != len(known):
        raise ValueError(f"the images are of {len(found)} classes, the network knows {len(known)}.")
    if named and found != known:
        here, there = next(pair for pair in zip(found, known, strict=True) if pair[0] != pair[1])
        raise ValueError(f"the images' classes are not those of the run: '{here}' where that has '{there}'.")
