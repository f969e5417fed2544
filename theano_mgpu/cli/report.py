"""``theano-mgpu report``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from theano_mgpu.cli.parsing import answer, parsed

__all__ = ["run"]


@dataclass(frozen=True)
class _Options:
    """Write a page about a run, which may still go on: one file, to be looked at in a browser."""

    run: Path
    """The folder of the run."""
    output: Path | None = None
    """The page; report.html in the run's folder if not given."""
    json: bool = False
    """Print JSON."""


def run(words: Sequence[str]) -> None:
    options = parsed(_Options, words, "report")

    from theano_mgpu.report import write_report

    path = write_report(options.run, options.output)
    answer({"report": str(path)}, str(path), as_json=options.json)
