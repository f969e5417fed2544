"""What a stranger may do wrong: a sentence, a status that is not zero, and nothing changed or left behind."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pytest

from theano_mgpu.cli import main
from theano_mgpu.training import MetricsFile, read_checkpoint

ROOT = Path(__file__).parents[2]

#: The command in a process that hears SIGINT even where the tests run in the background, which ignores it.
LISTENING = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from theano_mgpu.cli import command
sys.exit(command())
"""


def png_cut_in_the_middle() -> bytes:
    """Header and end are those of a whole file of 24 x 24, so that a scan takes it; most of the pixels are missing."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 24, 24, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(100))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.fixture
def with_broken(photographs: Path, tmp_path: Path) -> Path:
    """A broken image in each split that only reading finds."""
    folder = tmp_path / "data"
    shutil.copytree(photographs, folder)
    for split in ("train", "val"):
        (folder / split / "coins" / "broken.png").write_bytes(png_cut_in_the_middle() + split.encode())
    return folder


@pytest.fixture
def small_disk(tmp_path: Path):
    """A folder on a disk of a given size, for root on Linux."""
    mounted = []

    def mount(kibibytes: int, options: str = "rw") -> Path:
        folder = tmp_path / "disk"
        folder.mkdir()
        size = f"size={kibibytes}k,{options}"
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder)], capture_output=True)
        if done.returncode:
            pytest.skip(f"no file system can be mounted here: {done.stderr.decode().strip()}")
        mounted.append(folder)
        return folder

    if shutil.which("mount") is None:
        pytest.skip("there is no command 'mount'")
    yield mount
    for folder in mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_broken_image_found_in_training_is_named_once_and_left_out(with_broken, recipe, tmp_path, capsys, workers):
    words = ["train", recipe, "--data", with_broken, "--output", tmp_path / "run", "--workers", workers]
    assert main([*map(str, words)]) == 0
    printed = capsys.readouterr()
    for split in ("train", "val"):
        assert printed.err.count(f"'{with_broken}/{split}/coins/broken.png'") == 1
    assert "2 broken images were left out" in printed.out
    assert "Traceback" not in printed.err


def test_a_broken_image_found_in_training_stops_the_run_where_asked(with_broken, recipe, tmp_path, refused):
    message = refused(
        *("train", recipe, "--data", with_broken, "--output", tmp_path / "run", "--on-bad-image", "raise")
    )
    assert f"'{with_broken}/train/coins/broken.png'" in message
    assert "on_bad_image='skip'" in message


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--data", "gone"], "there is no such folder"),
        (["--batch-size", "1000"], "do not fill a batch of 1000"),
        (["--precision", "fp16"], "precision"),
    ],
)
def test_a_run_that_never_began_leaves_no_folder(words, sentence, recipe, tmp_path, refused):
    assert sentence in refused("train", recipe, "--output", tmp_path / "runs" / "one", *words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["data", "output"])
def test_an_empty_path_is_refused(name, recipe, refused):
    assert f"'{name}' is empty" in refused("train", recipe, f"--{name}", "")


def test_functions_nobody_called_are_not_named(tmp_path, refused):
    (tmp_path / "empty").mkdir()
    assert "image_folder()" not in refused("data", "show", tmp_path / "empty")


@pytest.mark.parametrize("place", ["gone/weights.pth", "folder.pth"])
def test_an_export_that_cannot_be_written_names_the_file(place, run, tmp_path, refused):
    (tmp_path / "folder.pth").mkdir()
    message = refused("export", "--run", run, "--output", tmp_path / place)
    assert f"'{tmp_path / place}': " in message
    assert ".partial" not in message
    assert [path.name for path in tmp_path.rglob("*")] == ["folder.pth"]


def test_a_report_that_cannot_be_written_leaves_the_trained_network(run, tmp_path, refused):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    (folder / "evaluation.npz").unlink()
    (folder / "evaluation.npz").mkdir()
    message = refused("train", "--resume", folder)
    assert "the network is trained and saved" in message
    assert f"'{folder}/evaluation.npz': Is a directory" in message
    assert f"theano-mgpu train --resume {folder}" in message
    (folder / "evaluation.npz").rmdir()
    assert main(["train", "--resume", str(folder)]) == 0


def test_a_damaged_line_of_metrics_is_named(run, tmp_path, refused):
    shutil.copytree(run, tmp_path / "run")
    metrics = tmp_path / "run" / "metrics.jsonl"
    metrics.write_bytes(b"garbage\n" + metrics.read_bytes())
    assert f"line 1 of '{metrics}' is no line of metrics" in refused("train", "--resume", tmp_path / "run")


def test_a_finished_run_without_its_metrics_is_finished_again(run, tmp_path, told):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    checksum = MetricsFile(folder / "metrics.jsonl").lines()[-1]["checksum"]
    (folder / "metrics.jsonl").unlink()
    told("train", "--resume", folder)
    (line,) = MetricsFile(folder / "metrics.jsonl").lines()
    assert (line["step"], line["epoch"], line["checksum"]) == (12, 2.0, checksum)


def test_a_damaged_best_checkpoint_says_how_to_take_the_newest(run, tmp_path, refused, told, photographs):
    shutil.copytree(run, tmp_path / "run")
    best = tmp_path / "run/checkpoints/best.safetensors"
    best.write_bytes(best.read_bytes()[:-9])
    image = next((photographs / "val/coins").iterdir())
    assert "--checkpoint last" in refused("predict", "--run", tmp_path / "run", image)
    assert str(image) in told("predict", "--run", tmp_path / "run", "--checkpoint", "last", image)


def test_photographs_that_cannot_be_kept_say_where_they_would_go(recipe, tmp_path, refused, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert "Set XDG_CACHE_HOME" in refused("train", recipe, "--data", "photos", "--output", tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("choice", ["raise", "warn"])
def test_a_full_disk_leaves_whole_checkpoints(choice, recipe, small_disk, tmp_path, told, capsys):
    run = small_disk(9_000) / "run"  # two checkpoints of three megabytes and the best, not a third
    words = ["train", recipe, "--output", run, "--keep", 5, "--on-save-error", choice, "--max-steps", 9]
    status = main([*map(str, words)])
    assert status == (choice == "raise")
    assert "No space left on device" in capsys.readouterr().err
    kept = sorted((run / "checkpoints").iterdir())
    assert [read_checkpoint(path).progress.step for path in kept] == [2, 4]
    assert MetricsFile(run / "metrics.jsonl").lines()[-1].get("final", False) == (choice == "warn")


def test_a_line_of_metrics_without_room_ends_the_run_or_not_as_asked(recipe, tmp_path, capsys, monkeypatch):
    """The system call alone is replaced: what a disk without room answers to the second line."""
    real, calls = os.pwrite, []

    def full(descriptor: int, content: bytes, position: int) -> int:
        if b'"step"' not in content:
            return real(descriptor, content, position)
        calls.append(content)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor, content, position)

    monkeypatch.setattr(os, "pwrite", full)
    for choice, status, steps in (("raise", 1, [2]), ("warn", 0, [2, 6, 6])):
        calls.clear()
        run = tmp_path / choice
        words = ["train", recipe, "--output", run, "--max-steps", 6, "--on-save-error", choice]
        assert main([*map(str, words)]) == status
        assert f"'{run}/metrics.jsonl': No space left on device" in capsys.readouterr().err
        assert [line["step"] for line in MetricsFile(run / "metrics.jsonl").lines()] == steps


@pytest.mark.slow
def test_a_disk_that_is_only_read_is_a_sentence(run, small_disk, refused):
    disk = small_disk(100, "ro")
    for words in (
        ["train", "digits", "--output", disk / "run"],
        ["export", "--run", run, "--output", disk / "weights.pth"],
        ["report", "--run", run, "--output", disk / "report.html"],
    ):
        message = refused(*words)
        assert "Read-only file system" in message
        assert ".partial" not in message


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM], ids=lambda how: how.name)
@pytest.mark.parametrize("reached", ["metrics.jsonl", "evaluation.npz"])
def test_a_signal_after_the_last_step_says_how_to_go_on(how, reached, recipe, tmp_path, told):
    """In the last examination, and while the report is written."""
    run = tmp_path / "run"
    words = ["train", recipe, "--output", run, "--max-steps", 2]
    process = subprocess.Popen(
        [sys.executable, "-c", LISTENING, *map(str, words)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 240
    while not (run / reached).exists() or '"final"' not in (run / "metrics.jsonl").read_text():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(how)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + how
    assert f"theano-mgpu train --resume {run}" in said
    assert "Traceback" not in said
    assert not list(run.rglob(".*"))
    told("train", "--resume", run)
    assert (run / "report.html").exists()


@pytest.mark.slow
@pytest.mark.parametrize("closed", [1, 2], ids=["stdout", "stderr"])
def test_a_closed_stream_is_no_fault(closed, run):
    words = [sys.executable, "-m", "theano_mgpu", "train", "--resume", str(run), "--json"]
    other = {1: "stderr", 2: "stdout"}[closed]
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {closed}>&-', "sh", *words],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        text=True,
        **{other: subprocess.PIPE},
    )
    assert done.returncode == 0
    if closed == 2:
        assert json.loads(done.stdout)["steps"] == 12


def test_weights_of_another_network_are_said_in_a_few_lines(run, tmp_path, photographs, refused, told):
    told("export", "--run", run, "--output", tmp_path / "weights.pth")
    network = ["--weights", tmp_path / "weights.pth", "--model", "resnet50"]
    message = refused("evaluate", *network, "--data", photographs)
    assert "Are the weights of 'resnet50'? Say by --model" in message
    assert len(message) < 1500


def test_torchvision_is_named_for_its_own_networks_alone(run, tmp_path, told):
    assert "torchvision.models" not in told("export", "--run", run, "--output", tmp_path / "weights.pth")


def test_a_batch_of_none_is_refused(run, refused):
    assert "'batch_size' should be greater than 0" in refused("evaluate", "--run", run, "--batch-size", 0)


def test_a_run_goes_on_in_its_own_folder(run, tmp_path, refused):
    message = refused("train", "--resume", run, "--output", tmp_path / "other")
    assert f"'output' is '{tmp_path / 'other'}'" in message
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("option", "value", "difference"),
    [
        ("--batch-size", 4, "batch_size: 8 in the checkpoint, 4 here"),
        ("--seed", 1, "seed: 0 in the checkpoint, 1 here"),
        ("--optimizer", "adam", "optimizer: 'momentum' in the checkpoint, 'adam' here"),
    ],
)
def test_what_makes_it_another_run_is_refused_by_name(option, value, difference, run, refused):
    before = (run / "recipe.toml").read_bytes()
    assert difference in refused("train", "--resume", run, "--epochs", 3, option, value)
    assert (run / "recipe.toml").read_bytes() == before


def test_help_shows_the_settings_of_the_recipe_that_is_named(capsys):
    for words, size in ((["digits"], 64), (["imagenet-resnet50"], 256)):
        with pytest.raises(SystemExit):
            main(["train", *words, "--help"])
        printed = " ".join(capsys.readouterr().out.replace("│", " ").split())
        assert f"over all devices together. (default: {size})" in printed
