"""The multilayer perceptron of Theano's deep learning tutorial, on scikit-learn's digits, over every device.

    python examples/digits_mlp.py

One hidden layer of tanh units, softmax on top, L1 and L2 penalties, plain gradient descent, and the parameters that did
best on the validation set are those that are tested. It prints the cost and the validation error now and then, and the
test accuracy, which it asserts.

Three things differ from the tutorial: gradients are ``tm.grad``'s, functions are ``tm.function``'s, and batches come as
arguments where the tutorial has an index and ``givens=`` into a shared data set, so that they can be split.
"""

from __future__ import annotations

import numpy as np
import pytensor.tensor as pt
from sklearn.datasets import load_digits

import theano_mgpu as tm

hidden_units = 128
batch_size = 20
learning_rate = np.float32(0.1)  # float32, as the parameters are: a Python float would make their new values float64
l1_weight = np.float32(0.0001)
l2_weight = np.float32(0.0001)

# 8 x 8 pixels from 0 to 16, and what they show: 1000 to train, 297 to validate, 500 to test.
digits = load_digits()
order = np.random.default_rng(0).permutation(len(digits.target))
images = (digits.data / 16).astype("float32")[order]
labels = digits.target.astype("int32")[order]
train, validation, test = slice(0, 1000), slice(1000, 1297), slice(1297, 1797)

# The model. The store makes shared variables and gives them names.
store = tm.ParameterStore(seed=0)
x = pt.matrix("x", dtype="float32")
y = pt.vector("y", dtype="int32")

w_hidden = store.param("hidden.W", (64, hidden_units), tm.init.glorot_uniform())
b_hidden = store.param("hidden.b", (hidden_units,), tm.init.zeros())
w_output = store.param("output.W", (hidden_units, 10), tm.init.zeros())
b_output = store.param("output.b", (10,), tm.init.zeros())

hidden = pt.tanh(pt.dot(x, w_hidden) + b_hidden)
p_y_given_x = pt.special.softmax(pt.dot(hidden, w_output) + b_output, axis=1)
y_pred = p_y_given_x.argmax(axis=1)

negative_log_likelihood = -pt.log(p_y_given_x)[pt.arange(y.shape[0]), y].mean()
errors = pt.neq(y_pred, y).mean()
l1 = abs(w_hidden).sum() + abs(w_output).sum()
l2_squared = (w_hidden**2).sum() + (w_output**2).sum()
cost = negative_log_likelihood + l1_weight * l1 + l2_weight * l2_squared

params = store.trainable()
gradients = tm.grad(cost, params)  # of the whole batch: averaged over its shards
updates = [(param, param - learning_rate * grad) for param, grad in zip(params, gradients, strict=True)]


def main(steps: int = 4000) -> float:
    contexts = tm.contexts("cuda or cpu:4")

    train_model = tm.function([x, y], tm.average(cost), updates=updates, contexts=contexts)
    error_rate = tm.function([x, y], tm.average(errors), contexts=contexts)

    batches_per_epoch = 1000 // batch_size
    best_error, best_values = 1.0, store.get_values()
    for step in range(steps):
        start = step % batches_per_epoch * batch_size
        batch = slice(start, start + batch_size)
        cost_now = train_model(images[train][batch], labels[train][batch])

        if (step + 1) % batches_per_epoch == 0 or step + 1 == steps:
            validation_error = float(error_rate(images[validation], labels[validation]))
            if validation_error < best_error:
                best_error, best_values = validation_error, store.get_values()
        if (step + 1) % (10 * batches_per_epoch) == 0:
            epoch = (step + 1) // batches_per_epoch
            print(f"epoch {epoch}  cost {cost_now:.4f}  validation error {validation_error:.2%}")

    store.set_values(best_values)
    accuracy = 1 - float(error_rate(images[test], labels[test]))
    print(f"best validation error {best_error:.2%}, with test accuracy {accuracy:.2%}")
    if steps >= 4000:
        assert accuracy > 0.96, accuracy
    return accuracy


if __name__ == "__main__":
    main()
