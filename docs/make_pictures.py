"""Draws the pictures of these pages: ``python docs/make_pictures.py``."""

from __future__ import annotations

from pathlib import Path

import pytensor.tensor as pt

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


if __name__ == "__main__":
    main()
