"""A finished run, and copies of it."""

from __future__ import annotations

import shutil

import pytest

import theano_mgpu as tm
from tests.report.trained_runs import train


@pytest.fixture(scope="session")
def trained(tmp_path_factory, eight):
    folder = tmp_path_factory.mktemp("runs") / "coloured squares"
    train(folder, tm.contexts("cpu:8")[:2])
    return folder


@pytest.fixture
def run(trained, tmp_path):
    """A copy, to be changed."""
    return shutil.copytree(trained, tmp_path / trained.name)
