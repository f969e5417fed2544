"""ResNet-20 on scikit-learn's digits over every device, with a warm-up, a cosine and batch norm's moving averages.

    python examples/digits_resnet.py

The images are 8 x 8 pixels, small enough that this network of twenty layers trains in about a minute on two cores. It
prints the learning rate, the loss and the accuracy of a training batch now and then, and the accuracy on digits that
were held out, which it asserts.
"""

from __future__ import annotations

import time

import numpy as np
import pytensor.tensor as pt
from sklearn.datasets import load_digits

import theano_mgpu as tm

batch_size = 64
peak_learning_rate = 0.1

# Images are (examples, height, width, channels). Floats are taken as normalised already.
digits = load_digits()
order = np.random.default_rng(0).permutation(len(digits.target))
pixels = ((digits.images - digits.images.mean()) / digits.images.std()).astype("float32")[order, :, :, None]
answers = digits.target.astype("int32")[order]
train, held_out = slice(0, 1397), slice(1397, 1797)

# The training graph. Building it creates the parameters, and registers what batch norm wants updated with the store.
store = tm.ParameterStore(seed=0)
images = pt.tensor("images", shape=(None, 8, 8, 1), dtype="float32")
labels = pt.vector("labels", dtype="int32")
learning_rate = pt.scalar("learning_rate", dtype="float32")
logits = tm.models.resnet(store, images, depth=20, num_classes=10, train=True)
loss = tm.nn.softmax_cross_entropy(logits, labels).mean()
accuracy = tm.nn.top_k_accuracy(logits, labels, k=1).mean()

params = store.trainable()
gradients = tm.updates.apply_weight_decay(tm.grad(loss, params), params, 5e-4)
updates = tm.updates.nesterov(gradients, params, learning_rate, momentum=0.9)
updates |= store.updates()

# The evaluation graph: the same parameters, and the moving averages in place of the batch's statistics.
evaluation_logits = tm.models.resnet(store, images, depth=20, num_classes=10, train=False)
evaluation_accuracy = tm.nn.top_k_accuracy(evaluation_logits, labels, k=1).mean()


def batches():
    """Batches without end: shuffled anew in every epoch, moved by up to one pixel in each direction."""
    rng = np.random.default_rng(0)
    while True:
        shuffled = rng.permutation(train.stop)
        for start in range(0, len(shuffled) - batch_size + 1, batch_size):
            rows = shuffled[start : start + batch_size]
            padded = np.pad(pixels[rows], ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
            down, right = rng.integers(0, 3, size=2)
            yield padded[:, down : down + 8, right : right + 8], answers[rows]


def main(steps: int = 420) -> float:
    contexts = tm.contexts("cuda or cpu:4")

    metrics = {"loss": tm.average(loss), "accuracy": tm.average(accuracy)}
    step = tm.function([images, labels, learning_rate], metrics, updates=updates, contexts=contexts)
    evaluate = tm.function([images, labels], tm.average(evaluation_accuracy), contexts=contexts)

    schedule = tm.schedules.warmup_cosine(peak_learning_rate, total_steps=steps, warmup_steps=steps // 10)
    started = time.perf_counter()
    for i, batch in zip(range(steps), batches(), strict=False):
        now = step(*batch, schedule(i))
        if (i + 1) % 42 == 0:
            print(
                f"step {i + 1:3}  learning rate {schedule(i):.4f}  loss {now['loss']:.4f}  "
                f"accuracy {now['accuracy']:.1%}  {time.perf_counter() - started:.0f} s"
            )

    held_out_accuracy = float(evaluate(pixels[held_out], answers[held_out]))
    print(f"accuracy on {held_out.stop - held_out.start} digits that were held out: {held_out_accuracy:.1%}")
    if steps >= 420:
        assert held_out_accuracy > 0.97, held_out_accuracy
    return held_out_accuracy


if __name__ == "__main__":
    main()
