"""What a drawing says of a cut, as text and as a picture."""

from __future__ import annotations

import os
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import ImageFont

import theano_mgpu as tm
from theano_mgpu.cut import Cut, cut
from theano_mgpu.drawing import Running, diagram, draw
from theano_mgpu.drawing.elements import fitted, text_width, wrapped
from theano_mgpu.drawing.sizes import shapes_at_the_cut
from theano_mgpu.drawing.summary import listed, size
from theano_mgpu.drawing.svg import svg
from theano_mgpu.drawing.work import sampled, work

SVG = "{http://www.w3.org/2000/svg}"


def perceptron(names: tuple[str, str, str] = ("w", "b", "v"), momentum: bool = False):
    """A two-layer perceptron's step: inputs, outputs (the loss and the logits), updates."""
    shapes = ((20, 8), (8,), (8, 3))
    w, b, v = params = [pytensor.shared(np.zeros(s, "float32"), n) for s, n in zip(shapes, names, strict=True)]
    x, y, lr = pt.fmatrix("x"), pt.ivector("y"), pt.fscalar("lr")
    logits = pt.tanh(x @ w + b) @ v
    loss = tm.nn.softmax_cross_entropy(logits, y).mean()
    loss.name = "loss"
    gradients = tm.grad(loss, params)
    rule = tm.updates.momentum if momentum else tm.updates.sgd
    return [x, y, lr], [tm.average(loss), logits], rule(gradients, params, lr)


@pytest.fixture(scope="module")
def small() -> Cut:
    inputs, outputs, updates = perceptron()
    return cut(inputs, outputs, updates)


def running(devices: int, shards: int | None = None, **options) -> Running:
    return Running(tuple(f"cuda{i}" for i in range(devices)), shards or devices, **options)


SMALL = """\
┌─ inputs ───────────────────────────────────┐        ┌─ shared variables ───────────────────────┐
│ split  x float32 (n, ?)                    │        │ mirrored  3 variables                    │
│        y int32 (n)                         │        │           192 numbers, 768 B             │
│ whole  lr float32                          │        │           w, b, v                        │
└──┬──────────────────┬──────────────────────┘        └─────────┬─────────────────────────┬──────┘
   │                  └──────────────────────── whole ──────────┼─────────────┐           │
   │ split                      ┌──────────── mirror ───────────┘             │           │
   ▼                            ▼                                             ▼           ▼
"""


def test_small_diagram_is_this_one(small: Cut) -> None:
    assert str(small).startswith(SMALL)


def test_small_diagram_tells_what_crosses_and_what_runs(small: Cut) -> None:
    text = str(small)
    for said in (
        "device part, once per shard",
        "5 x Dot",
        "1 x SoftmaxCrossEntropy  + 1 gradient",
        "4 averages from each shard",
        "193 numbers, 772 B",  # 160 + 8 + 24 of the gradients, and the loss
        "3 gradients: by w, b, v",
        "and of loss",
        "updated  3 variables",
        "outputs  loss",
        "outputs, a row for each example",
    ):
        assert said in text


def test_running_adds_contexts_shards_and_labels(small: Cut) -> None:
    text = diagram(small, running(4, 8, outputs=("cost", "scores"), name="train"))
    assert text.startswith("train: 8 shards in 2 rounds on cuda0, cuda1, cuda2, cuda3; update on the host\n")
    assert "device part, once per shard, on 4 devices" in text
    assert "outputs  cost" in text
    assert "│ scores " in text


def test_update_on_the_devices_is_said_in_text_and_picture(small: Cut) -> None:
    on_device = running(2, update_on="device")
    for drawn in (diagram(small, on_device), svg(small, on_device)):
        assert "on every device alike" in drawn
        assert "host part" not in drawn
    assert "all-reduce" in svg(small, on_device)


def test_what_only_the_update_reads_is_told_from_what_is_mirrored() -> None:
    inputs, outputs, updates = perceptron(momentum=True)
    text = str(cut(inputs, outputs, updates))
    assert "mirrored   3 variables" in text
    assert "host only  3 variables" in text
    assert "w.velocity" in text


