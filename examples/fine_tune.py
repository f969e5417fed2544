"""Fine-tuning: a network from PyTorch's file, a new head, frozen layers, and back into PyTorch's files.

    python examples/fine_tune.py

1. A file in torchvision's layout. Here the example makes it: a ResNet-20 that has learnt the digits 0 to 4. What
   ``torch.save(torchvision.models.resnet18(weights=...).state_dict(), path)`` writes is read in the same way.
2. A network for ten digits takes all of it but the head, which has another size: ``skip=("fc.*",)``.
3. Only the last stage and the head are trained: what is handed to ``tm.grad`` and to the update rule is what changes,
   and the backward pass ends there. All batch norm is in evaluation mode (``train=False``): the moving averages that
   came with the file are parameters like others, and what is frozen computes what it always did.
4. The result is written for PyTorch, as ``.safetensors`` and as ``.pth``.

It prints what was loaded and the accuracy on digits that were held out, and asserts that what is frozen has kept its
bits, and that both files hold what was trained.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytensor.tensor as pt
from sklearn.datasets import load_digits

import theano_mgpu as tm

BATCH_SIZE = 64
TRAINED = ("layer3.", "fc.")  # the last stage and the head

digits = load_digits()
pixels = ((digits.images - digits.images.mean()) / digits.images.std()).astype("float32")[:, :, :, None]
answers = digits.target.astype("int32")
learn, held_out = np.split(np.random.default_rng(0).permutation(len(answers)), [1397])

# Images are (examples, height, width, channels).
images = pt.tensor("images", shape=(None, 8, 8, 1), dtype="float32")
labels = pt.vector("labels", dtype="int32")


def batches(examples, steps):
    """Some batches, drawn at random."""
    rng = np.random.default_rng(0)
    for _ in range(steps):
        rows = rng.choice(examples, BATCH_SIZE, replace=False)
        yield pixels[rows], answers[rows]


def pretrain(path, steps, contexts):
    """A file as torchvision's users have one: a network that knows five classes."""
    store = tm.ParameterStore(seed=0)
    logits = tm.models.resnet(store, images, depth=20, num_classes=5, train=True)
    loss = tm.nn.softmax_cross_entropy(logits, labels).mean()
    params = store.trainable()
    updates = tm.updates.adam(tm.grad(loss, params), params, learning_rate=1e-3) | store.updates()
    step = tm.function([images, labels], tm.average(loss), updates=updates, contexts=contexts)
    for batch in batches(learn[answers[learn] < 5], steps):
        now = step(*batch)
    print(f"{path.name}: five digits, loss {now:.3f} after {steps} steps")
    store.save(path, layout="torch")


def main(steps: int = 60, folder: str | Path = "runs/fine_tune") -> float:
    contexts = tm.contexts("cuda or cpu:4")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)

    # 1. The file.
    pretrain(folder / "five.pth", steps, contexts)

    # 2. All of it but the head.
    store = tm.ParameterStore(seed=1)
    logits = tm.models.resnet(store, images, depth=20, num_classes=10, train=False)
    print(store.load(folder / "five.pth", layout="torch", skip=("fc.*",)))

    # 3. The last stage and the head.
    loss = tm.nn.softmax_cross_entropy(logits, labels).mean()
    accuracy = tm.average(tm.nn.top_k_accuracy(logits, labels, k=1).mean())
    params = [param for param in store.trainable() if param.name.startswith(TRAINED)]
    updates = tm.updates.adam(tm.grad(loss, params), params, learning_rate=1e-3)
    step = tm.function([images, labels], tm.average(loss), updates=updates, contexts=contexts)
    evaluate = tm.function([images, labels], accuracy, contexts=contexts)

    loaded = store.get_values()
    before = float(evaluate(pixels[held_out], answers[held_out]))
    for batch in batches(learn, steps):
        step(*batch)
    after = float(evaluate(pixels[held_out], answers[held_out]))

    trained = {param.name for param in params}
    for name, value in store.get_values().items():
        assert np.array_equal(value, loaded[name]) == (name not in trained), name
    print(f"{len(trained)} parameters trained, {len(store) - len(trained)} frozen, which are as they came, bit for bit")
    print(f"accuracy on {len(held_out)} digits that were held out: {before:.1%} -> {after:.1%}")

    # 4. For PyTorch; and what is in the files.
    for path in (folder / "ten.safetensors", folder / "ten.pth"):
        store.save(path, layout="torch")
        again = tm.ParameterStore()
        tm.models.resnet(again, images, depth=20, num_classes=10, train=False)
        again.load(path, layout="torch")
        assert again.checksum() == store.checksum()
        print(f"{path.name}: {path.stat().st_size / 1e6:.1f} MB")

    if steps >= 60:
        assert after > 0.9, after
    return after


if __name__ == "__main__":
    main()
