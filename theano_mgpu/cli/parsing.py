"""Command lines by tyro: a data class says which options there are."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import tyro
from rich.console import Console

__all__ = ["answer", "parsed", "say"]

Options = TypeVar("Options")


def parsed(options: type[Options], words: Sequence[str], command: str, default: Options | None = None) -> Options:
    """The options of a command; ``default`` has those that are not given.

    Raises SystemExit with status 2, after a sentence on standard error, for words that are no options.
    """
    given = tyro.MISSING_NONPROP if default is None else default
    return tyro.cli(options, args=list(words), prog=f"theano-mgpu {command}", default=given)


def say(text: str) -> None:
    """A line about what goes on, on standard error: standard output is for answers."""
    Console(stderr=True, highlight=False, soft_wrap=True, markup=False).print(text)


def answer(values: Mapping[str, Any], text: str, *, as_json: bool) -> None:
    """Print a command's outcome, for machines or for people."""
    print(json.dumps(values, indent=1, allow_nan=False) if as_json else text, flush=True)
