"""Every benchmark runs, small, and prints one JSON line; what the figures are is no business of the tests."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
needs_mpi = pytest.mark.skipif(importlib.util.find_spec("mpi4py") is None, reason="there is no mpi4py")


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=540,
        check=False,
    )


@pytest.mark.parametrize(
    ("script", "figures"),
    [
        ("call_overhead.py", ["host_1_ms", "host_4_ms", "device_1_ms", "device_4_ms"]),
        ("resident.py", ["ratio_digits", "ratio_cifar_mlp"]),
        ("gather.py", ["gather_raise_gb_per_s", "copy_gb_per_s", "ratio_raise"]),
        ("ordered_sum.py", ["ratio_2", "ratio_8"]),
        ("loader.py", ["images_per_s_ours_1", "images_per_s_ours_2", "efficiency"]),
        pytest.param("scaling.py", ["worst"], marks=[needs_mpi, pytest.mark.slow]),
        pytest.param("exchange.py", ["ms_2", "sent_2"], marks=pytest.mark.slow),
        pytest.param("ranks_step.py", ["step_s", "exposed"], marks=pytest.mark.slow),
        pytest.param("from_files.py", ["ratio"], marks=pytest.mark.slow),
        pytest.param("rounds.py", ["slowest_against_one_round"], marks=pytest.mark.slow),
        pytest.param("put.py", ["put_ms", "ratio"], marks=pytest.mark.slow),
        pytest.param("recompute.py", ["time_ratio", "memory_ratio"], marks=pytest.mark.slow),
        pytest.param("devices.py", ["spread"], marks=pytest.mark.slow),
        pytest.param("resnet50_step.py", ["images_per_s", "to_first_step_s", "max_rss_gb"], marks=pytest.mark.slow),
        pytest.param("peers/jax_resnet50.py", ["images_per_s", "to_first_step_s"], marks=pytest.mark.slow),
    ],
)
def test_a_benchmark_prints_one_line_of_figures(script: str, figures: list[str]) -> None:
    done = run(sys.executable, f"benchmarks/{script}", "--smoke")
    assert done.returncode == 0, done.stderr
    *table, line = done.stdout.splitlines()
    assert (script in ("loader.py", "exchange.py", "scaling.py")) == bool(table)
    assert all(json.loads(line)[name] > -1 for name in figures)


@pytest.mark.slow
def test_compare_prints_a_table_without_torch() -> None:
    done = run(sys.executable, "benchmarks/compare.py", "--smoke")
    assert done.returncode == 0, done.stderr
    *table, line = done.stdout.splitlines()
    assert "not run: no --torch-python" in "\n".join(table)
    assert set(json.loads(line)["ratios"]) >= {"images_per_s_jax", "to_first_step_jax", "max_rss_allowed"}


def test_gpu_script_says_that_there_is_no_gpu(tmp_path: Path) -> None:
    done = run("benchmarks/gpu.sh", PYTHON=sys.executable, OUTPUT=str(tmp_path / "gpu.md"), JAX_PLATFORMS="cpu")
    assert done.returncode == 2
    assert "no GPU" in done.stderr
    assert not (tmp_path / "gpu.md").exists()


def test_gpu_script_records_a_row_that_fails_and_goes_on(tmp_path: Path) -> None:
    output = tmp_path / "gpu.md"
    done = run(
        "benchmarks/gpu.sh",
        PYTHON=sys.executable,
        TORCH_PYTHON="/nowhere/python",
        OUTPUT=str(output),
        DEVICES="cpu:2",
        SMOKE="1",
        TOTAL_SECONDS="0",
    )
    assert done.returncode == 1
    rows = output.read_text().splitlines()
    assert sum("not begun" in row for row in rows) == 18
    assert rows[-1] == "18 row(s) failed."


@pytest.mark.slow
def test_gpu_script_runs_its_rows_on_simulated_devices(tmp_path: Path) -> None:
    output = tmp_path / "gpu.md"
    done = run(
        "benchmarks/gpu.sh",
        PYTHON=sys.executable,
        TORCH_PYTHON="/nowhere/python",
        OUTPUT=str(output),
        DEVICES="cpu:2",
        SMOKE="1",
    )
    text = output.read_text()
    assert done.returncode == 1, done.stderr
    assert text.count("PyTorch DDP | failed") == text.count("PyTorch DDP, torch.compile | failed") == 2
    assert "4 row(s) failed." in text
    assert len((tmp_path / "gpu.jsonl").read_text().splitlines()) == 14
