"""A small folder of photographs, and one run on it that many tests look at."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import pytest

import theano_mgpu as tm
from theano_mgpu.cli import main

RECIPE = """
image_size = 16
model = "resnet20"
epochs = 2
batch_size = 8
shards = 4
contexts = "cpu:4"
workers = 0
optimizer = "momentum"
learning_rate_batch = 16
checkpoint_every = 2
log_every = 2
ema = 0.5
label_smoothing = 0.1
"""


@pytest.fixture(scope="session", autouse=True)
def compiled_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The same programs are compiled by one test after another: XLA's results are kept, for these tests alone."""
    settings = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirteen classes, four training and two validation images of each."""
    folder = tmp_path_factory.mktemp("photographs") / "data"
    return tm.data.photographs(folder, image_size=24, train_per_class=4, val_per_class=2)


@pytest.fixture(scope="session")
def recipe(photographs: Path) -> Path:
    file = photographs.parent / "small.toml"
    file.write_text(f"data = '{photographs}'\n{RECIPE}")
    return file


@pytest.fixture(scope="session")
def run(recipe: Path) -> Path:
    """A finished run: twelve steps, two epochs."""
    folder = recipe.parent / "run"
    assert main(["train", str(recipe), "--output", str(folder)]) == 0
    return folder


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """``told("evaluate", ..., json=True)``: what a command that succeeds prints."""

    def call(*words: object, json_: bool = False) -> Any:
        capsys.readouterr()
        status = main([*map(str, words), *(["--json"] if json_ else [])])
        printed = capsys.readouterr()
        assert status == 0, printed.err
        return json.loads(printed.out) if json_ else printed.out

    return call


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """``refused("evaluate", ...)``: the sentence on standard error of a command that fails."""

    def call(*words: object) -> str:
        capsys.readouterr()
        try:
            status = main([*map(str, words)])
        except SystemExit as end:
            status = end.code
        printed = capsys.readouterr()
        assert status not in (0, None)
        assert "Traceback" not in printed.err
        return " ".join(printed.err.replace("│", " ").split())

    return call
