"""A cursor is one integer, and every example counts once."""

from __future__ import annotations

import itertools

import numpy as np
import pytensor.tensor as pt
import pytest

import theano_mgpu as tm
from theano_mgpu.data import Examples
from theano_mgpu.training import Batches, evaluate


def numbered(count):
    return Examples(np.arange(count)[:, None], np.arange(count, dtype="int32"))


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("seed", [None, 0, 7])
def test_batches_are_those_of_the_examples_from_any_cursor(seed, drop_last):
    examples = numbered(10)
    batches = Batches(examples, 4, seed=seed, drop_last=drop_last)
    expected = [
        (labels, epoch + 1.0 if number == (1 if drop_last else 2) else None)
        for epoch in range(3)
        for number, (_, labels) in enumerate(examples.batches(4, seed=seed, epoch=epoch))
        if len(labels) == 4 or not drop_last
    ]
    read = list(itertools.islice(batches.batches_from(0), len(expected)))
    for batch, (labels, epoch) in zip(read, expected, strict=True):
        np.testing.assert_array_equal(batch.arrays[1], labels)
        np.testing.assert_array_equal(batch.arrays[0][:, 0], labels)
        assert batch.epoch.is_integer() == (epoch is not None)
        assert epoch is None or batch.epoch == epoch
    for number, batch in enumerate(read[:-1]):
        following = next(batches.batches_from(batch.cursor))
        np.testing.assert_array_equal(following.arrays[1], read[number + 1].arrays[1])
        assert following.cursor == read[number + 1].cursor


def test_batches_check_their_arguments():
    with pytest.raises(ValueError, match="'batch_size' should be an integer of at least 1, not 0"):
        Batches(numbered(3), 0)
    with pytest.raises(ValueError, match="empty"):
        Batches(numbered(0), 1)
    with pytest.raises(ValueError, match="3 examples do not fill a batch of 4"):
        Batches(numbered(3), 4, drop_last=True)
    with pytest.raises(ValueError, match="'cursor' is -1"):
        next(Batches(numbered(3), 2).batches_from(-1))


@pytest.mark.parametrize("batch_size", [1, 3, 8, 100])
def test_every_example_counts_once_whatever_batch_and_devices(contexts, batch_size):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(21, 9)).astype("float32")
    labels = rng.integers(0, 9, 21).astype("int32")
    x = pt.matrix("x", dtype="float32")
    predict = tm.function([x], x * 2, contexts=contexts)
    found = evaluate(predict, Examples(logits, labels), batch_size)
    doubled = 2 * logits.astype("float64")
    of_label = doubled[np.arange(21), labels]
    places = (doubled > of_label[:, None]).sum(axis=1)
    assert found["top1"] == np.mean(places < 1)
    assert found["top5"] == np.mean(places < 5)
    assert found["examples"] == 21
    np.testing.assert_allclose(found["loss"], np.mean(np.log(np.exp(doubled).sum(1)) - of_label), rtol=1e-12)


def test_equal_logits_and_nan_are_no_luck():
    flat, broken = np.zeros((4, 6)), np.full((4, 6), np.nan)
    labels = np.array([0, 1, 5, 3])
    found = evaluate(lambda images: images, Examples(flat, labels), 4)
    assert (found["top1"], found["top5"]) == (0.25, 0.75)
    found = evaluate(lambda images: {"logits": images}, Examples(broken, labels), 4)
    assert (found["top1"], found["top5"]) == (0.0, 0.0)
    assert np.isnan(found["loss"])


def test_what_gives_no_logits_is_refused():
    examples = numbered(4)
    with pytest.raises(ValueError, match=r"logits of shape \(4, classes\), not \(4,\)"):
        evaluate(lambda images: np.zeros(4), examples, 4)
    with pytest.raises(ValueError, match="labels go from 0 to 3, but there are logits of 2 classes"):
        evaluate(lambda images: np.zeros((4, 2)), examples, 4)
    with pytest.raises(ValueError, match="empty"):
        evaluate(lambda images: images, numbered(0), 4)
