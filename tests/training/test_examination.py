"""An evaluation class by class: scikit-learn counts the same."""

from __future__ import annotations

import numpy as np
import pytensor.tensor as pt
import pytest
from sklearn.metrics import confusion_matrix, log_loss, top_k_accuracy_score

import theano_mgpu as tm
from theano_mgpu.data import Examples
from theano_mgpu.training import Examination, evaluate, examine

COUNT, CLASSES = 97, 9
NAMES = tuple(f"class {number}" for number in range(CLASSES))


def guessed(seed=0):
    """Images whose first pixels are their logits, labels, and the logits."""
    rng = np.random.default_rng(seed)
    # Different ones: where logits are equal, scikit-learn takes the last.
    images = np.stack([rng.permutation(256)[:30] for _ in range(COUNT)]).reshape(COUNT, 2, 5, 3).astype("uint8")
    logits = images.reshape(COUNT, -1)[:, :CLASSES]
    labels = rng.choice(CLASSES - 1, COUNT).astype("int32")  # none is of the last class
    labels = np.where(rng.random(COUNT) < 0.4, logits[:, :-1].argmax(1), labels).astype("int32")
    return Examples(images, labels), logits / 40


@pytest.fixture
def predict(contexts):
    images = pt.tensor("images", shape=(None, 2, 5, 3), dtype="uint8")
    logits = images.reshape((images.shape[0], 30))[:, :CLASSES].astype("float32") / np.float32(40)
    return tm.function([images], logits, contexts=contexts)


def softmax(logits):
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("batch_size", [1, 10, 200])
def test_it_counts_what_scikit_learn_counts(predict, batch_size):
    examples, logits = guessed()
    labels, every = examples.labels, np.arange(CLASSES)
    found = examine(predict, examples, NAMES, batch_size)
    assert found.confusion.dtype == found.top5.dtype == np.int64
    np.testing.assert_array_equal(found.confusion, confusion_matrix(labels, logits.argmax(1), labels=every))
    assert found.examples == COUNT
    assert found.top1 == top_k_accuracy_score(labels, logits, k=1, labels=every)
    assert found.top5_rate == top_k_accuracy_score(labels, logits, k=5, labels=every)
    assert found.loss == pytest.approx(log_loss(labels, softmax(logits), labels=every), rel=1e-6)
    for number, name in enumerate(NAMES[:-1]):
        own = labels == number
        rates = found.per_class[name]
        assert rates["examples"] == own.sum()
        assert rates["top1"] == np.mean(logits[own].argmax(1) == number)
        assert rates["top5"] == pytest.approx(top_k_accuracy_score(labels[own], logits[own], k=5, labels=every))
    assert found.per_class[NAMES[-1]] == {"examples": 0, "top1": None, "top5": None}
    assert evaluate(predict, examples, batch_size) == {
        "loss": pytest.approx(found.loss, rel=1e-12),
        "top1": found.top1,
        "top5": found.top5_rate,
        "examples": COUNT,
    }


@pytest.mark.parametrize("batch_size", [7, 97])
def test_the_surest_mistakes_are_kept(batch_size):
    examples, logits = guessed(1)
    answers, sure = logits.argmax(1), softmax(logits).max(1)
    wrong = np.flatnonzero(answers != examples.labels)
    expected = wrong[np.argsort(-sure[wrong], kind="stable")][:12]
    step = {row.tobytes(): logit for row, logit in zip(examples.images, logits, strict=True)}
    found = examine(
        lambda images: np.stack([step[i.tobytes()] for i in images]), examples, NAMES, batch_size, mistakes=12
    )
    np.testing.assert_array_equal(found.mistake_images, examples.images[expected])
    np.testing.assert_array_equal(found.mistake_labels, examples.labels[expected])
    np.testing.assert_array_equal(found.mistake_answers, answers[expected])
    np.testing.assert_allclose(found.mistake_confidences, sure[expected], rtol=1e-6)
    kinds = [found.mistake_labels.dtype, found.mistake_answers.dtype, found.mistake_confidences.dtype]
    assert kinds == ["int32", "int32", "float32"]


def test_equally_sure_mistakes_come_in_the_order_of_the_examples():
    examples = Examples(np.arange(6 * 12, dtype="uint8").reshape(6, 2, 2, 3), np.ones(6, "int32"))
    found = examine(lambda images: np.tile([1.0, 0.0], (len(images), 1)), examples, "ab", 4, mistakes=5)
    np.testing.assert_array_equal(found.mistake_images, examples.images[:5])


def test_without_a_mistake_there_is_none_to_keep():
    examples = Examples(np.zeros((3, 2, 2, 3), "uint8"), np.zeros(3, "int32"))
    found = examine(lambda images: np.tile([1.0, 0.0], (len(images), 1)), examples, ("a", "b"), 2)
    assert (found.top1, len(found.mistake_images), found.mistake_images.dtype) == (1.0, 0, np.uint8)


def test_logits_that_are_not_finite_are_wrong_and_least_sure():
    logits = np.array([[np.nan, 0, 0], [np.inf, 1, 2], [5, 0, 0], [np.nan] * 3, [0, 0, -np.inf]])
    examples = Examples(np.zeros((5, 1, 1, 3), "uint8"), np.array([0, 0, 1, 0, 0], "int32"))
    batches = iter([logits[:2], logits[2:4], logits[4:]])
    found = examine(lambda images: next(batches), examples, "abc", 2)
    batches = iter([logits[:2], logits[2:4], logits[4:]])
    assert (found.top1, found.top5_rate) == (0.0, 0.2)
    assert evaluate(lambda images: next(batches), examples, 2)["top1"] == 0.0
    np.testing.assert_array_equal(found.mistake_answers, [0, 1, 2, 1, 1])
    assert found.mistake_confidences[0] > 0.9
    assert np.isnan(found.mistake_confidences[1:]).all()


