"""A live line in a terminal, and nothing where there is none."""

from __future__ import annotations

from theano_mgpu.training.progress_line import ProgressLine

LINE = {"step": 2, "loss": 0.123456, "top1": None, "val_top1": 0.5, "wait": 0.1}


def shown(capsys, **options):
    with ProgressLine(10, **options) as live:
        live.update(1)
        live.update(2, LINE)
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


def test_a_terminal_shows_the_newest_metrics(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    line = shown(capsys)
    assert "2/10" in line
    assert "loss 0.123" in line
    assert "val_top1 0.5" in line
    assert "top1 None" not in line
    assert shown(capsys, shown=False) == ""


def test_no_terminal_shows_nothing(capsys, monkeypatch):
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    assert shown(capsys) == ""
