"""``theano-mgpu train``: a run folder with all that is promised, and runs that are stopped and go on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from theano_mgpu.cli import main
from theano_mgpu.cli.parsing import parsed
from theano_mgpu.cli.training import _base, _Options
from theano_mgpu.recipes import find_recipe
from theano_mgpu.training import MetricsFile

ROOT = Path(__file__).parents[2]


def lines(run: Path) -> list[dict]:
    return MetricsFile(run / "metrics.jsonl").lines()


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "theano_mgpu", *map(str, words)]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT)}


def test_a_run_folder_holds_what_was_promised(run):
    for name in ("recipe.toml", "metrics.jsonl", "machine.json", "cut.svg", "evaluation.npz", "report.html"):
        assert (run / name).stat().st_size > 0, name
    assert list((run / "tensorboard").glob("events.out.tfevents.*"))
    assert [path.name for path in sorted((run / "checkpoints").iterdir())] == [
        *("best.safetensors", "step-00000010.safetensors", "step-00000012.safetensors")
    ]


def test_metrics_have_the_promised_names_and_end_with_the_checksum(run):
    found = lines(run)
    for line in found:
        times = ("wait", "copy", "compute", "gather", "update")
        assert all(isinstance(line[name], float) for name in ("epoch", "loss", "top1", "images_per_s", *times))
    assert [line["step"] for line in found] == [2, 4, 6, 8, 10, 12, 12]
    assert found[-1]["final"] is True
    assert len(found[-1]["checksum"]) == 64
    assert {"val_top1", "val_top5", "ema_top1"} <= found[-1].keys()


def test_the_saved_recipe_is_the_resolved_one(run, recipe):
    saved = find_recipe(run / "recipe.toml")
    assert saved == find_recipe(recipe).set(output=str(run))


def test_options_change_the_recipe(recipe, tmp_path, told):
    outcome = told("train", recipe, "--output", tmp_path, "--max-steps", 1, "--batch-size", 4, "--seed", 7, json_=True)
    saved = find_recipe(tmp_path / "recipe.toml")
    assert (saved.max_steps, saved.batch_size, saved.seed, saved.model) == (1, 4, 7, "resnet20")
    assert (outcome["steps"], outcome["stopped_by"]) == (1, "max_steps")


@pytest.mark.parametrize(
    ("data", "model", "optimizer"),
    [("photos", "resnet18", "adam"), ("digits", "resnet20", "momentum"), ("folder", "resnet50", "nesterov")],
)
def test_data_without_a_recipe_has_one_of_its_own(data, model, optimizer):
    recipe = _base(parsed(_Options, ["--data", data], "train"))
    assert (recipe.model, recipe.optimizer) == (model, optimizer)


def test_a_run_that_goes_on_on_other_devices_ends_with_the_same_bits(run, recipe, tmp_path, told):
    """Once in mid-epoch, and once more in the same epoch."""
    told("train", recipe, "--output", tmp_path, "--max-steps", 2)
    told("train", "--resume", tmp_path, "--contexts", "cpu:2", "--max-steps", 4)
    told("train", "--resume", tmp_path, "--contexts", "cpu:1", "--max-steps", "None")
    whole, parts = lines(run)[-1], lines(tmp_path)[-1]
    assert parts["checksum"] == whole["checksum"]
    for name in ("step", "loss", "val_loss", "val_top1", "ema_loss"):
        assert parts[name] == whole[name], name


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda how: how.name)
def test_a_process_that_is_stopped_goes_on_to_the_same_bits(run, recipe, tmp_path, told, how):
    process = subprocess.Popen(
        command("train", recipe, "--output", tmp_path), env=environment(), stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 240
    while not list(tmp_path.glob("checkpoints/step-*")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(how)
    _, said = process.communicate(timeout=120)
    if how is not signal.SIGKILL:
        assert process.returncode == 128 + how
        assert f"theano-mgpu train --resume {tmp_path}" in said
    assert "Traceback" not in said
    told("train", "--resume", tmp_path)
    assert lines(tmp_path)[-1]["checksum"] == lines(run)[-1]["checksum"]


def test_a_second_run_in_a_folder_is_refused(run, recipe, refused):
    before = (run / "metrics.jsonl").read_bytes()
    assert f"--resume {run}" in refused("train", recipe, "--output", run)
    assert (run / "metrics.jsonl").read_bytes() == before


@pytest.fixture
def unchanged(run):
    """Whatever is refused leaves the run's folder as it was."""

    def content():
        return {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}

    before = content()
    yield run
    assert content() == before


