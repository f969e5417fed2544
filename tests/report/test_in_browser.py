"""A report in a real browser: no complaint, every point of the curves, and no scrolling sideways on a phone."""

from __future__ import annotations

import itertools
import json

import pytest
from browser import CHROMIUM, Browser

import theano_mgpu as tm

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")

CURVES = """
[...document.querySelectorAll("figure.chart polyline[data-name]")].map(line => ({
  chart: line.closest("svg").id, name: line.dataset.name, values: line.dataset.values.split("|"),
  points: [...line.points].map(p => [p.x, p.y]), width: line.getBoundingClientRect().width,
  colour: getComputedStyle(line).stroke}))
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def report(trained, tmp_path_factory):
    return tm.report.write_report(trained, tmp_path_factory.mktemp("report") / "report.html")


@pytest.fixture(autouse=True)
def _no_complaint(browser):
    browser.problems.clear()
    yield
    assert browser.problems == []


def test_a_complaint_is_heard(browser, tmp_path):
    """Of an exception, of the console, and of what the page's own policy forbids."""
    page = tmp_path / "page.html"
    page.write_text(
        "<meta http-equiv='Content-Security-Policy' content=\"img-src 'none'\"><img src='data:image/gif;base64,R0lG'>"
        "<script>console.error('said'); throw new Error('thrown')</script>"
    )
    browser.open(page)
    found = "\n".join(browser.problems)
    assert "said" in found
    assert "thrown" in found
    assert "Content Security Policy" in found
    browser.problems.clear()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_curves_points_are_there(browser, report, trained, dark):
    browser.open(report, dark=dark)
    curves = {(curve["chart"], curve["name"]): curve for curve in browser.value(CURVES)}
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "final" not in line]
    expected = {
        ("loss", "train"): "loss",
        ("loss", "val"): "val_loss",
        ("top-1", "train"): "top1",
        ("top-1", "val"): "val_top1",
        ("learning-rate", "learning rate"): "learning_rate",
        ("images-s", "images per s"): "images_per_s",
    }
    assert set(expected) < set(curves)
    for place, key in expected.items():
        curve, measured = curves[place], [(line["step"], line[key]) for line in lines if key in line]
        assert len(curve["points"]) == len(curve["values"]) == len(measured)
        xs, ys = zip(*curve["points"], strict=True)
        assert all(after > before for before, after in itertools.pairwise(xs))
        per_step = (xs[-1] - xs[0]) / (measured[-1][0] - measured[0][0])
        for (step, value), x, said in zip(measured, xs, curve["values"], strict=True):
            assert x == pytest.approx(xs[0] + per_step * (step - measured[0][0]), abs=0.15)
            assert float(said.removesuffix(" %").replace(",", "")) == pytest.approx(
                100 * value if said.endswith("%") else value, rel=6e-3, abs=0.06 if said.endswith("%") else 0
            )
        # The highest value is drawn the highest.
        assert ys[max(range(len(measured)), key=lambda place: measured[place][1])] == min(ys)
        assert curve["width"] > 100
    colours = {curves["loss", name]["colour"] for name in ("train", "val")}
    assert len(colours) == 2
    background = browser.value("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background[4:-1].split(","))) < 200) is dark


def test_every_picture_is_shown(browser, report):
    browser.open(report)
    shown = browser.value("[...document.images].map(image => [image.complete, image.naturalWidth])")
    assert len(shown) >= 3
    assert all(complete and width > 0 for complete, width in shown)


def test_the_pointer_and_the_keys_read_the_curves(browser, report):
    browser.open(report)
    readout = "document.querySelector('figure.chart .readout').textContent"
    before = browser.value(readout)
    box = browser.value("(b => [b.x, b.y, b.width, b.height])(document.querySelector('#loss').getBoundingClientRect())")
    x, y, width, height = box
    browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=x + width / 2, y=y + height / 2)
    during = browser.value(readout)
    assert during.startswith("step ")
    assert "train" in during
    browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=1, y=1)
    assert browser.value(readout) == before
    browser.value("document.querySelector('#loss').focus()")
    browser.call("Input.dispatchKeyEvent", type="keyDown", key="ArrowLeft")
    assert browser.value(readout) != before


@pytest.mark.parametrize("width", [320, 375, 1200])
def test_nothing_scrolls_sideways(browser, report, width):
    browser.open(report, width=width, phone=width < 500)
    assert browser.value("document.documentElement.scrollWidth") <= width
    wide = browser.value(
        "[...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll, pre, svg') && "
        "e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"
    )
    assert wide == []


def test_it_prints(browser, report):
    browser.open(report, dark=True)
    assert browser.pdf().startswith(b"%PDF")
    browser.call("Emulation.setEmulatedMedia", media="print")
    paper = browser.value("getComputedStyle(document.documentElement).getPropertyValue('--ink')")
    assert paper == "#1f2328"  # dark ink, also where the screen is dark


def test_a_run_with_nothing_in_it_is_no_complaint(browser, tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    browser.open(tm.report.write_report(tmp_path))
    assert browser.value("document.querySelectorAll('.missing').length") == 8
