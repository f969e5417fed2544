"""A trained network read back: from a run's folder, or from a file of weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from theano_mgpu import weights
from theano_mgpu.cluster import by_first
from theano_mgpu.devices import Contexts
from theano_mgpu.errors import DamagedCheckpointError
from theano_mgpu.recipes.files import find_recipe
from theano_mgpu.recipes.graphs import prediction_step
from theano_mgpu.recipes.settings import Recipe
from theano_mgpu.step import Step
from theano_mgpu.store import ParameterStore
from theano_mgpu.training import Checkpoint, Checkpoints, read_checkpoint

__all__ = ["Trained", "of_run", "of_weights"]


@dataclass(frozen=True)
class Trained:
    """``predict`` gives the logits of uint8 images; ``classes`` are the names of its answers."""

    recipe: Recipe
    classes: tuple[str, ...]
    store: ParameterStore
    predict: Step
    source: str


def of_run(
    folder: str | Path,
    contexts: Contexts,
    checkpoint: Literal["best", "last"] = "best",
    *,
    split_over: str = "devices",
) -> Trained:
    """The network of a run: of its best evaluation, or of its newest whole checkpoint.

    Where the recipe averages parameters, those are taken. Under mpirun rank 0 reads; ``split_over`` is ``predict``'s,
    as in ``tm.function``. Raises FileNotFoundError for a folder without a run or without a checkpoint,
    DamagedCheckpointError for one that is damaged.
    """
    recipe, found = by_first(
        contexts.cluster, f"while it read the run in '{folder}'", lambda: _run(Path(folder), checkpoint)
    )
    classes = tuple(found.must_match["classes"])
    store = ParameterStore()
    predict = prediction_step(recipe, store, len(classes), contexts, split_over=split_over)
    suffix = ".ema" if recipe.ema is not None else ""
    store.set_values({name: found.arrays[f"{name}{suffix}"] for name in store})
    return Trained(recipe, classes, store, predict, str(found.path))


def of_weights(
    file: str | Path,
    recipe: Recipe,
    contexts: Contexts,
    classes: Sequence[str] | None = None,
    *,
    split_over: str = "devices",
) -> Trained:
    """The network ``recipe.model`` with the weights of a file, of the store's layout or of torch's.

    The number of classes is the file's; ``classes`` are their names, or else their numbers. Raises FileNotFoundError
    where there is no file, ValueError for one that does not fit the network, or another number of names.
    """
    path = Path(file)
    layout, bias = by_first(contexts.cluster, f"while it read '{path}'", lambda: _layout_and_bias(path))
    if bias is None:
        raise ValueError(f"'{path}' has no 'fc.bias', so it is not of a network like '{recipe.model}'.")
    names = tuple(classes or map(str, range(len(bias))))
    if len(names) != len(bias):
        raise ValueError(f"there are {len(names)} names of classes, but '{path}' has {len(bias)} classes.")
    store = ParameterStore()
    predict = prediction_step(recipe, store, len(bias), contexts, split_over=split_over)
    try:
        store.load(path, layout=layout)
    except ValueError as error:
        raise ValueError(
            f"{error} Are the weights of '{recipe.model}'? Say by --model which network's they are."
        ) from error
    return Trained(recipe, names, store, predict, str(path))


def _run(folder: Path, checkpoint: str) -> tuple[Recipe, Checkpoint]:
    if not (folder / "recipe.toml").is_file():
        raise FileNotFoundError(f"'{folder}' is no run's folder: it has no recipe.toml.")
    return find_recipe(folder / "recipe.toml"), _checkpoint(folder, checkpoint)


def _checkpoint(folder: Path, which: str) -> Checkpoint:
    best = folder / "checkpoints" / "best.safetensors"
    if which == "best" and best.is_file():
        try:
            return read_checkpoint(best)
        except DamagedCheckpointError as error:
            raise DamagedCheckpointError(f"{error} The newest whole one is taken with --checkpoint last.") from error
    newest = Checkpoints(folder / "checkpoints").newest()
    if newest is None:
        raise FileNotFoundError(f"'{folder}' has no checkpoint yet. Train first: theano-mgpu train --resume {folder}")
    return newest


def _layout_and_bias(path: Path) -> tuple[Any, Any]:
    layout = _layout(path)
    return layout, weights.read(path, layout, ()).arrays.get("fc.bias")


def _layout(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file '{path}'.")
    if path.suffix != ".safetensors":
        return "torch"
    _, _, metadata = weights.read_safetensors(path)
    return "store" if "theano_mgpu" in metadata else "torch"