def test_other_classes_are_refused_with_what_differs(unchanged, photographs, tmp_path, refused):
    run = unchanged
    shutil.copytree(photographs, tmp_path / "data")
    for split in ("train", "val"):
        (tmp_path / "data" / split / "coins").rename(tmp_path / "data" / split / "money")
    message = refused("train", "--resume", run, "--data", tmp_path / "data", "--epochs", 3)
    assert "classes: only in the checkpoint 'coins', only here 'money'" in message
    assert "Traceback" not in message


def test_a_changed_data_folder_is_refused_with_what_differs(unchanged, photographs, tmp_path, refused):
    shutil.copytree(photographs, tmp_path / "data")
    next((tmp_path / "data/train/rocket").iterdir()).unlink()
    message = refused("train", "--resume", unchanged, "--data", tmp_path / "data", "--epochs", 3)
    assert "training images (number, digest): in the checkpoint 'rocket' 4, " in message
    assert ", here 3, " in message
    assert "'coins'" not in message


def test_another_network_is_refused(unchanged, refused):
    assert "network: 'resnet20' in the checkpoint, 'resnet32' here" in refused(
        "train", "--resume", unchanged, "--model", "resnet32", "--epochs", 3
    )


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["imagenet-resnt50"], "no recipe 'imagenet-resnt50' (did you mean 'imagenet-resnet50'?)"),
        (["gone.toml"], "no recipe 'gone.toml'"),
        (["--resume", "gone"], "'gone' is no run's folder"),
        (["digits", "--resume", "gone"], "are both given"),
        (["--data", "gone"], "'data' is 'gone', and there is no such folder"),
        (["--batch-size", "0"], "'batch_size' should be greater than 0"),
        (["--batch-siz", "8"], "--batch-size"),
        (["--model", "resnet51"], "invalid choice 'resnet51'"),
        (["--epochs", "many"], "epochs"),
        (["digits", "--batch-size", "100000"], "1438 images do not fill a batch of 100000"),
        (["digits", "--contexts", "gpu"], "contexts"),
        (["digits", "--precision", "fp16"], "precision"),
        (["digits", "--output", "/proc/none"], "/proc/none"),
        (["digits", "--val-resize", "4"], "'resize' is 4, less than the image size, 8"),
    ],
)
def test_what_cannot_be_is_a_sentence(words, sentence, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert sentence in refused("train", *words)
    assert not list(tmp_path.glob("runs/*/checkpoints/*"))


def test_debug_shows_where(capsys):
    assert main(["train", "gone.toml", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_checkpoint_of_a_newer_version_is_refused(run, tmp_path, refused):
    shutil.copytree(run, tmp_path / "run")
    for file in (tmp_path / "run/checkpoints").glob("*.safetensors"):
        content = file.read_bytes()
        file.write_bytes(content.replace(b'"theano_mgpu_checkpoint": "1"', b'"theano_mgpu_checkpoint": "9"'))
    message = refused("train", "--resume", tmp_path / "run", "--epochs", 3)
    assert "format version 9" in message


def test_a_damaged_newest_checkpoint_is_said_and_the_one_before_taken(run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "run")
    newest = tmp_path / "run/checkpoints/step-00000012.safetensors"
    newest.write_bytes(newest.read_bytes()[:-100])
    assert main(["train", "--resume", str(tmp_path / "run")]) == 0
    assert "step-00000012.safetensors' is damaged" in capsys.readouterr().err
    assert lines(tmp_path / "run")[-1]["checksum"] == lines(run)[-1]["checksum"]


def test_json_is_all_that_standard_output_holds(run, told):
    outcome = told("train", "--resume", run, json_=True)
    assert outcome["checksum"] == json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["checksum"]
