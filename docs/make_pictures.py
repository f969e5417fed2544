"""Draws the pictures of these pages: ``python docs/make_pictures.py``.

``python docs/make_pictures.py RUN`` takes ``report.png`` anew, the top of that run's report, with Chromium.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pytensor.tensor as pt
from PIL import Image

import theano_mgpu as tm


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


def picture_of_report(run: Path, folder: Path = Path(__file__).parent) -> None:
    """``report.png``: as far down as the charts go."""
    with tempfile.TemporaryDirectory() as place:
        page = tm.report.write_report(run, Path(place) / "report.html")
        options = ["--headless", "--no-sandbox", "--hide-scrollbars", "--window-size=1040,1150"]
        taken = page.with_suffix(".png")
        subprocess.run(["chromium", *options, f"--screenshot={taken}", page.as_uri()], check=True, timeout=60)
        # A page has few colours: a third of the size.
        Image.open(taken).convert("RGB").quantize(64).save(folder / "report.png", optimize=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        picture_of_report(Path(sys.argv[1]))
    else:
        main()
