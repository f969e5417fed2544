"""Recipes as TOML files: the ones in the package, those of users, and the resolved one in a run's folder."""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
import types
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import tomli_w

from theano_mgpu.errors import RecipeError
from theano_mgpu.recipes.settings import Recipe
from theano_mgpu.weights import write_whole

__all__ = ["find_recipe", "nearest", "recipe_from", "recipe_names", "recipe_text", "write_recipe"]


def recipe_names() -> tuple[str, ...]:
    """The recipes in the package."""
    files = resources.files("theano_mgpu.recipes") / "toml"
    return tuple(sorted(file.name.removesuffix(".toml") for file in files.iterdir() if file.name.endswith(".toml")))


def find_recipe(name: str | Path) -> Recipe:
    """A recipe by its name in the package, or by the path of a TOML file.

    Raises FileNotFoundError for one that is not there, RecipeError for a file that is no TOML, or with keys or values
    that ``Recipe`` has not.
    """
    path = Path(name)
    if path.suffix == ".toml" or path.is_file():
        if not path.is_file():
            raise FileNotFoundError(f"there is no recipe '{path}'. In the package are {', '.join(recipe_names())}.")
        return recipe_from(_parsed(path.read_bytes(), f"'{path}'"), f"'{path}'")
    if str(name) not in recipe_names():
        raise FileNotFoundError(
            f"there is no recipe '{name}'{nearest(str(name), recipe_names())}. In the package are "
            f"{', '.join(recipe_names())}; a file's name ends in .toml."
        )
    text = (resources.files("theano_mgpu.recipes") / "toml" / f"{name}.toml").read_bytes()
    return recipe_from(_parsed(text, f"'{name}'"), f"'{name}'")


def recipe_from(settings: Mapping[str, Any], source: str = "the recipe") -> Recipe:
    """A recipe of settings by name; those that are left out have their defaults.

    Raises RecipeError, naming ``source``, for a key that is not known, with the nearest one, and for a value of another
    type or out of range.
    """
    expected = _types()
    values = {}
    for key, value in settings.items():
        if key not in expected:
            raise RecipeError(f"{source}: no setting is called '{key}'{nearest(key, tuple(expected))}.")
        values[key] = _checked(source, key, value, expected[key])
    try:
        return Recipe(**values)
    except RecipeError as error:
        raise RecipeError(f"{source}: {error}") from None


def recipe_text(recipe: Recipe) -> str:
    """All settings of a recipe as TOML; those that are None are left out."""
    settings = {name: value for name, value in dataclasses.asdict(recipe).items() if value is not None}
    return tomli_w.dumps(settings)


def write_recipe(path: str | Path, recipe: Recipe) -> None:
    """Write a recipe whole or not at all. Raises OSError where the disk does not take it."""
    write_whole(Path(path), lambda file: file.write(recipe_text(recipe).encode()))


def nearest(name: str, known: Sequence[str]) -> str:
    """ " (did you mean 'learning_rate'?)", or nothing where no known name is near."""
    found = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" (did you mean '{found[0]}'?)" if found else ""


def _parsed(content: bytes, source: str) -> dict[str, Any]:
    try:
        return tomllib.loads(content.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{source} is no TOML: {error}.") from error


@cache
def _types() -> dict[str, Any]:
    hints = get_type_hints(Recipe)
    return {field.name: hints[field.name] for field in dataclasses.fields(Recipe)}


def _checked(source: str, key: str, value: Any, expected: Any) -> Any:
    for alternative in _alternatives(expected):
        found = _as(value, alternative)
        if found is not None:
            return found
    raise RecipeError(f"{source}: '{key}' should be {_in_words(expected)}, not {value!r}.")


def _alternatives(expected: Any) -> tuple[Any, ...]:
    return get_args(expected) if get_origin(expected) in (Union, types.UnionType) else (expected,)


def _as(value: Any, expected: Any) -> Any:
    """The value as the type ``expected``, None where it is not of it. TOML has no None, so that is not among them."""
    if get_origin(expected) is Literal:
        return value if value in get_args(expected) and isinstance(value, str) else None
    if get_origin(expected) is tuple:
        entries = get_args(expected)
        if not isinstance(value, (list, tuple)) or (Ellipsis not in entries and len(value) != len(entries)):
            return None
        found = tuple(_as(entry, entries[0]) for entry in value)
        return None if None in found else found
    if expected is float:
        return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
    if expected is int:
        return value if isinstance(value, int) and not isinstance(value, bool) else None
    return value if expected in (str, bool) and isinstance(value, expected) else None


def _in_words(expected: Any) -> str:
    words = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    parts = []
    for alternative in _alternatives(expected):
        if get_origin(alternative) is Literal:
            parts += [f'"{choice}"' for choice in get_args(alternative)]
        elif get_origin(alternative) is tuple:
            entries = get_args(alternative)
            count = "a list of" if Ellipsis in entries else f"a list of {len(entries)}"
            parts.append(f"{count} {words[entries[0]].removeprefix('a ')}s")
        elif alternative in words:
            parts.append(words[alternative])
    return " or ".join(parts)
