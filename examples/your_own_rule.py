"""Your own op and your own update rule: a hard swish and Lion, training a small network on handwritten digits.

    python examples/your_own_rule.py

An ``Op`` needs four things: ``make_node`` (what comes out), ``perform`` (numpy, for plain PyTensor), ``pullback`` (the
gradient), and a lowering (how it runs on a device). A rule is a function from gradients to a dict of new values.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytensor
import pytensor.tensor as pt
from pytensor.compile.mode import Mode
from pytensor.graph.basic import Apply
from pytensor.graph.op import Op
from sklearn.datasets import load_digits

import theano_mgpu as tm


class HardSwish(Op):
    """x * min(max(x + 3, 0), 6) / 6, element by element (Howard et al., "Searching for MobileNetV3", ICCV 2019)."""

    __props__ = ()

    def make_node(self, x):
        x = pt.as_tensor_variable(x)
        if not x.dtype.startswith("float"):
            raise TypeError(f"HardSwish: expected a floating array, got {x.type}; cast it with .astype('float32').")
        return Apply(self, [x], [x.type()])

    def perform(self, node, inputs, output_storage):
        (x,) = inputs
        output_storage[0][0] = np.asarray(x * np.clip(x + 3, 0, 6) / 6, dtype=x.dtype)

    def pullback(self, inputs, outputs, cotangents):
        (x,), (g,) = inputs, cotangents
        slope = pt.switch(pt.lt(x, -3), 0, pt.switch(pt.gt(x, 3), 1, (2 * x + 3) / 6))
        return [g * slope.astype(x.dtype)]


@tm.lowering.lowers(HardSwish)
def hard_swish_on_devices(op, node, **_):
    return lambda x: x * jnp.clip(x + 3, 0, 6) / 6


hard_swish = HardSwish()

#: PyTensor's interpreter, which calls ``perform``.
PLAIN = Mode(linker="py", optimizer="fast_compile")


def lion(grads, params, learning_rate, beta1=0.9, beta2=0.99, weight_decay=0.0):
    """Lion: the sign of an interpolated momentum (Chen et al., "Symbolic discovery of optimization algorithms", 2023).

    param    := param - learning_rate * (sign(beta1 * momentum + (1 - beta1) * gradient) + weight_decay * param)
    momentum := beta2 * momentum + (1 - beta2) * gradient
    """
    updates = {}
    for param, gradient in zip(params, grads, strict=True):
        rate, b1, b2, decay = (pt.cast(value, param.dtype) for value in (learning_rate, beta1, beta2, weight_decay))
        momentum = pytensor.shared(np.zeros_like(param.get_value()), name=f"{param.name}.momentum")
        direction = pt.sign(b1 * momentum + (1 - b1) * gradient)
        updates[param] = param - rate * (direction + decay * param)
        updates[momentum] = b2 * momentum + (1 - b2) * gradient
    return updates


def network(seed=0):
    """The symbolic inputs, loss, accuracy and updates, on fresh parameters."""
    rng = np.random.default_rng(seed)
    params = [
        pytensor.shared((rng.normal(size=(64, 48)) / 8).astype("float32"), name="hidden.weight"),
        pytensor.shared(np.zeros(48, dtype="float32"), name="hidden.bias"),
        pytensor.shared((rng.normal(size=(48, 10)) / 7).astype("float32"), name="output.weight"),
        pytensor.shared(np.zeros(10, dtype="float32"), name="output.bias"),
    ]
    images, labels = pt.matrix("images", dtype="float32"), pt.vector("labels", dtype="int32")
    learning_rate = pt.scalar("learning_rate", dtype="float32")
    w1, b1, w2, b2 = params
    logits = hard_swish(images @ w1 + b1) @ w2 + b2
    loss = tm.nn.softmax_cross_entropy(logits, labels).mean()
    accuracy = pt.eq(logits.argmax(axis=1), labels).mean(dtype="float32")
    updates = lion(tm.grad(loss, params), params, learning_rate, weight_decay=0.01)
    return [images, labels, learning_rate], tm.average(loss), tm.average(accuracy), updates


def main(steps: int = 150, contexts: str = "cpu:4") -> float:
    # The gradient against finite differences, on every piece of the function.
    points = np.array([-4.0, -1.0, 0.5, 4.0])
    pytensor.gradient.verify_grad(hard_swish, [points], rng=np.random.default_rng(0), mode=PLAIN)

    digits = load_digits()
    images, labels = (digits.data / 16).astype("float32"), digits.target.astype("int32")
    order = np.random.default_rng(0).permutation(len(labels))
    train, held_out = order[:1500], order[1500:]

    inputs, loss, accuracy, updates = network()
    devices = tm.contexts(contexts)
    step = tm.function(inputs, loss, updates=updates, contexts=devices)
    evaluate = tm.function(inputs[:2], accuracy, contexts=devices)

    # The same graph in plain PyTensor, on one device: the op's perform instead of its lowering.
    plain_inputs, plain_loss, _, plain_updates = network()
    plain_step = pytensor.function(plain_inputs, plain_loss, updates=plain_updates, mode=PLAIN)

    schedule = tm.schedules.warmup_cosine(6e-3, max(steps, 6), warmup_steps=5)
    losses = []
    for i in range(steps):
        batch = train[np.arange(i * 100, (i + 1) * 100) % len(train)]
        arguments = images[batch], labels[batch], np.float32(schedule(i))
        losses.append(float(step(*arguments)))
        if i < 3:
            np.testing.assert_allclose(losses[i], plain_step(*arguments), rtol=1e-4)
    held_out_accuracy = float(evaluate(images[held_out], labels[held_out]))
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f} after {steps} steps, held-out accuracy {held_out_accuracy:.1%}")
    if steps >= 150:
        assert held_out_accuracy > 0.93, held_out_accuracy
    return held_out_accuracy


if __name__ == "__main__":
    main()
