"""Imports go one way, and what a module exports is what it says."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

import theano_mgpu as tm

PACKAGE = Path(tm.__file__).parent

# The rooms in the order of one training step: each imports from itself and from rooms above it alone.
# ``compatibility`` is what differs between versions of PyTensor and JAX. ``gather`` needs of a step only where the host
# is (``mirror``); ``programs`` are a step's compiled halves, ``arguments`` and ``specification`` what it is given.
ROOMS = [
    "errors",
    "user_cache",
    "compatibility",
    "host_memory",
    "cluster",
    "devices",
    "averages",
    "regions",
    "recomputation",
    "nn",
    "weights",
    "store",
    "vectors",
    "lending",
    "resident_data",
    "mirror",
    "pieces",
    "cut",
    "bundles",
    "drawing",
    "lowering",
    "split",
    "dealing",
    "gather",
    "finite",
    "commit",
    "shares",
    "programs",
    "launch",
    "plan",
    "scaling",
    "preparation",
    "laps",
    "shards",
    "results",
    "loss_scale",
    "arguments",
    "slices",
    "specification",
    "assembly",
    "step",
    "first_values",
    "same_start",
    "frontend",
    "verification",
    "updates",
    "exchange",
    "schedules",
    "init",
    "layers",
    "models",
    "data",
    "training",
    "report",
    "recipes",
    "cli",
    "__main__",
]
# Inside a method, where it is asked for: a cut prints as the picture that is drawn of it.
EXCEPTIONS = {("theano_mgpu.cut", "theano_mgpu.drawing.text")}
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if "__pycache__" not in path.parts)


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room(module: str) -> str:
    return module.split(".")[1]


def imported(path: Path) -> set[str]:
    """The package's own modules that a file imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are written in full"
            submodules = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if is_module(name) else node.module for name in submodules}
    return {name for name in found if name.split(".")[0] == "theano_mgpu"}


def is_module(name: str) -> bool:
    path = PACKAGE.parent.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").exists()


def test_every_room_is_on_the_list():
    assert {room(module_name(path)) for path in MODULES if path.parent != PACKAGE or path.name != "__init__.py"} <= set(
        ROOMS
    )


@pytest.mark.parametrize("path", [p for p in MODULES if p != PACKAGE / "__init__.py"], ids=module_name)
def test_imports_go_one_way(path):
    own = room(module_name(path))
    for name in imported(path):
        if (module_name(path), name) in EXCEPTIONS:
            continue
        assert name != "theano_mgpu", f"{path.name} imports the whole package"
        assert ROOMS.index(room(name)) <= ROOMS.index(own), f"{path.name} imports {name}, a later room"


WITHOUT_JAX = [
    *("cut", "averages", "regions", "recomputation", "weights", "store", "resident_data", "nn", "errors", "updates"),
    *("layers", "models", "lending"),
]


@pytest.mark.parametrize("name", WITHOUT_JAX)
def test_graphs_are_built_and_cut_without_jax(name):
    """In a fresh process; lowerings register themselves where jax is."""
    files = [p for p in MODULES if room_or_none(p) == name]
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            assert not [n for n in names if n.split(".")[0] == "jax"], path


def room_or_none(path: Path) -> str | None:
    name = module_name(path)
    return room(name) if "." in name else None


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_exported_names_are_all(path):
    """``__all__`` is sorted, every name in it exists, and public names defined in the module are in it."""
    tree = ast.parse(path.read_text())
    module = importlib.import_module(module_name(path))
    if not hasattr(module, "__all__"):
        assert not tree.body or path.name == "__main__.py", f"{path} has no __all__"
        return
    for name in module.__all__:
        assert hasattr(module, name), f"{path}: __all__ names {name}, which is not there"
    assert len(set(module.__all__)) == len(module.__all__)


def test_the_package_exports_what_it_imports():
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    names = {a.asname or a.name for node in tree.body if isinstance(node, ast.ImportFrom) for a in node.names}
    assert names == set(tm.__all__)
    assert tm.__all__ == sorted(tm.__all__)


def test_no_module_hides_a_public_name():
    """``theano_mgpu.function`` is the function; a module of that name would take its place."""
    functions = {name for name in tm.__all__ if callable(getattr(tm, name))}
    assert not functions & {path.stem for path in PACKAGE.iterdir()}


def test_pytensors_jax_dispatch_has_one_door():
    """Its module sets a flag of JAX for the whole process; ``lowering.dispatch`` sets it back."""
    for path in MODULES:
        if path.relative_to(PACKAGE).as_posix() != "lowering/dispatch.py":
            assert "pytensor.link.jax" not in path.read_text(), path


def test_test_files_have_names_of_their_own():
    """pytest imports them by these names alone."""
    names = [path.name for path in Path(__file__).parent.rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))
