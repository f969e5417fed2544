"""Draws the pictures of these pages: ``python docs/make_pictures.py``.

``python docs/make_pictures.py RUN`` takes the pictures of a run anew: of its report, and of its terminal.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytensor.tensor as pt
from PIL import Image, ImageChops
from rich.console import Console
from rich.terminal_theme import MONOKAI

import theano_mgpu as tm
from theano_mgpu.scaling import Machines, Work, bandwidth, curve, draw_scaling
from theano_mgpu.training.live_display import Screen
from theano_mgpu.training.time_parts import mean_split


def main(folder: Path = Path(__file__).parent) -> None:
    """``cut.svg``: ResNet-50's training step over four devices, with the update on the host."""
    contexts = tm.contexts("cpu:4")
    store = tm.ParameterStore(seed=0)
    images = pt.tensor("images", shape=(None, 224, 224, 3), dtype="uint8")
    labels, learning_rate = pt.vector("labels", dtype="int32"), pt.scalar("learning_rate", dtype="float32")
    logits = tm.models.resnet(store, images, depth=50, num_classes=1000, train=True)
    loss = tm.nn.softmax_cross_entropy(logits, labels).mean()
    params = store.trainable()
    updates = tm.updates.momentum(tm.grad(loss, params), params, learning_rate, momentum=0.9) | store.updates()
    inputs, outputs = [images, labels, learning_rate], {"loss": tm.average(loss)}
    step = tm.function(inputs, outputs, updates=updates, contexts=contexts, name="ResNet-50, one training step")
    step.draw(folder / "cut.svg")
    picture_of_scaling(folder)


def picture_of_scaling(folder: Path = Path(__file__).parent) -> None:
    """``scaling.svg``: ResNet-50 on 32 nodes of 8 GPUs, predicted from figures that docs/scaling.md names."""
    work = Work(compute=0.1, examples=256, gradients=102_228_128, arrays=7)
    machines = Machines(link=bandwidth("link", "400Gbit"), host_memory=300e9)
    curves = {update: curve(work, machines, 32, 8, update_on=update) for update in ("host", "device")}
    note = "predicted: 0.1 s for 256 images a device, 102 MB of gradients; 400 Gbit/s, 5 us between nodes"
    draw_scaling(folder / "scaling.svg", curves, "ResNet-50 on 32 nodes of 8 devices", note)


def pictures_of_run(run: Path, folder: Path = Path(__file__).parent) -> None:
    """Of a run's report and of what its terminal showed halfway, with Chromium."""
    with tempfile.TemporaryDirectory() as place:
        page = tm.report.write_report(run, Path(place) / "report.html").read_text()
        _photograph(page, folder / "photographs.png", height=1150)  # as far down as the charts go
        for name, height in (("classes", 1000), ("mistakes", 480)):
            others = f"header, nav, footer, section:not([aria-labelledby={name}]) {{ display: none }}"
            style = f"<style>{others} section {{ margin-top: 0 }}</style>"
            _photograph(page.replace("</head>", f"{style}</head>"), folder / f"{name}.png", height)
    _photograph(_terminal(run), folder / "terminal.png", height=125, width=800)


def _terminal(run: Path) -> str:
    """A page with the live display as the middle line of a run's metrics made it, 80 columns wide."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last, lines = lines[-1]["step"], [line for line in lines if line["step"] <= lines[-1]["step"] / 2]
    console = Console(record=True, width=80, file=io.StringIO(), force_terminal=True)
    left = (last - lines[-1]["step"]) * lines[-1]["step_seconds"]
    split = mean_split(lines[-5:])
    console.print(Screen(lines[-1]["step"], last, left, lines[-1], split=split))
    text = console.export_html(theme=MONOKAI, inline_styles=True)
    return text.replace("<body", "<style>html { background: #0c0c0c } body { margin: 16px }</style><body")


def _photograph(page: str, file: Path, height: int, width: int = 1040) -> None:
    with tempfile.TemporaryDirectory() as place:
        html, taken = Path(place) / "page.html", Path(place) / "page.png"
        html.write_text(page)
        options = ["--headless", "--no-sandbox", "--hide-scrollbars", f"--window-size={width},{height}"]
        command = ["chromium", *options, f"--screenshot={taken}", html.as_uri()]
        subprocess.run(command, check=True, timeout=120, capture_output=True)
        image = Image.open(taken).convert("RGB")
        ground = Image.new("RGB", image.size, image.getpixel((1, 1)))
        _, top, _, bottom = ImageChops.difference(image, ground).getbbox()
        image = image.crop((0, max(top - 24, 0), width, min(bottom + 24, height)))
        # Pages have few colours, and a third of the size with a palette.
        image.quantize(128).save(file, optimize=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        pictures_of_run(Path(sys.argv[1]))
    else:
        main()
