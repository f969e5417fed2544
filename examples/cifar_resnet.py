"""Train the CIFAR networks of the ResNet paper on CIFAR-10's own files, by ``tm.training.fit``.

    python examples/cifar_resnet.py cifar-10-batches-bin --depth 20

The folder is the unpacked archive of CIFAR-10's binary version. The recipe is section 4.2's of He et al., "Deep
residual learning for image recognition", CVPR 2016: 64,000 steps of 128, padded random crops and flips; ResNet-20 has
8.75 % test error there. Without a folder it takes scikit-learn's digits instead, to see that it works.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pytensor.tensor as pt

import theano_mgpu as tm

EPOCHS, FALLS_AT = 164, (82, 123)  # 64,000 steps of 128; 32,000 and 48,000


def main(
    folder: str | Path | None = None,
    output: str | Path = "runs/cifar_resnet",
    depth: int = 20,
    contexts: str | None = None,
    batch_size: int = 128,
    steps: int | None = None,
    resume: bool = False,
) -> float:
    """Train, or go on with the run in ``output``; returns the top-1 on the test images, 0 to 1."""
    data = tm.data.cifar10(folder) if folder else tm.data.digits()
    size = data.train.images.shape[1]
    padding = tm.data.Augmentation(padding=size // 8, flip=0.5 if folder else 0.0, resize=size)
    train = tm.data.pipeline(data.train, batch_size, train=True, image_size=size, augmentation=padding, workers=0)
    val = tm.data.pipeline(data.val, batch_size, train=False, image_size=size, augmentation=padding, workers=0)

    devices = tm.contexts(contexts)
    store = tm.ParameterStore(seed=0)
    images = pt.tensor("images", shape=(None, size, size, 3), dtype="uint8")
    labels, rate = pt.vector("labels", dtype="int32"), pt.scalar("rate", dtype="float32")
    logits = tm.models.resnet(store, images, depth=depth, num_classes=len(data.classes), train=True)
    loss = tm.nn.softmax_cross_entropy(logits, labels).mean()
    top1 = tm.nn.top_k_accuracy(logits, labels, 1).mean()

    params = store.trainable()
    gradients = tm.updates.apply_weight_decay(tm.grad(loss, params), params, 1e-4)
    updates = tm.updates.momentum(gradients, params, rate, momentum=0.9) | store.updates()
    metrics = {"loss": tm.average(loss), "top1": tm.average(top1)}
    step = tm.function([images, labels, rate], metrics, updates=updates, contexts=devices, shards=len(devices))
    answers = tm.models.resnet(store, images, depth=depth, num_classes=len(data.classes), train=False)
    predict = tm.function([images], answers, contexts=devices, shards=len(devices))

    fitted = tm.training.fit(
        step,
        train,
        store=store,
        run=output,
        resume=resume,
        learning_rate=tm.schedules.step_decay(0.1, [epoch * train.batches_per_epoch for epoch in FALLS_AT]),
        epochs=EPOCHS,
        max_steps=steps,
        evaluations={"val": lambda: tm.training.evaluate(predict, val)},
        best="val_top1",
        must_match={"classes": list(data.classes), "depth": depth},
    )
    print(f"test top-1 {fitted.metrics['val_top1']:.2%} after {fitted.progress.epoch:.2f} epochs; run: {output}")
    return fitted.metrics["val_top1"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", help="CIFAR-10's binary files; default: scikit-learn's digits")
    parser.add_argument("--output", default="runs/cifar_resnet", help="the run's folder")
    parser.add_argument("--depth", type=int, default=20, choices=(20, 32, 44, 56, 110))
    parser.add_argument("--contexts", help="such as cuda:0,1 or cpu:4; default: every GPU, else the CPU")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--steps", type=int, help="end earlier: for a look whether all works")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --output")
    main(**vars(parser.parse_args()))
