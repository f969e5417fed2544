"""What was compiled by one process is taken by the next, unless somebody has said where it should be kept."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from theano_mgpu.cli.compiled_programs import keep_compiled_programs

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_second_process_compiles_nothing_that_took_long(photographs, recipe, tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    environment["JAX_LOG_COMPILES"] = "0"
    kept = []
    for number in range(2):
        command = [sys.executable, "-m", "theano_mgpu", "train", recipe, "--output", tmp_path / str(number)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        kept.append({path.name for path in tmp_path.glob("cache/theano_mgpu/compiled-*/*-cache")})
    assert kept[0], "the first process has kept its programs"
    assert kept[1] == kept[0], "the second process compiled others"


def test_a_folder_that_was_named_is_left_as_it_is(tmp_path):
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    try:
        keep_compiled_programs()
        assert jax.config.jax_compilation_cache_dir == str(tmp_path)
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
