"""Predictions of image files: what the network is shown, the probabilities, and files that are no images."""

from __future__ import annotations

import numpy as np
import pytensor.tensor as pt
import pytest
from PIL import Image

import theano_mgpu as tm
from theano_mgpu.training import Prediction, predictions

CLASSES = ("red", "green", "blue", "none")
COLOURS = {"r": (200, 40, 0), "g": (0, 120, 30), "b": (10, 20, 90), "k": (0, 0, 0)}


def saved(path, pixels):
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path)
    return path


@pytest.fixture
def colours(tmp_path):
    return [saved(tmp_path / f"{name}.png", np.full((9, 12, 3), colour)) for name, colour in COLOURS.items()]


def network(contexts=None):
    """Logits: the mean of each colour, over 64, and 1/2."""
    images = pt.tensor("images", shape=(None, 8, 8, 3), dtype="uint8")
    means = images.astype("float32").mean(axis=(1, 2)) / np.float32(64)
    logits = pt.concatenate([means, pt.full_like(means[:, :1], np.float32(0.5))], axis=1)
    return tm.function([images], logits, contexts=contexts)


def test_each_image_gets_its_classes_and_softmaxs_probabilities(contexts, colours):
    found = predictions(network(contexts), CLASSES, colours, image_size=8, batch_size=3, top=2)
    assert [image.path for image in found] == colours
    assert [image.classes[0] for image in found] == ["red", "green", "blue", "none"]
    assert [image.classes[1] for image in found] == ["green", "none", "none", "red"]  # of equals, the first
    for image, colour in zip(found, COLOURS.values(), strict=True):
        exponentials = np.exp([*(np.array(colour) / 64), 0.5])
        expected = sorted(exponentials / exponentials.sum())[::-1][:2]
        np.testing.assert_allclose(image.probabilities, expected, rtol=1e-5)


def test_all_classes_come_where_there_are_fewer_than_asked_for(colours):
    (found,) = predictions(network(), CLASSES, map(str, colours[:1]), image_size=8)
    assert found.classes == ("red", "green", "none", "blue")
    assert sum(found.probabilities) == pytest.approx(1)


def shown(path, **options):
    """What the network is shown of one file."""
    seen = []
    predictions(lambda images: seen.append(images) or np.zeros((1, 1)), ["x"], [path], **options)
    ((pixels,),) = seen
    return pixels


@pytest.mark.parametrize("turned", [False, True])
def test_the_network_is_shown_the_middle_scaled_without_aliasing(tmp_path, turned):
    """Of a slope each pixel of half the size is the mean of two; a pattern of single pixels becomes its mean."""
    y, x = np.mgrid[:100, :200]
    pixels = np.stack([x, y, 100 * ((x + y) % 2)], axis=2)
    pixels = pixels.transpose(1, 0, 2) if turned else pixels
    view = shown(saved(tmp_path / "slope.png", pixels), image_size=40, resize=50)
    view = view.transpose(1, 0, 2) if turned else view
    assert view.shape == (40, 40, 3)
    columns, rows = 2 * (30 + np.arange(40)) + 0.5, 2 * (5 + np.arange(40)) + 0.5
    np.testing.assert_allclose(view[:, :, 0], np.broadcast_to(columns, (40, 40)), atol=0.51)
    np.testing.assert_allclose(view[:, :, 1], np.broadcast_to(rows[:, None], (40, 40)), atol=0.51)
    np.testing.assert_allclose(view[:, :, 2], 50, atol=1)


def test_a_small_image_is_enlarged(tmp_path):
    assert (
        shown(saved(tmp_path / "dot.png", [[(9, 8, 7)]]), image_size=16, resize=16).tolist() == [[[9, 8, 7]] * 16] * 16
    )


def test_the_network_is_shown_the_bits_of_validations_pipeline(tmp_path):
    rng = np.random.default_rng(0)
    for name in "ab":
        (tmp_path / "data" / name).mkdir(parents=True)
    for number, size in enumerate([(37, 23), (100, 61), (16, 500), (1, 3000), (700, 500)]):
        saved(tmp_path / "data/a" / f"{number}.jpg", rng.integers(0, 256, (*size, 3)))
    saved(tmp_path / "data/b/1.png", np.zeros((9, 9, 3)))
    with pytest.warns(UserWarning, match="one pixel wide or high"):
        files = tm.data.image_folder(tmp_path / "data", val_fraction=0).train
    settings = tm.data.Augmentation(resize=24)
    with tm.data.pipeline(
        files, len(files), train=False, image_size=17, augmentation=settings, workers=0
    ) as validation:
        images, _ = next(validation.batches_from(0)).arrays
    for number, image in enumerate(images):
        np.testing.assert_array_equal(shown(files.path(number), image_size=17, resize=24), image)


def test_a_broken_file_is_named_with_its_problem_and_the_others_are_answered(tmp_path, colours):
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.jpg").write_bytes(b"a letter")
    paths = [colours[0], tmp_path / "empty.jpg", tmp_path / "gone.jpg", colours[1], tmp_path / "text.jpg", tmp_path]
    found = predictions(network(), CLASSES, paths, image_size=8, batch_size=4)
    assert [image.classes[:1] for image in found] == [("red",), (), (), ("green",), (), ()]
    assert [image.problem for image in found] == [
        "",
        "no bytes, expected a JPEG, PNG, WebP or GIF",
        "cannot be read (No such file or directory)",
        "",
        "not a JPEG, PNG, WebP or GIF; it begins with b'a letter'",
        "cannot be read (Is a directory)",
    ]
    assert found[1] == Prediction(tmp_path / "empty.jpg", problem=found[1].problem)


def test_the_step_sees_one_size_of_batch(colours):
    sizes = []

    def step(images):
        sizes.append(len(images))
        return np.zeros((len(images), 4))

    assert len(predictions(step, CLASSES, [*colours, *colours[:1]], image_size=8, batch_size=2)) == 5
    assert sizes == [2, 2, 2]
    assert predictions(step, CLASSES, [], image_size=8) == []


def test_an_answer_that_is_not_finite_is_said(colours):
    answers = np.array([[0, 1, 2, 3.0], [0, np.nan, 2, 3]])
    good, bad = predictions(lambda images: {"logits": answers}, CLASSES, colours[:2], image_size=8, top=1)
    assert (good.classes, good.problem) == (("none",), "")
    assert (bad.classes, bad.problem) == ((), "the network's answer is not finite")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 0}, "'image_size' should be an integer of at least 1, not 0"),
        ({"image_size": 8, "resize": 7}, "'resize' is 7, less than 'image_size', 8"),
        ({"image_size": 8, "top": 0}, "'top' should be an integer of at least 1"),
        ({"image_size": 8, "batch_size": 1.5}, "'batch_size' should be an integer"),
        ({"image_size": 8}, r"logits of shape \(4, 4\), as there are 4 names in 'classes', not \(4, 3\)"),
    ],
)
def test_arguments_that_make_no_sense_are_named(colours, options, message):
    with pytest.raises(ValueError, match=rf"predictions\(\): .*{message}"):
        predictions(lambda images: np.zeros((len(images), 3)), CLASSES, colours, **options)
