"""A report says what the run's files say, whatever is in them, and whatever is missing."""

from __future__ import annotations

import base64
import html
import io
import json
import os
import re
import socket
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

import theano_mgpu as tm
from tests.report.trained_runs import CLASSES, write_examination

SECTIONS = ["learning", "pace", "classes", "mistakes", "filters", "cut", "recipe", "machine"]
VOID = {"meta", "link", "img", "br"}


class Tags(HTMLParser):
    """Fails where a tag is closed that is not open; keeps each section's text, and every attribute."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.counts: dict[str, int] = {}
        self.section, self.texts = "", dict.fromkeys(["", *SECTIONS], "")
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.attributes += [(tag, name, value) for name, value in attributes]
        self.section = dict(attributes).get("aria-labelledby", "") if tag == "section" else self.section
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts[self.section if self.section in SECTIONS else ""] += data


def page_of(folder) -> tuple[str, Tags]:
    page = tm.report.write_report(folder).read_text()
    return page, Tags(page)


def lines_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def images_in(page: str, kind: str = "png") -> list[np.ndarray]:
    found = re.findall(rf"data:image/{kind};base64,([A-Za-z0-9+/=]+)", page)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(one)))) for one in found]


def test_a_finished_run_is_told_with_its_numbers(run):
    path = tm.report.write_report(run)
    assert path == run / "report.html"
    tags = Tags(path.read_text())
    lines = lines_of(run)
    accuracies = [line["val_top1"] for line in lines if "val_top1" in line and "final" not in line]
    head, learning = tags.texts[""], tags.texts["learning"]
    assert "coloured squares" in head
    assert f"Top-1 on “val” is {100 * accuracies[-1]:.1f} %" in head
    assert f"the best was {100 * max(accuracies):.1f} % at epoch {accuracies.index(max(accuracies)) + 1}" in head
    assert "It finished: all the epochs that were asked for." in head
    assert "72steps" in re.sub(r"\s", "", head) or "steps72" in re.sub(r"\s", "", head)
    assert f"train {lines[-1]['loss']:.3g}, val {lines[-1]['val_loss']:.3g}" in learning
    assert all(f"{line['val_loss']:.4f}" in learning for line in lines if "val_loss" in line)
    assert "Learning rate" in tags.texts["pace"]
    assert "wait" in tags.texts["pace"]
    assert 'model = "one convolution"' in tags.texts["recipe"]
    assert tm.report.describe_machine()["processor"] in tags.texts["machine"]
    assert "cpu1 (cpu)" in tags.texts["machine"]
    assert "5 filters of 3 × 3 pixels, in colour, from the checkpoint “best”" in tags.texts["filters"]
    assert tags.counts["h1"] == 1


def test_the_page_needs_nothing_besides_itself(run):
    page, tags = page_of(run)
    for tag, name, value in tags.attributes:
        if name in ("src", "href", "data", "action", "srcset", "poster"):
            assert value.startswith(("data:", "#")), (tag, name, value)
    assert not re.search(r"@import|url\(", page)
    assert "default-src 'none'" in page
    assert tags.counts["script"] == 1


def test_what_files_hold_is_text(run):
    """A class, a recipe, a machine and a folder may be called anything."""
    evil = '<script>alert("x")</script>'
    arrays = dict(np.load(run / "evaluation.npz"))
    np.savez(run / "evaluation.npz", **{**arrays, "classes": np.array([evil, "a", "b"])})
    (run / "machine.json").write_text(json.dumps({evil: [evil, {"x": evil}], "gpu": None}))
    (run / "cut.svg").write_text(
        f"<svg xmlns='http://www.w3.org/2000/svg'><desc>{html.escape(evil)}</desc>{evil}</svg>"
    )
    with open(run / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"step": 73, "loss": 1.0, f"{evil}_top1": 0.5}) + "\n")
    renamed = run.rename(run.with_name("<b onclick='alert()'>"))
    page, tags = page_of(renamed)
    assert tags.counts["script"] == 1
    assert "alert(&quot;x&quot;)" in page
    assert evil in tags.texts["classes"]
    assert evil in tags.texts["machine"]
    assert "b" not in tags.counts
    assert not [value for _, name, value in tags.attributes if name.startswith("on")]


def test_mistakes_and_filters_are_the_runs_own_pixels(run):
    page, _ = page_of(run)
    arrays = np.load(run / "evaluation.npz")
    *mistakes, filters = images_in(page)
    np.testing.assert_array_equal(np.stack(mistakes), arrays["mistake_images"])
    assert len(mistakes) == arrays["confusion"].sum() - np.trace(arrays["confusion"])
    kept = tm.training.read_checkpoint(run / "checkpoints" / "best.safetensors").arrays["conv1.weight"]
    assert filters.shape == (3, 5 * 4 - 1, 4)
    for number in range(5):
        tile = filters[:, 4 * number : 4 * number + 3, :3].astype("float64")
        expected = 127.5 + 127.5 * kept[..., number] / np.abs(kept[..., number]).max()
        np.testing.assert_allclose(tile, expected, atol=0.51)
    assert (filters[:, 3::4, 3] == 0).all()


def test_large_mistakes_are_made_smaller(run):
    rng = np.random.default_rng(0)
    arrays = dict(np.load(run / "evaluation.npz"))
    count = len(arrays["mistake_images"])
    smooth = rng.integers(0, 256, (count, 1, 1, 3)).astype("uint8")
    arrays["mistake_images"] = np.broadcast_to(smooth, (count, 300, 600, 3))
    np.savez(run / "evaluation.npz", **arrays)
    page, _ = page_of(run)
    shown = images_in(page, "webp")
    assert [image.shape for image in shown] == [(112, 224, 3)] * count
    for image, colour in zip(shown, smooth[:, 0, 0], strict=True):
        np.testing.assert_allclose(image.mean(axis=(0, 1)), colour, atol=6)


def test_the_confusion_matrix_has_a_cell_for_each_answer_that_was_given(run):
    page, _ = page_of(run)
    confusion = np.load(run / "evaluation.npz")["confusion"]
    said = re.findall(r"<title>([^<]*): answered ([^<]*?) (\d+) of (\d+) times</title>", page)
    assert {(html.unescape(t), html.unescape(a)): (int(n), int(m)) for t, a, n, m in said} == {
        (CLASSES[t], CLASSES[a]): (confusion[t, a], confusion[t].sum()) for t, a in np.argwhere(confusion)
    }


def test_many_classes_are_told_by_the_most_confused_pairs(run):
    rng = np.random.default_rng(1)
    classes = [f"class {number}" for number in range(100)]
    truth = np.repeat(np.arange(100), 20).astype("int32")
    logits = rng.normal(size=(2000, 100)) + 3 * np.eye(100)[truth]
    logits[truth == 7, 9] += 10
    write_examination(run, logits, tm.data.Examples(np.zeros((2000, 8, 8, 3), "uint8"), truth), classes)
    page, tags = page_of(run)
    assert 'id="confusion"' not in page
    confused = tags.texts["classes"].partition("Most often confused")[2]
    times = np.load(run / "evaluation.npz")["confusion"][7, 9]
    assert re.search(rf"times\s*class 7class 9{times} of 20", confused)
    assert "The 15 worst of 100 classes" in confused


@pytest.mark.parametrize("absent", ["evaluation.npz", "recipe.toml", "machine.json", "cut.svg", "checkpoints"])
def test_what_is_missing_leaves_a_quiet_sentence(run, absent):
    (run / absent).rename(run.parent / absent)
    page, tags = page_of(run)
    sections = {"evaluation.npz": 2}.get(absent, 1)
    assert page.count('class="missing"') == sections
    assert all(tags.texts[name] for name in SECTIONS)


@pytest.mark.parametrize("damaged", ["evaluation.npz", "machine.json", "checkpoints/best.safetensors"])
def test_what_cannot_be_read_is_said(run, damaged):
    (run / damaged).write_bytes(b"[" + (run / damaged).read_bytes()[:50])
    page, tags = page_of(run)
    assert "It could not be read: " in page
    assert "val" in tags.texts["learning"]


def test_arrays_that_do_not_fit_each_other_are_said(run):
    arrays = dict(np.load(run / "evaluation.npz"))
    np.savez(run / "evaluation.npz", **{**arrays, "mistake_labels": arrays["mistake_labels"] + 5})
    _, tags = page_of(run)
    assert "but there are 3 classes" in tags.texts["mistakes"]
    np.savez(run / "evaluation.npz", **{**arrays, "classes": np.array(["one", "two"])})
    _, tags = page_of(run)
    assert "a confusion matrix of shape (3, 3) for 2 classes." in tags.texts["classes"]


def dead_process() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


@pytest.mark.parametrize(
    ("lock", "said"),
    [
        ("", "It was stopped before its end and may go on from its last checkpoint."),
        (f"process {os.getpid()} on {socket.gethostname()}", "It is still going on."),
        (f"process {dead_process()} on {socket.gethostname()}", "It was killed (process "),
        ("process 12 on another-machine", "It may still be going on (process 12 on another-machine)"),
    ],
    ids=["ended", "alive", "killed", "elsewhere"],
)
def test_a_run_without_its_end_is_told_as_far_as_it_went(run, lock, said):
    lines = lines_of(run)[:6]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 14, "lo')
    (run / "lock").write_text(lock)
    _, tags = page_of(run)
    assert said in tags.texts[""]
    assert f"train {lines[-1]['loss']:.3g}" in tags.texts["learning"]


def test_a_run_that_has_just_begun_has_a_report(tmp_path):
    with tm.training.RunFolder(tmp_path / "run"):
        page, tags = page_of(tmp_path / "run")
    assert "No line of metrics has been written yet. It is still going on." in tags.texts[""]
    assert page.count('class="missing"') == len(SECTIONS)


def test_a_loss_alone_is_enough(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": null}\n{"step": 2, "loss": 0.25}\n')
    _, tags = page_of(tmp_path)
    assert "The training loss is 0.250. Nothing was evaluated." in tags.texts[""]
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5, "val_loss": 0.75}\n')
    _, tags = page_of(tmp_path)
    assert "Loss on “val” is 0.750, the best of the run." in tags.texts[""]


def test_waiting_for_the_input_is_named(run):
    lines = [{"step": step, "loss": 1.0, "wait": 0.3, "step_seconds": 0.7} for step in (1, 2, 3)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    _, tags = page_of(run)
    assert "Input is the bottleneck: 30 % of the time is spent waiting for batches" in tags.texts["pace"]


def test_a_long_run_makes_a_page_of_a_readable_size(tmp_path):
    """90 epochs of ImageNet with a line every ten steps."""
    with open(tmp_path / "metrics.jsonl", "w") as file:
        for step in range(10, 450_360, 10):
            line = {"step": step, "epoch": step / 5004, "loss": 1 / step, "top1": 0.5, "images_per_s": 1e3, "wait": 0.1}
            line |= {"step_seconds": 0.2} | ({"val_top1": 0.7} if step % 5000 == 0 else {})
            file.write(json.dumps(line) + "\n")
    page, _ = page_of(tmp_path)
    assert len(page) < 400_000


@pytest.mark.parametrize("content", ["[1]\n", "no json\n", '{"loss": 1}\n'])
def test_metrics_that_are_none_are_refused(tmp_path, content):
    (tmp_path / "metrics.jsonl").write_text(content)
    with pytest.raises(ValueError, match=r"metrics.jsonl' holds lines that are no metrics"):
        tm.report.write_report(tmp_path)


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no folder '.*nowhere'. Give the folder of a run\.$"):
        tm.report.write_report(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"holds no run: there is no 'metrics.jsonl'"):
        tm.report.write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_page_that_cannot_be_written_is_named_and_the_old_one_stays(run):
    tm.report.write_report(run)
    old = (run / "report.html").read_bytes()
    with pytest.raises(OSError, match=r"cannot write '.*toml/report.html': Not a directory. Give another 'path'"):
        tm.report.write_report(run, run / "recipe.toml" / "report.html")
    assert (run / "report.html").read_bytes() == old
    assert tm.report.write_report(run, str(run.parent / "other.html")) == run.parent / "other.html"
    assert not list(run.glob(".*.partial"))
