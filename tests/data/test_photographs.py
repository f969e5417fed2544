"""The bundled photographs: what is in them, what is kept apart, and what happens to a folder that is already there."""

from __future__ import annotations

import importlib
import json
import socket

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from theano_mgpu.data import Examples, Photograph, bundled_photographs, class_names, photographs, read_split

MODULE = importlib.import_module("theano_mgpu.data.photographs")


def small(folder, **settings):
    return photographs(folder, **{"image_size": 32, "train_per_class": 3, "val_per_class": 2, **settings})


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return small(tmp_path_factory.mktemp("photographs") / "data")


@pytest.fixture
def two_colours(tmp_path, monkeypatch):
    """Replaces the photographs by one whose part for training is red and that for validation blue."""
    pixels = np.zeros((80, 120, 3), np.uint8)
    pixels[..., 0] = 255
    pixels[:, :48] = (0, 0, 255)
    path = tmp_path / "two_colours.png"
    Image.fromarray(pixels).save(path)
    monkeypatch.setattr(Photograph, "path", path)
    monkeypatch.setattr(
        MODULE, "_PHOTOGRAPHS", (Photograph("two_colours", "skimage", "", train=(0.4, 1.0), val=(0.0, 0.4)),)
    )


def test_twelve_or_more_photographs_are_read_without_a_network(monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("the network was asked for")

    monkeypatch.setattr(socket, "socket", refuse)
    names = [photograph.name for photograph in bundled_photographs()]
    assert len(names) >= 12
    assert names == sorted(set(names))
    for photograph in bundled_photographs():
        with Image.open(photograph.path) as picture:
            assert min(picture.convert("RGB").size) > 150


def test_layout_is_imagenets(folder):
    names = [photograph.name for photograph in bundled_photographs()]
    assert list(class_names(folder)) == names
    for split, count in (("train", 3), ("val", 2)):
        assert sorted(path.name for path in (folder / split).iterdir()) == names
        for name in names:
            paths = sorted((folder / split / name).iterdir())
            assert [path.name for path in paths] == [f"{index:04d}.jpg" for index in range(count)]
            with Image.open(paths[0]) as picture:
                assert (picture.format, picture.mode, picture.size) == ("JPEG", "RGB", (32, 32))


def test_no_training_crop_shares_a_pixel_with_a_validation_crop(folder):
    crops = json.loads((folder / "photographs.json").read_text())["crops"]
    assert len(crops) == 5 * len(bundled_photographs())
    for photograph in bundled_photographs():
        with Image.open(photograph.path) as picture:
            width, height = picture.size
        touched = {split: np.zeros((height, width), bool) for split in ("train", "val")}
        for name, (left, top, right, bottom) in crops.items():
            split, owner, _ = name.split("/")
            if owner == photograph.name:
                assert right - left == bottom - top > 0
                assert 0 <= left < right <= width
                assert 0 <= top < bottom <= height
                touched[split][top:bottom, left:right] = True
        assert touched["train"].any()
        assert touched["val"].any()
        assert not (touched["train"] & touched["val"]).any()


@pytest.mark.usefixtures("two_colours")
def test_pixels_of_one_region_never_reach_the_other_split(tmp_path):
    folder = small(tmp_path / "data", train_per_class=40, val_per_class=40)
    red, blue = read_split(folder, "train").images, read_split(folder, "val").images
    # JPEG and the colour jitter move a channel by some; a pixel of the other colour would move it by 255.
    assert red[..., 2].max() < 60
    assert blue[..., 0].max() < 60
    assert red[..., 0].min() > 100
    assert blue[..., 2].min() > 200


def test_training_crops_vary_and_validation_crops_are_the_photographs_own_pixels(folder):
    crops = json.loads((folder / "photographs.json").read_text())["crops"]
    train, val = read_split(folder, "train"), read_split(folder, "val")
    for name, box in crops.items():
        split, owner, file = name.split("/")
        if split == "val":
            photograph = next(p for p in bundled_photographs() if p.name == owner)
            with Image.open(photograph.path) as picture:
                expected = np.asarray(picture.convert("RGB").crop(box).resize((32, 32), Image.Resampling.BICUBIC))
            row = class_names(folder).index(owner) * 2 + int(file[:4])
            assert np.abs(val.images[row].astype(int) - expected).mean() < 12
    assert len(np.unique(train.images.reshape(len(train), -1), axis=0)) == len(train)


def test_half_of_the_training_crops_are_mirrored_and_their_brightness_varies(tmp_path, monkeypatch):
    ramp = np.broadcast_to(np.linspace(40, 200, 120).astype(np.uint8)[None, :, None], (80, 120, 3))
    Image.fromarray(np.ascontiguousarray(ramp)).save(tmp_path / "ramp.png")
    monkeypatch.setattr(Photograph, "path", tmp_path / "ramp.png")
    monkeypatch.setattr(MODULE, "_PHOTOGRAPHS", (Photograph("ramp", "skimage", ""),))
    folder = small(tmp_path / "data", train_per_class=100)
    images = read_split(folder, "train").images.astype(int)
    rising = images[:, :, -4:].mean((1, 2, 3)) > images[:, :, :4].mean((1, 2, 3))
    # 100 fair coins: fewer than 30 heads, or more than 70, come once in 25,000 seeds.
    assert 30 <= rising.sum() <= 70
    crops = json.loads((folder / "photographs.json").read_text())["crops"]
    exact = np.asarray(
        [ramp[0, crops[f"train/ramp/{i:04d}.jpg"][0] : crops[f"train/ramp/{i:04d}.jpg"][2]].mean() for i in range(100)]
    )
    factors = images.mean((1, 2, 3)) / exact
    assert 0.75 < factors.min() < 0.9
    assert 1.1 < factors.max() < 1.25


def test_an_example_depends_on_seed_class_and_index_alone(tmp_path, folder):
    same = files(small(tmp_path / "same"))
    assert same == files(folder)
    more = files(small(tmp_path / "more", train_per_class=4))
    assert all(more[name] == content for name, content in same.items() if name != "photographs.json")
    other = files(small(tmp_path / "other", seed=1))
    assert all(other[name] != content for name, content in same.items())


def test_a_folder_that_is_there_is_left_alone_and_what_it_lacks_is_written_again(tmp_path):
    folder = small(tmp_path / "data")
    before = files(folder)
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*.jpg")}
    missing = folder / "train" / "coffee" / "0001.jpg"
    missing.unlink()
    assert small(folder) == folder
    assert files(folder) == before
    assert all(path.stat().st_mtime_ns == time for path, time in times.items() if path != missing)


def test_an_interrupted_run_leaves_nothing_and_the_next_one_is_whole(tmp_path, monkeypatch, folder):
    save, saved = Image.Image.save, []

    def save_then_stop(image, path, **options):
        saved.append(path)
        if len(saved) == 20:
            raise KeyboardInterrupt
        save(image, path, **options)

    monkeypatch.setattr(Image.Image, "save", save_then_stop)
    with pytest.raises(KeyboardInterrupt):
        small(tmp_path / "data")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    assert files(small(tmp_path / "data")) == files(folder)


def test_another_setting_is_refused_by_name(folder):
    with pytest.raises(
        ValueError, match=r"'image_size' is 32 there, 48 here; 'seed' is 0 there, 5 here\. Give another"
    ):
        small(folder, image_size=48, seed=5)


def test_a_folder_of_someone_elses_is_not_touched(tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(FileExistsError, match="did not write"):
        small(tmp_path)
    assert files(tmp_path) == {"letter.txt": b"dear"}


@pytest.mark.parametrize("setting", ["image_size", "train_per_class", "val_per_class"])
def test_numbers_out_of_range_are_refused(tmp_path, setting):
    with pytest.raises(ValueError, match=f"'{setting}' must be at least 1, got 0"):
        small(tmp_path / "data", **{setting: 0})


def test_a_photograph_that_is_not_installed_is_named():
    with pytest.raises(FileNotFoundError, match=r"'dog' is not in the installed package 'skimage' as 'data/dog.png'"):
        _ = Photograph("dog", "skimage", "data/dog.png").path


def test_labels_are_places_among_the_class_names(folder):
    train = read_split(folder, "train")
    assert train.images.dtype == np.uint8
    assert train.images.shape == (3 * len(class_names(folder)), 32, 32, 3)
    assert train.labels.dtype == np.int32
    assert train.labels.tolist() == [label for label in range(len(class_names(folder))) for _ in range(3)]
    for label in (0, 7):
        with Image.open(folder / "train" / class_names(folder)[label] / "0002.jpg") as picture:
            np.testing.assert_array_equal(train.images[3 * label + 2], np.asarray(picture))


@given(
    count=st.integers(1, 40), batch_size=st.integers(1, 45), seed=st.none() | st.integers(0, 9), epoch=st.integers(0, 3)
)
def test_an_epoch_gives_every_example_once(count, batch_size, seed, epoch):
    examples = Examples(np.arange(count, dtype=np.uint8).reshape(count, 1, 1, 1), np.arange(count, dtype=np.int32))
    batches = list(examples.batches(batch_size, seed=seed, epoch=epoch))
    sizes = [len(labels) for _, labels in batches]
    assert sizes[:-1] == [batch_size] * (len(sizes) - 1)
    assert 0 < sizes[-1] <= batch_size
    labels = np.concatenate([labels for _, labels in batches])
    assert sorted(labels) == list(range(count))
    np.testing.assert_array_equal(np.concatenate([images for images, _ in batches]).ravel(), labels)


def test_the_order_of_an_epoch_depends_on_seed_and_epoch():
    examples = Examples(np.zeros((50, 1, 1, 3), np.uint8), np.arange(50, dtype=np.int32))

    def order(**keys):
        return [int(label) for _, labels in examples.batches(8, **keys) for label in labels]

    assert order() == list(range(50))
    assert order(seed=1, epoch=2) == order(seed=1, epoch=2)
    assert len({tuple(order(seed=seed, epoch=epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


def test_a_batch_size_below_one_is_refused_at_the_call():
    with pytest.raises(ValueError, match="'batch_size' must be at least 1, got 0"):
        Examples(np.zeros((2, 1, 1, 3), np.uint8), np.zeros(2, np.int32)).batches(0)


def write_image(path, size=(4, 4), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, 200 if mode == "L" else (200, 100, 50)).save(path)


def test_greyscale_images_get_three_channels(tmp_path):
    write_image(tmp_path / "train" / "a" / "0.png", mode="L")
    assert read_split(tmp_path, "train").images.tolist() == np.full((1, 4, 4, 3), 200).tolist()


@pytest.mark.parametrize(
    ("files_there", "split", "error", "message"),
    [
        ([], "train", FileNotFoundError, "no class folders"),
        (["train/a/0.png"], "val", FileNotFoundError, "no images found"),
        (["train/a/0.png", "val/b/0.png"], "val", ValueError, "of class 'b', which has no folder"),
        (["train/a/0.png", "train/a/wide.png"], "train", ValueError, "is 6 x 4 pixels but .* is 4 x 4"),
    ],
)
def test_a_folder_that_cannot_be_read_says_why(tmp_path, files_there, split, error, message):
    for name in files_there:
        write_image(tmp_path / name, size=(6, 4) if "wide" in name else (4, 4))
    with pytest.raises(error, match=message):
        read_split(tmp_path, split)