def test_a_validation_pipeline_is_seen_once_and_knows_its_batches():
    rng = np.random.default_rng(0)
    examples = Examples(rng.integers(0, 256, (23, 8, 8, 3)).astype("uint8"), rng.integers(0, 3, 23).astype("int32"))
    seen = []

    def predict(images):
        seen.append(len(images))
        return images.reshape(len(images), -1)[:, :3] / 50

    settings = tm.data.Augmentation(resize=8)
    with tm.data.pipeline(examples, 10, train=False, image_size=8, augmentation=settings) as images:
        found = examine(predict, images, "abc")
        metrics = evaluate(predict, images)
    assert seen == [10, 10, 3, 10, 10, 3]
    direct = examine(lambda images: images.reshape(len(images), -1)[:, :3] / 50, examples, "abc", 23)
    np.testing.assert_array_equal(found.confusion, direct.confusion)
    assert metrics == {"loss": found.loss, "top1": found.top1, "top5": found.top5_rate, "examples": 23}


def test_it_is_saved_and_loaded_whole(tmp_path, monkeypatch):
    examples, logits = guessed()
    names = ("ä", *NAMES[1:-1], "b\udcff")  # the last a folder's name that is no UTF-8
    found = examine(lambda images: logits, examples, names, COUNT)
    path = tmp_path / "examination"
    found.save(path)
    loaded = Examination.load(path)
    assert (loaded.classes, loaded.loss) == (names, found.loss)
    arrays = dict(np.load(path, allow_pickle=False))
    assert set(arrays) == set(vars(loaded))
    for name in set(arrays) - {"classes", "loss"}:
        np.testing.assert_array_equal(getattr(loaded, name), getattr(found, name))
        np.testing.assert_array_equal(arrays[name], getattr(found, name))
        assert getattr(loaded, name).dtype == getattr(found, name).dtype
    assert str(loaded) == str(found)
    before = path.read_bytes()

    def full(file, **arrays):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="No space left"):
        found.save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_other_files_are_no_examinations(tmp_path):
    path = tmp_path / "file.npz"
    with pytest.raises(FileNotFoundError):
        Examination.load(path)
    for content in (b"", b"text", b"PK\x03\x04 cut"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"load\(\): .*file.npz' is not a whole file that Examination.save wrote"):
            Examination.load(path)
    with open(path, "wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(ValueError, match="not a whole file"):
        Examination.load(path)
    np.savez(path, classes=np.array(["a"]))
    with pytest.raises(ValueError, match="confusion"):
        Examination.load(path)


def test_what_does_not_fit_is_refused():
    examples, logits = guessed()
    with pytest.raises(ValueError, match="there are 2 classes, but logits of 9"):
        examine(lambda images: logits, examples, ("a", "b"), COUNT)
    for classes in ((), ("a",), ("a", "b", "a")):
        with pytest.raises(ValueError, match="'classes' should be at least two different names"):
            examine(lambda images: logits, examples, classes, COUNT)
    with pytest.raises(ValueError, match="'mistakes' should be an integer of at least 0, not -1"):
        examine(lambda images: logits, examples, NAMES, COUNT, mistakes=-1)
    with pytest.raises(ValueError, match=r"examine\(\): 'batch_size' is needed for examples in memory"):
        examine(lambda images: logits, examples, NAMES)
    images = tm.data.pipeline(examples, 10, train=False, image_size=8)
    with pytest.raises(ValueError, match=r"evaluate\(\): 'batch_size' belongs to the pipeline"):
        evaluate(lambda images: logits, images, 8)
    flat = Examples(examples.images.reshape(COUNT, -1), examples.labels)
    with pytest.raises(ValueError, match=r"uint8 of shape \(n, height, width, 3\), not uint8 \(97, 30\).*mistakes=0"):
        examine(lambda images: logits, flat, NAMES, COUNT)
    assert examine(lambda images: logits, flat, NAMES, COUNT, mistakes=0).examples == COUNT


def test_it_is_printed_as_a_table_and_a_line():
    examples, logits = guessed()
    lines = str(examine(lambda images: logits, examples, NAMES, COUNT)).splitlines()
    rows = [line.split() for line in lines]
    assert rows[1] == ["label", "class", "top-1", "top-5", "images"]
    own = examples.labels == 3
    rate = f"{100 * np.mean(logits[own].argmax(1) == 3):.2f}"
    assert next(row for row in rows if row[:1] == ["3"])[:5] == ["3", "class", "3", rate, "%"]
    assert next(row for row in rows if row[:1] == ["8"]) == ["8", "class", "8", "none", "none", "0"]
    assert lines[-1].startswith(f"top-1 {100 * np.mean(logits.argmax(1) == examples.labels):.2f} %, top-5 ")
    assert lines[-1].endswith("over 97 images.")


def test_a_thousand_classes_are_printed_in_forty_lines():
    examples, logits = guessed()
    wide = np.pad(logits, ((0, 0), (0, 991)))
    text = str(examine(lambda images: wide, examples, [f"n{number}" for number in range(1000)], COUNT))
    assert "960 more" in text
    assert "n19 " in text
    assert "n980 " in text
    assert "n20 " not in text
    assert len(text.splitlines()) < 50
