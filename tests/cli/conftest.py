"""One run on a small folder of photographs, which many tests look at."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

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
def quick_compilation(compiled_once: None) -> None:
    """The same programs are compiled by one test after another."""


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
