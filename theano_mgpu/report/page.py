"""``report.html``: a run's folder as one page, which needs nothing besides itself."""

from __future__ import annotations

import base64
import hashlib
import os
import sys
import time
from html import escape
from pathlib import Path

from theano_mgpu.report.run_files import Run, read_run
from theano_mgpu.report.sections import SECTIONS
from theano_mgpu.report.story import figures, headline
from theano_mgpu.weights import write_whole

__all__ = ["page_of", "write_report"]


def write_report(run: str | os.PathLike[str], path: str | os.PathLike[str] | None = None) -> Path:
    """Write what a run's folder holds as one HTML page, without network, and return where.

    run: the folder that ``fit`` was given. Read are ``metrics.jsonl``, ``recipe.toml``, ``machine.json``, ``cut.svg``,
        ``evaluation.npz`` and the best or the newest checkpoint; what is missing, or cannot be read, leaves a sentence
        in its place. A run that goes on, or was killed, has a report too.
    path: the file; ``report.html`` in the folder by default. One that is there is replaced whole.

    Raises FileNotFoundError for a folder that is missing or holds no run, ValueError for metrics that are none, and
    OSError where the page cannot be written.
    """
    folder = Path(run)
    content = page_of(read_run(folder)).encode()
    target = folder / "report.html" if path is None else Path(path)
    try:
        write_whole(target, lambda file: file.write(content))
    except OSError as error:
        raise OSError(
            error.errno,
            f"write_report(): cannot write '{target}': {error.strerror or error}. Give another 'path', or let this one "
            "be written to.",
        ) from error
    return target


def page_of(run: Run) -> str:
    """The page's text."""
    style, script = (Path(__file__).with_name(name).read_text() for name in ("page.css", "page.js"))
    # Nothing is fetched, and no script runs but this one, whatever a class is called.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    name = escape(run.name)
    links = "".join(f'<a href="#{anchor}">{escape(heading)}</a> ' for anchor, heading, _ in SECTIONS)
    numbers = "".join(f"<div><dt>{escape(what)}</dt><dd>{escape(value)}</dd></div>" for what, value in figures(run))
    sections = "".join(
        f'<section aria-labelledby="{anchor}"><h2 id="{anchor}">{escape(heading)}</h2>{make(run)}</section>\n'
        for anchor, heading, make in SECTIONS
    )
    written = time.strftime("%-d %B %Y, %H:%M", time.localtime(run.written))
    version = sys.modules["theano_mgpu"].__version__
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{name}: a training run</title>
<style>
{style}</style>
</head>
<body>
<header>
<p class="by">A training run</p>
<h1>{name}</h1>
<p class="lead">{escape(headline(run))}</p>
{f'<dl class="figures">{numbers}</dl>' if numbers else ""}
<nav aria-label="Sections">{links}</nav>
</header>
<main>
{sections}</main>
<footer>Made by theano_mgpu {escape(version)} from the run’s folder; its last line was written on {written}.</footer>
<script>{script}</script>
</body>
</html>
"""
