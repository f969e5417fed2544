"""Processes of the command compute alike, and one takes what another has compiled."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from theano_mgpu.cli.xla_process import keep_compiled_programs
from theano_mgpu.training import MetricsFile

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


@pytest.mark.slow
def test_processes_with_other_numbers_of_devices_end_with_the_same_bits(run, recipe, tmp_path):
    """Each makes as many devices as it is asked for, unlike the tests' own process, which has eight."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    checksums = [MetricsFile(run / "metrics.jsonl").lines()[-1]["checksum"]]
    for contexts in ("cpu:1", "cpu:2", "cpu:4", "cpu:8"):
        command = [sys.executable, "-m", "theano_mgpu", "train", recipe, "--contexts", contexts]
        folder = tmp_path / contexts.replace(":", "-")
        done = subprocess.run([*command, "--output", folder], env=environment, capture_output=True, timeout=300)
        assert done.returncode == 0, done.stderr
        checksums.append(MetricsFile(folder / "metrics.jsonl").lines()[-1]["checksum"])
    assert set(checksums) == {checksums[0]}


def test_a_folder_that_was_named_is_left_as_it_is(tmp_path):
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    try:
        keep_compiled_programs()
        assert jax.config.jax_compilation_cache_dir == str(tmp_path)
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