def test_function_without_averages_has_no_update_and_no_gather() -> None:
    (x, _, _), (_, logits), _ = perceptron()
    prediction = cut([x], [logits], {})
    assert "nothing to do" in str(prediction)
    assert "gather" not in str(prediction)
    assert ">outputs<" in svg(prediction, running(2))
    assert "host part" not in svg(prediction, running(2))


def test_update_without_batch_is_drawn() -> None:
    counter = pytensor.shared(np.zeros(3), "counter")
    only_update = cut([], [], {counter: counter + 1})
    assert "inputs ─" in str(only_update)
    assert "updated  1 variable" in str(only_update)
    ElementTree.fromstring(svg(only_update, running(1)))


def test_totals_and_random_generators_are_named() -> None:
    rng = pytensor.shared(np.random.default_rng(0), name="noise")
    x = pt.fmatrix("x")
    next_rng, kept = rng.bernoulli(0.5, size=x.shape)
    count = kept.sum(dtype="int64")
    count.name = "kept"
    text = str(cut([x], [tm.total(count)], {rng: next_rng}))
    assert "1 total from each shard" in text
    assert "1 number, 8 B" in text
    assert "random  noise, a key for each shard" in text


def test_regions_are_counted_and_their_marks_are_views() -> None:
    weight = pytensor.shared(np.eye(3, dtype="float32"), name="weight")
    x = pt.matrix("x", dtype="float32")
    block = tm.recompute(lambda x: pt.tanh(x @ weight))
    loss = block(block(x)).mean()
    done = work(cut([x], [tm.average(loss)], {weight: weight - tm.grad(loss, weight)}).device)
    assert "2 regions computed again in the backward pass" in done.rest
    assert not {"Enter", "Leave", "Return"} & {operation.name for operation in done.operations}


def test_gradients_of_a_batch_norm_network_are_grouped_with_their_ops() -> None:
    store = tm.ParameterStore(seed=0)
    images = pt.tensor("images", shape=(None, 8, 8, 3), dtype="float32")
    x = tm.nn.relu(tm.layers.batch_norm(store, "n1", tm.layers.conv2d(store, "c1", images, 4, 3), True))
    x = tm.nn.relu(tm.layers.batch_norm(store, "n2", tm.layers.conv2d(store, "c2", x, 16, 3), True))
    loss = x.mean()
    params = store.trainable()
    updates = tm.updates.sgd(tm.grad(loss, params), params, 0.1) | store.updates()
    done = work(cut([images], [tm.average(loss)], updates).device)
    convolution, norm = done.operations
    # Two filter gradients, and one by the images: the first layer's input needs none.
    assert (convolution.name, convolution.count, convolution.gradients) == ("Conv2d", 2, 3)
    assert convolution.label == "Conv2d 4..16"
    assert (norm.name, norm.count, norm.gradients) == ("BatchNorm", 2, 2)
    counted = sum(o.count + o.gradients for o in done.operations) + done.elementwise.total()
    assert counted + done.reductions.total() + done.views + done.collectives == done.nodes
    assert not any("DimShuffle" in o.name for o in done.operations)


@pytest.mark.parametrize("momentum", [False, True])
def test_shapes_of_gradients_follow_from_the_update_rule(momentum: bool) -> None:
    inputs, outputs, updates = perceptron(momentum=momentum)
    parts = cut(inputs, outputs, updates)
    assert sorted(shapes_at_the_cut(parts)) == [(), (8,), (8, 3), (20, 8)]


def test_size_that_no_one_knows_yet_is_not_made_up() -> None:
    x = pt.fmatrix("x")
    text = str(cut([x], [tm.average(x.mean(axis=0))], {}))
    assert "size known at the first call" in text


NAMES = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Zl", "Zp")), min_size=1, max_size=90)


def _boxes_close(text: str) -> bool:
    """Every upper left corner has its lower left one below it, with nothing but edges between."""
    rows = text.split("\n")
    for y, row in enumerate(rows):
        for x, letter in enumerate(row):
            if letter == "┌" and row[x + 1 : x + 3] == "─ " and row[x + 3 : x + 9] != "mirror":
                below = [r[x : x + 1] for r in rows[y + 1 :]]
                if any(edge != "│" for edge in below[: below.index("└")]):
                    return False
    return True


