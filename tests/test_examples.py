"""Every file in examples/ runs, is short, and uses public names only; a new one is picked up by itself."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import theano_mgpu as tm

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
#: Seconds that a full-length run may take, in a process of its own on a busy machine.
DEADLINE = 900

#: Of ResNets, which take a quarter of a minute to compile, and of three launches of mpirun.
LONG = ("digits_resnet", "imagenet_resnet50", "several_nodes")
#: Published recipes of 164 and 90 epochs: days with the data that they are for, and without it they show nothing more.
DAYS = ("cifar_resnet", "imagenet_resnet50")
#: What may stand on standard error: the lines that ``tm.training.fit`` prints where that is no terminal.
PROGRESS = re.compile(r"(step \d+/\d+  epoch .*\n)*")


def _long(path: Path) -> tuple[pytest.MarkDecorator, ...]:
    return (pytest.mark.slow,) if path.stem in LONG else ()


each_example = pytest.mark.parametrize("path", EXAMPLES, ids=[path.stem for path in EXAMPLES])


def imported_main(path: Path) -> Callable[..., Any]:
    """The example's ``main``, its module freshly imported: module-level graphs and parameters are new ones."""
    specification = importlib.util.spec_from_file_location(f"example_{path.stem}", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module.main


def smallest(main: Callable[..., Any]) -> dict[str, Any]:
    """Arguments for the shortest run: a few steps, on small images and in one process where ``main`` has a choice."""
    small = {
        "steps": 2,
        "batch_size": 8,
        "image_size": 32,
        "workers": 0,
        "contexts": "cpu:4",
        "devices": (1, 4),
    }
    return {name: value for name, value in small.items() if name in inspect.signature(main).parameters}


@pytest.mark.parametrize("path", [pytest.param(path, marks=_long(path), id=path.stem) for path in EXAMPLES])
def test_example_runs_and_says_what_it_found(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    main = imported_main(path)
    arguments = smallest(main)
    assert "steps" in arguments, f"{path.name}: main() should take steps=, so that a test can run a few"
    main(**arguments)
    printed = capsys.readouterr()
    assert printed.out.strip()
    assert PROGRESS.fullmatch(printed.err), printed.err


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for path in EXAMPLES if path.stem not in DAYS], ids=lambda path: path.stem)
def test_full_length_example_reaches_what_it_asserts(path: Path, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.run(
        [sys.executable, str(path)], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=DEADLINE
    )
    assert process.returncode == 0, process.stderr[-4000:]
    assert process.stdout.strip()


@each_example
def test_example_is_short_and_says_what_it_shows(path: Path) -> None:
    source = path.read_text()
    assert len(source.splitlines()) < 150
    docstring = ast.get_docstring(ast.parse(source)) or ""
    assert f"python examples/{path.name}" in docstring


@each_example
def test_example_uses_public_names_only(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert not (node.module or "").startswith("theano_mgpu"), f"{path.name}: use `import theano_mgpu as tm`"
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "tm":
            assert node.attr in tm.__all__, f"{path.name}, line {node.lineno}: tm.{node.attr} is not public"
        if isinstance(node, ast.Attribute) and not node.attr.startswith("__"):
            assert not node.attr.startswith("_"), f"{path.name}, line {node.lineno}: .{node.attr} is private"
