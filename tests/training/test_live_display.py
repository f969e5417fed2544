"""A live display in a terminal of any width, and a plain line for each line of metrics where there is none."""

from __future__ import annotations

import io
import re

import pytest
from network import train
from rich.cells import cell_len
from rich.console import Console

from theano_mgpu.training.live_display import LiveDisplay, Screen, metric_texts, plain_line, time_left
from theano_mgpu.training.process_memory import resident_bytes

LINE = {
    **{"step": 120, "epoch": 1.5, "loss": 0.51349, "top1": 0.841, "learning_rate": 0.1, "images_per_s": 24.31},
    **{"wait": 0.41, "copy": 0.01, "compute": 0.5, "gather": 0.05, "update": 0.03},
    **{"val_loss": 0.61, "val_top1": 0.81, "val_top5": 0.99, "val_examples": 104, "ema_top1": None},
}
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def terminal(width: int) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=width, height=30, _environ={})


def written(console: Console) -> str:
    return ESCAPES.sub("", console.file.getvalue())


def test_a_plain_line_says_what_a_line_of_metrics_says():
    line = {name: LINE[name] for name in ("step", "epoch", "loss", "top1", "images_per_s", "wait")}
    said = "step 120/800  epoch 1.50  loss 0.513  top-1 84.1 %  24.3 images/s  2 min left"
    assert plain_line(120, 800, line, 130.0) == said
    assert plain_line(7, None, {"loss": 0.5, "top1": None}, None) == "step 7  loss 0.500"


def test_metrics_are_said_by_their_names():
    said = ["loss 0.513", "top-1 84.1 %", "24.3 images/s", "val loss 0.610", "val top-1 81.0 %"]
    assert metric_texts(LINE) == said
    assert metric_texts({"loss": 123456.0, "images_per_s": 12345.6}) == ["loss 1.23e+05", "12,346 images/s"]


def test_the_time_left_is_at_the_mean_speed():
    assert time_left((1, 100.0), (11, 120.0), 21) == pytest.approx(20.0)
    assert time_left((1, 100.0), (1, 100.0), 21) is None
    assert time_left((1, 100.0), (11, 120.0), None) is None
    assert time_left((1, 100.0), (31, 120.0), 21) == 0.0  # an estimated total may be one too small


@pytest.mark.parametrize(
    ("seconds", "said"), [(42, "42 s"), (119, "2 min"), (7260, "2 h 01 min"), (7199, "2 h 00 min")]
)
def test_time_left_in_words(seconds, said):
    assert plain_line(1, 2, {}, seconds) == f"step 1/2  {said} left"


@pytest.mark.parametrize("width", [20, 60, 100, 200])
def test_a_terminal_shows_everything_in_its_width(width):
    console = terminal(width)
    with LiveDisplay(console=console) as live:
        live.update(119, {}, 800)
        live.update(120, LINE, 800)
    shown = written(console)
    assert max(cell_len(row) for row in shown.splitlines()) <= width
    words = " ".join(shown.split())
    for text in ("step 120/800", "epoch 1.50", *metric_texts(LINE), "memory", "wait ████▏ 41 %", "update ▎ 3 %"):
        assert text in words, text
    assert "input is the bottleneck: 41 % of the time is spent waiting for batches" in words
    assert "ema" not in shown


def test_a_run_without_an_end_in_sight_has_a_bar_too():
    console = terminal(60)
    console.print(Screen(7))
    assert written(console).splitlines()[0] == "step 7"
    assert "━" * 60 in written(console)


def test_the_last_lines_together_say_what_the_bottleneck_is():
    """One slow file among five lines is none; and the five before do not count."""
    console = terminal(120)
    quick, slow = {"wait": 0.01, "step_seconds": 1.0}, {"wait": 0.3, "step_seconds": 1.0}
    with LiveDisplay(console=console) as live:
        for step in range(1, 6):
            live.update(step, {"step": step, **(slow if step == 3 else quick)}, 10)
    assert "bottleneck" not in written(console)
    console = terminal(120)
    with LiveDisplay(console=console) as live:
        for step in range(1, 11):
            live.update(step, {"step": step, **(slow if step > 5 else quick)}, 10)
    assert "23 % of the time" in written(console)  # 0.3 of 1.3 s


def test_without_a_terminal_there_is_a_line_for_each_new_line():
    console = Console(file=io.StringIO(), force_terminal=False, width=40)
    with LiveDisplay(console=console) as live:
        live.update(119, {**LINE, "step": 110}, 800)  # said before
        live.update(120, LINE, 800)
        live.update(121, LINE, 800)
    said = console.file.getvalue().splitlines()
    assert len(said) == 1  # not wrapped at 40 columns
    assert said[0].startswith("step 120/800  epoch 1.50  loss 0.513  top-1 84.1 %  24.3 images/s  val loss 0.610")
    assert said[0].endswith(" left")


def test_a_dumb_terminal_gets_plain_lines():
    console = Console(file=io.StringIO(), force_terminal=True, _environ={"TERM": "dumb"})
    with LiveDisplay(console=console) as live:
        live.update(120, LINE, 800)
    assert console.file.getvalue().startswith("step 120/800  epoch")


def test_training_says_its_lines_on_standard_error(tmp_path, contexts, capsys):
    train(tmp_path / "said", contexts, epochs=2, progress=True, evaluated=True)
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert captured.out == ""
    assert [line.split()[1] for line in lines] == ["2/6", "3/6", "4/6", "6/6"]
    assert "val top-1" in lines[1]
    assert lines[-1].endswith("0 s left")
    train(tmp_path / "silent", contexts, epochs=1, progress=False)
    assert capsys.readouterr().err == ""


def test_a_process_has_the_memory_it_holds():
    before = resident_bytes()
    held = bytearray(b"x" * 200_000_000)
    assert resident_bytes() - before > 150_000_000
    assert len(held) == 200_000_000