@settings(max_examples=25, deadline=None)
@given(st.lists(st.from_regex(r"[A-Za-z_.0-9]{1,120}", fullmatch=True), min_size=3, max_size=3))
def test_diagram_stays_aligned_and_narrow_whatever_the_names(names: list[str]) -> None:
    inputs, outputs, updates = perceptron(tuple(names))
    text = diagram(cut(inputs, outputs, updates), running(8, name=names[0]))
    assert max(map(len, text.split("\n"))) <= 98
    assert _boxes_close(text)


def _measured(text: str, font_size: float, mono: bool) -> float:
    """With a font of Helvetica's widths, or as monospaced ones from Courier to DejaVu Sans Mono: 0.602 em a letter."""
    font = ImageFont.load_default(font_size)
    if mono:
        return sum(0.602 * font_size if letter.isascii() else font.getlength(letter) for letter in text)
    return font.getlength(text)


def _overflowing(picture: str) -> list[str]:
    """Texts that leave the page or the smallest box that they begin in."""
    root = ElementTree.fromstring(picture)
    boxes = [tuple(float(r.get(k)) for k in ("x", "y", "width", "height")) for r in root.findall(f"{SVG}rect")]
    found = []
    for element in root.findall(f"{SVG}text"):
        font_size = float(element.get("font-size"))
        width = _measured(element.text or "", font_size, "mono" in element.get("class"))
        x, y = float(element.get("x")), float(element.get("y"))
        left = x - {"start": 0, "middle": width / 2, "end": width}[element.get("text-anchor")]
        around = [b for b in boxes if b[0] <= x <= b[0] + b[2] and b[1] <= y <= b[1] + b[3]]
        box = min(around, key=lambda b: b[2] * b[3])
        if left < box[0] or left + width > box[0] + box[2] or y - font_size * 0.75 < box[1] or y + 2 > box[1] + box[3]:
            found.append(element.text)
    return found


@settings(max_examples=15, deadline=None)
@example(["W" * 90] * 4, 12, 40)
@example(["many words " * 9] * 4, 3, 3)
@given(st.lists(NAMES, min_size=4, max_size=4), st.integers(1, 20), st.integers(1, 40))
def test_text_stays_in_its_box_whatever_the_names(names: list[str], devices: int, shards: int) -> None:
    inputs, outputs, updates = perceptron(tuple(names[:3]), momentum=True)
    inputs[0].name = names[3]
    how = Running(tuple(f"{names[0]}{i}" for i in range(devices)), shards, "host", tuple(names[:2]), names[1])
    assert _overflowing(svg(cut(inputs, outputs, updates), how)) == []


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_each_device_has_a_lane(small: Cut, devices: int) -> None:
    root = ElementTree.fromstring(svg(small, running(devices)))
    lanes = [r for r in root.findall(f"{SVG}rect") if r.get("class") == "lane"]
    tops = [float(r.get("y")) for r in lanes]
    assert len(lanes) == devices
    assert all(b >= a + float(r.get("height")) for a, b, r in zip(tops, tops[1:], lanes, strict=False))
    assert len(root.findall(f"{SVG}use")) == devices


def test_many_devices_leave_out_the_middle_ones(small: Cut) -> None:
    picture = svg(small, running(64))
    texts = [element.text for element in ElementTree.fromstring(picture).findall(f"{SVG}text")]
    assert sum(text.startswith("cuda") for text in texts) == 7
    assert "cuda63" in texts
    assert texts.count("···") == 2


def test_shards_stand_beside_the_device_that_takes_them(small: Cut) -> None:
    root = ElementTree.fromstring(svg(small, running(2, 4)))
    baseline = {element.text: element.get("y") for element in root.findall(f"{SVG}text")}
    assert baseline["shard 0"] == baseline["shard 1"] == baseline["cuda0"]
    assert baseline["shard 2"] == baseline["shard 3"] == baseline["cuda1"]


def test_picture_needs_nothing_from_elsewhere_and_knows_the_dark(small: Cut) -> None:
    picture = svg(small, running(4))
    assert "prefers-color-scheme: dark" in picture
    assert picture.count("http") == 1  # SVG's own name
    assert not any(word in picture for word in ("@import", "url(", "<script", "<image"))


