"""Commands about a trained network, and those that need none."""

from __future__ import annotations

import json

import numpy as np
import pytest

import theano_mgpu as tm
from theano_mgpu.cli import main


def test_evaluate_counts_every_image_once_and_agrees_with_the_run(run, told):
    found = told("evaluate", "--run", run, "--checkpoint", "last", json_=True)
    final = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert found["examples"] == 26
    assert (found["top1"], found["loss"]) == (final["ema_top1"], pytest.approx(final["ema_loss"], rel=1e-6))
    assert sum(entry["examples"] for entry in found["per_class"].values()) == 26
    mean = np.mean([entry["top1"] for entry in found["per_class"].values()])
    assert found["top1"] == pytest.approx(mean)


def test_evaluate_prints_a_table(run, told):
    table = told("evaluate", "--run", run)
    assert "astronaut" in table
    assert "top-1" in table


def test_predict_names_classes_with_probabilities(run, photographs, told):
    images = sorted((photographs / "val").glob("*/0000.jpg"))
    found = told("predict", "--run", run, *images, "--top", 13, json_=True)["predictions"]
    assert [entry["path"] for entry in found] == [str(image) for image in images]
    for entry in found:
        probabilities = [row["probability"] for row in entry["classes"]]
        assert sum(probabilities) == pytest.approx(1)
        assert probabilities == sorted(probabilities, reverse=True)
        assert {row["class"] for row in entry["classes"]} == {image.parent.name for image in images}


def test_predict_answers_for_whole_images_and_names_broken_ones(run, photographs, tmp_path, capsys):
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    whole = next((photographs / "val/coins").iterdir())
    assert main(["predict", "--run", str(run), str(tmp_path / "broken.jpg"), str(whole)]) == 1
    printed = capsys.readouterr()
    assert str(whole) in printed.out
    assert "not a JPEG" in printed.out
    assert "1 of 2 images got no answer" in printed.err


def test_an_exported_file_gives_the_same_answers_as_the_run(run, photographs, tmp_path, told):
    """Written in torch's layout and read again, on the images of the run."""
    (tmp_path / "classes.txt").write_text("\n".join(sorted(entry.name for entry in (photographs / "train").iterdir())))
    file = tmp_path / "exported.pth"
    told("export", "--run", run, "--output", file, "--layout", "torch")
    image = next((photographs / "val/rocket").iterdir())
    of_run = told("predict", "--run", run, image, json_=True)["predictions"]
    network = ["--weights", file, "--model", "resnet20", "--classes", tmp_path / "classes.txt"]
    of_file = told("predict", *network, "--image-size", 16, image, json_=True)["predictions"]
    assert of_file == of_run


def test_export_takes_the_averaged_parameters(run, tmp_path, told):
    told("export", "--run", run, "--layout", "store", "--output", tmp_path / "w.safetensors")
    arrays = tm.training.read_checkpoint(run / "checkpoints/best.safetensors").arrays
    store = tm.ParameterStore()
    store.param("fc.bias", (13,), 0.0, decay=False)
    store.load(tmp_path / "w.safetensors", skip=("layer*", "conv1*", "bn1*", "fc.weight"))
    assert np.array_equal(store["fc.bias"].get_value(), arrays["fc.bias.ema"])
    assert not np.array_equal(arrays["fc.bias.ema"], arrays["fc.bias"])


def test_report_is_written_where_asked(run, tmp_path, told):
    path = tmp_path / "page.html"
    assert told("report", "--run", run, "--output", path).strip() == str(path)
    assert "<svg" in path.read_text()


def test_plan_says_memory_shards_and_speed(told):
    words = ["plan", "digits", "--num-classes", 10, "--batch-size", 16, "--contexts", "cpu:2"]
    found = told(*words, json_=True)
    assert (found["shards"], found["shard_size"], found["fits"]) == (2, 8, True)
    assert found["device"]["total"] > 4 * 270_000
    assert found["images_per_s"] > 0


def test_devices_are_listed(told):
    found = told("devices", "--contexts", "cpu:4", json_=True)["devices"]
    assert [device["name"] for device in found] == ["cpu0", "cpu1", "cpu2", "cpu3"]


def test_a_pack_trains_to_the_bits_of_its_folder(run, recipe, photographs, tmp_path, told):
    told("data", "pack", photographs, tmp_path / "pack")
    told("train", recipe, "--data", tmp_path / "pack", "--output", tmp_path / "run")
    final = [json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1]) for folder in (run, tmp_path / "run")]
    assert final[0]["checksum"] == final[1]["checksum"]


def test_data_show_tells_what_is_in_a_folder(photographs, told):
    found = told("data", "show", photographs, json_=True)
    assert (found["train"], found["val"], len(found["classes"])) == (52, 26, 13)
    assert "13 classes" in told("data", "show", photographs)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["evaluate"], "give either --run RUN, a run's folder, or --weights FILE"),
        (["evaluate", "--run", "gone"], "'gone' is no run's folder"),
        (["evaluate", "--weights", "gone.pth", "--data", "photos"], "there is no file 'gone.pth'"),
        (["predict", "--run", "gone", "a.jpg"], "'gone' is no run's folder"),
        (["predict"], "image"),
        (["export", "--run", "gone"], "'gone' is no run's folder"),
        (["report", "--run", "gone"], "gone"),
        (["plan", "nothing"], "no recipe 'nothing'"),
        (["devices", "--contexts", "gpu"], "contexts"),
        (["data", "pick"], "there is no 'data pick'"),
        (["data", "show", "gone"], "gone"),
        (["data", "pack", "gone", "out"], "gone"),
        (["trian"], "Did you mean 'train'?"),
    ],
)
def test_what_cannot_be_is_a_sentence(words, sentence, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert sentence in refused(*words)


def test_evaluate_refuses_other_classes(run, photographs, tmp_path, refused):
    import shutil

    shutil.copytree(photographs, tmp_path / "data")
    for split in ("train", "val"):
        (tmp_path / "data" / split / "coins").rename(tmp_path / "data" / split / "money")
    message = refused("evaluate", "--run", run, "--data", tmp_path / "data")
    assert "the images' classes are not those of the run: 'flower' where that has 'coins'" in message


def test_help_and_version(told):
    assert "train" in told("--help")
    assert tm.__version__ in told("--version")
