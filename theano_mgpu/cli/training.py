"""``theano-mgpu train``."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tyro.conf import OmitArgPrefixes, Positional

from theano_mgpu.cli.parsing import answer, parsed, say
from theano_mgpu.cluster import by_first, cluster
from theano_mgpu.recipes.files import find_recipe
from theano_mgpu.recipes.settings import Recipe

__all__ = ["run"]

#: Recipes of data that is named and not a folder.
_OF_DATA = {"photos": "photographs", "digits": "digits"}
#: Of a folder of one's own: batches of any size, and any number of epochs.
_OF_A_FOLDER = Recipe(learning_rate_batch=256, weight_decay=1e-4, label_smoothing=0.1)


@dataclass(frozen=True)
class _Options:
    """Train a network, or go on with a run that was stopped. Without anything: the bundled photographs."""

    recipe: Positional[str | None] = None
    """A recipe of the package, or a TOML file. If not given, that of the data: photographs, digits, or for a folder
    the defaults below."""
    resume: Path | None = None
    """The folder of a run that was stopped: go on with it, by its own recipe."""
    json: bool = False
    """Print the outcome as JSON on standard output."""
    settings: OmitArgPrefixes[Recipe] = field(default_factory=Recipe)


def run(words: Sequence[str]) -> None:
    """Train by a recipe and options, evaluate, and write a report."""
    # With --help the first look is for the recipe alone: what is shown are its settings.
    asked = parsed(_Options, [word for word in words if word not in ("-h", "--help")], "train")
    options = parsed(_Options, words, "train", _Options(settings=_base(asked)))
    recipe = options.settings
    if options.resume is not None and recipe.output != str(options.resume):
        raise ValueError(
            f"'output' is '{recipe.output}', but a run goes on in its own folder, '{options.resume}'. Leave --output "
            "out, or copy the folder and give --resume the copy."
        )
    # After the words were understood: JAX and PyTensor take seconds to import.
    from theano_mgpu.recipes.running import train

    name = Path(options.recipe or recipe.data).stem
    folder = recipe.output or by_first(cluster(), "while it looked for a new folder", lambda: _new_folder(name))
    try:
        outcome = train(recipe, folder, resume=options.resume is not None, say=say)
    except KeyboardInterrupt:
        if Path(folder, "recipe.toml").is_file():
            say(f"What was saved is in '{folder}'; theano-mgpu train --resume {folder} goes on from there.")
        raise
    answer(dataclasses.asdict(outcome), str(outcome), as_json=options.json)


def _base(asked: _Options) -> Recipe:
    """What the options change: the recipe that is named, or that of the run to go on with."""
    if asked.resume is None:
        name = asked.recipe or _OF_DATA.get(asked.settings.data)
        return find_recipe(name) if name else _OF_A_FOLDER
    if asked.recipe is not None:
        raise ValueError(
            f"'{asked.recipe}' and --resume {asked.resume} are both given; a run goes on by its own recipe. Leave one "
            "out."
        )
    folder = asked.resume
    return by_first(cluster(), f"while it read the run in '{folder}'", lambda: _saved(folder))


def _saved(folder: Path) -> Recipe:
    """The recipe of a run."""
    if not (folder / "recipe.toml").is_file():
        raise FileNotFoundError(f"'{folder}' is no run's folder: it has no recipe.toml.")
    return find_recipe(folder / "recipe.toml").set(output=str(folder))


def _new_folder(name: str) -> Path:
    """``runs/NAME``, or with a number where that is taken."""
    folder, number = Path("runs", name), 1
    while folder.exists():
        number += 1
        folder = Path("runs", f"{name}-{number}")
    return folder