def test_names_are_escaped() -> None:
    inputs, outputs, updates = perceptron(('<a & "b">', "\x00", "]]>"))
    root = ElementTree.fromstring(svg(cut(inputs, outputs, updates), running(2)))
    assert any('<a & "b">' in (element.text or "") for element in root.findall(f"{SVG}text"))


def test_draw_writes_the_picture_and_returns_the_path(small: Cut, tmp_path: Path) -> None:
    path = tmp_path / "cut.svg"
    assert draw(small, path, running(2)) == path
    assert path.read_text(encoding="utf-8") == svg(small, running(2))
    assert os.listdir(tmp_path) == ["cut.svg"]


@pytest.mark.parametrize("name", ["cut.png", "cut", "svg"])
def test_draw_refuses_other_formats(small: Cut, tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=rf"draw\(\): 'path' should end in \"\.svg\".*{name}"):
        draw(small, tmp_path / name, running(2))
    assert os.listdir(tmp_path) == []


def test_failed_drawing_leaves_the_old_file(small: Cut, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "cut.svg"
    path.write_text("old")

    def full(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="disk full"):
        draw(small, path, running(2))
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["cut.svg"]


def test_step_prints_and_draws_what_it_does(eight: tm.Contexts, tmp_path: Path) -> None:
    inputs, (loss, logits), updates = perceptron()
    step = tm.function(
        inputs, {"cost": loss, "scores": logits}, updates=updates, contexts=eight[:4], shards=8, name="train"
    )
    assert str(step).startswith("train: 8 shards in 2 rounds on cpu0, cpu1, cpu2, cpu3; update on the host\n")
    assert str(step.cut) == diagram(step.cut)
    path = step.draw(str(tmp_path / "train.svg"))
    assert path == str(tmp_path / "train.svg")
    texts = {e.text for e in ElementTree.parse(path).getroot().findall(f"{SVG}text")}
    assert {"train", "cpu3", "shard 7", "cost", "scores"} <= texts


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=400), st.integers(1, 100))
def test_sampling_keeps_each_kind_at_its_share(order: list[tuple[int, bool]], most: int) -> None:
    chosen = sampled(tuple(order), most)
    assert len(chosen) == min(len(order), most)
    shares, kept = Counter(order), Counter(chosen)
    for item, count in shares.items():
        # Off by less than the number of kinds, as each place goes to the kind most in arrears.
        assert abs(kept[item] - count * len(chosen) / len(order)) < len(shares)


@settings(max_examples=50, deadline=None)
@given(NAMES, st.floats(20, 400))
def test_fitted_text_is_a_beginning_that_fits(text: str, width: float) -> None:
    shown = fitted(text, width, 13)
    assert shown == text or (shown.endswith("…") and text.startswith(shown[:-1]))
    assert text_width(shown, 13) <= width
    assert all(text_width(line, 13) <= width for line in wrapped(text, width, 13, 3))


def test_lists_name_the_first_and_the_last() -> None:
    assert listed(["a", "b", "c"]) == "a, b, c"
    assert listed([f"p{i}" for i in range(161)]) == "p0, p1, ..., p160"


@pytest.mark.parametrize(
    ("count", "said"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (102_228_128, "102.2 MB"), (3 * 10**9, "3.0 GB")]
)
def test_sizes_are_in_decimal_units(count: int, said: str) -> None:
    assert size(count) == said


def test_resident_data_is_told_from_what_is_mirrored(tmp_path):
    images, rows = tm.resident(np.zeros((7, 3), "float32"), name="images"), pt.ivector("rows")
    weight = pytensor.shared(np.zeros(3, "float32"), name="weight")
    loss = (images[rows] @ weight).mean()
    drawn = cut([rows], [tm.average(loss)], {weight: weight - tm.grad(loss, weight)})
    lines = diagram(drawn).splitlines()
    assert any("mirrored  1 variable " in line for line in lines)
    assert any("resident  1 variable " in line for line in lines)
    picture = draw(drawn, tmp_path / "cut.svg", Running(("cpu0",), 1))
    assert "resident on the devices, a part on each: images" in Path(picture).read_text()
