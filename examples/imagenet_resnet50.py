"""Train ResNet-50 on a folder in ImageNet's layout as Goyal et al. did, by a loop to read and change.

    python examples/imagenet_resnet50.py /data/imagenet --contexts cuda --batch-size 256
    python examples/imagenet_resnet50.py --resume               # goes on where it was stopped
    python examples/imagenet_resnet50.py --steps 3              # the bundled photographs: only whether all works

The recipe: "Accurate, large minibatch SGD: training ImageNet in 1 hour", arXiv 1706.02677, section 5.1. The command
`theano-mgpu train imagenet-resnet50 --data /data/imagenet` does the same, and writes a report.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytensor.tensor as pt

import theano_mgpu as tm

EPOCHS, WARMUP_EPOCHS, FALLS_AT = 90, 5, (30, 60, 80)


@dataclass(frozen=True)
class Model:
    """The parameters, the training step, and logits of the same parameters for evaluation."""

    store: tm.ParameterStore
    step: tm.Step
    predict: tm.Step


def resnet50(num_classes: int, image_size: int, contexts: tm.Contexts, shards: int) -> Model:
    """The graph as for one device; ``tm.grad`` and ``tm.average`` mark what is averaged over all of them."""
    store = tm.ParameterStore(seed=0)
    images = pt.tensor("images", shape=(None, image_size, image_size, 3), dtype="uint8")
    labels, rate = pt.vector("labels", dtype="int32"), pt.scalar("rate", dtype="float32")

    logits = tm.models.resnet(store, images, depth=50, num_classes=num_classes, train=True, zero_init_residual=True)
    loss = tm.nn.softmax_cross_entropy(logits, labels).mean()
    top1 = tm.nn.top_k_accuracy(logits, labels, 1).mean()

    params = store.trainable()
    gradients = tm.updates.apply_weight_decay(tm.grad(loss, params), params, 1e-4)  # not on norms and biases
    updates = tm.updates.nesterov(gradients, params, rate, momentum=0.9) | store.updates()
    metrics = {"loss": tm.average(loss), "top1": tm.average(top1)}
    step = tm.function([images, labels, rate], metrics, updates=updates, contexts=contexts, shards=shards)

    answers = tm.models.resnet(store, images, depth=50, num_classes=num_classes, train=False)
    return Model(store, step, tm.function([images], answers, contexts=contexts, shards=shards))


def learning_rate(batch_size: int, steps_per_epoch: int) -> Callable[[int], float]:
    """0.1 for a batch of 256 and in proportion for others, reached in five epochs; a tenth of it three times."""
    return tm.schedules.step_decay(
        0.1 * batch_size / 256,
        [epoch * steps_per_epoch for epoch in FALLS_AT],
        factor=0.1,
        warmup_steps=WARMUP_EPOCHS * steps_per_epoch,
    )


def main(
    folder: str | Path | None = None,
    output: str | Path = "runs/imagenet_resnet50",
    contexts: str | None = None,
    batch_size: int = 256,
    shards: int | None = None,
    image_size: int = 224,
    workers: int | None = None,
    steps: int | None = None,
    resume: bool = False,
) -> float:
    """Train, or go on with the run in ``output``; returns the top-1 on the validation images, 0 to 1."""
    devices = tm.contexts(contexts)
    data = tm.data.image_folder(folder or tm.data.photographs(Path(output).parent / "photographs"))
    train = tm.data.pipeline(data.train, batch_size, train=True, image_size=image_size, workers=workers)
    val = tm.data.pipeline(data.val, batch_size, train=False, image_size=image_size, workers=workers)
    model = resnet50(len(data.classes), image_size, devices, shards or len(devices))
    schedule = learning_rate(batch_size, train.batches_per_epoch)
    last = min(steps or EPOCHS * train.batches_per_epoch, EPOCHS * train.batches_per_epoch)

    state = tm.training.TrainingState(model.step, model.store, must_match={"classes": list(data.classes)})
    means, watch, evaluated = tm.training.Means(), tm.training.Stopwatch(), {"top1": 0.0}
    with (
        train,
        val,
        tm.training.RunFolder(output) as run,  # one run at a time
        tm.training.Checkpoints(run.checkpoints) as checkpoints,  # written behind the steps
        tm.training.StopSignals() as signals,  # Ctrl-C lets the step end
    ):
        tm.training.begin(state, run, checkpoints, resume=resume)
        for number, batch in enumerate(train.batches_from(state.progress.cursor), start=state.progress.step + 1):
            if number > last:
                break
            outputs = watch.timed("step", model.step, *batch.arrays, schedule(number - 1))
            watch.count(len(batch), model.step.seconds)
            means.add(outputs, len(batch))
            state.advance(step=number, cursor=batch.cursor, epoch=batch.epoch)

            ends_epoch, ends = batch.epoch == int(batch.epoch), number == last or bool(signals.received)
            if ends_epoch or number == last:
                evaluated = tm.training.evaluate(model.predict, val)
                print(f"epoch {batch.epoch:.2f}  validation top-1 {evaluated['top1']:.1%}", flush=True)
            if ends_epoch or ends or number % 50 == 0:
                line = {"step": number, "epoch": batch.epoch, **means.taken(), **watch.taken()}
                run.metrics.append(line)
                print(f"step {number}/{last}  loss {line['loss']:.3f}  {line['images_per_s']:.1f} images/s", flush=True)
            if ends_epoch or ends:
                state.advance(metrics_position=run.metrics.position)
                checkpoints.save(number, state)
            if signals.received:
                raise tm.training.interrupted(signals, state, run)
    return evaluated["top1"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", help="train/CLASS/* and val/CLASS/*; default: the bundled photographs")
    parser.add_argument("--output", default="runs/imagenet_resnet50", help="the run's folder")
    parser.add_argument("--contexts", help="such as cuda:0,1 or cpu:4; default: every GPU, else the CPU")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--shards", type=int, help="pieces that a batch is cut into; default: one a device")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--workers", type=int, help="processes that decode images")
    parser.add_argument("--steps", type=int, help="end earlier: for a look whether all works")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --output")
    main(**vars(parser.parse_args()))
