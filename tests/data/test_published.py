"""Readers for published data sets, on small files in the published formats."""

from __future__ import annotations

import gzip
import struct

import numpy as np
import pytest
from sklearn.datasets import load_digits

from theano_mgpu.data import cifar10, cifar100, digits, mnist

NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
CIFAR10 = [*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]
CIFAR100 = ["train.bin", "test.bin"]


def records(labels, seed):
    """Records as the data set's page has them, and the images in them; ``labels``: a tuple of bytes for each record."""
    images = np.random.default_rng(seed).integers(0, 256, (len(labels), 32, 32, 3), np.uint8)
    data = b""
    for label, image in zip(labels, images, strict=True):
        data += bytes(label) + b"".join(image[:, :, channel].tobytes() for channel in range(3))
    return data, images


def write_cifar10(folder):
    folder.mkdir(parents=True)
    written = {}
    for seed, name in enumerate(CIFAR10):
        labels = [(seed,), (9,)]
        data, images = records(labels, seed)
        (folder / name).write_bytes(data)
        written[name] = images
    (folder / "batches.meta.txt").write_text("\n".join(NAMES) + "\n\n")
    return written


def write_cifar100(folder):
    folder.mkdir(parents=True)
    written = {}
    for seed, name in enumerate(CIFAR100):
        data, written[name] = records([(19, 99), (3, 40 + seed), (0, 0)], seed)
        (folder / name).write_bytes(data)
    (folder / "fine_label_names.txt").write_text("\n".join(f"class{i}" for i in range(100)) + "\n")
    return written


def idx(array, kind=8):
    return struct.pack(f">HBB{array.ndim}I", 0, kind, array.ndim, *array.shape) + array.tobytes()


def write_mnist(folder, suffix="", **changed):
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {}
    for seed, (split, count) in enumerate((("train", 5), ("t10k", 2))):
        rng = np.random.default_rng(seed)
        arrays[f"{split}-images-idx3-ubyte"] = rng.integers(0, 256, (count, 28, 28), np.uint8)
        arrays[f"{split}-labels-idx1-ubyte"] = (np.arange(count, dtype=np.uint8) * 3 + seed) % 10
    for name, array in arrays.items():
        (folder / (name + suffix)).write_bytes(gzip.compress(idx(array)) if suffix else idx(array))
    return arrays


@pytest.mark.parametrize("below", ["", "cifar-10-batches-bin"])
def test_cifar10_is_read_from_its_binary_files(tmp_path, below):
    written = write_cifar10(tmp_path / "data" / below)
    data = cifar10(tmp_path / "data")
    assert data.classes == tuple(NAMES)
    assert data.train.images.dtype == np.uint8
    np.testing.assert_array_equal(data.train.images, np.concatenate([written[name] for name in CIFAR10[:5]]))
    np.testing.assert_array_equal(data.val.images, written["test_batch.bin"])
    assert data.train.labels.tolist() == [0, 9, 1, 9, 2, 9, 3, 9, 4, 9]
    assert data.val.labels.tolist() == [5, 9]
    assert data.train.labels.dtype == data.val.labels.dtype == np.int32


@pytest.mark.parametrize("below", ["", "cifar-100-binary"])
def test_cifar100_is_read_with_its_fine_labels(tmp_path, below):
    written = write_cifar100(tmp_path / "data" / below)
    data = cifar100(tmp_path / "data")
    assert data.classes[99] == "class99"
    np.testing.assert_array_equal(data.train.images, written["train.bin"])
    np.testing.assert_array_equal(data.val.images, written["test.bin"])
    assert data.train.labels.tolist() == [99, 40, 0]
    assert data.val.labels.tolist() == [99, 41, 0]


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_mnist_is_read_from_idx_files(tmp_path, suffix):
    arrays = write_mnist(tmp_path, suffix)
    data = mnist(tmp_path)
    for split, examples in (("train", data.train), ("t10k", data.val)):
        images = arrays[f"{split}-images-idx3-ubyte"]
        assert examples.images.shape == (*images.shape, 3)
        assert examples.images.dtype == np.uint8
        for channel in range(3):
            np.testing.assert_array_equal(examples.images[..., channel], images)
        np.testing.assert_array_equal(examples.labels, arrays[f"{split}-labels-idx1-ubyte"])
        assert examples.labels.dtype == np.int32
    assert data.classes == tuple("0123456789")


def test_digits_are_scikit_learns_each_in_one_split():
    data = digits()
    assert (len(data.train), len(data.val)) == (1438, 359)
    images = np.concatenate([data.train.images, data.val.images])
    assert images.shape == (1797, 8, 8, 3)
    assert images.dtype == np.uint8
    labels = np.concatenate([data.train.labels, data.val.labels])
    theirs = load_digits()

    def rows(images, labels):
        return sorted((*image.ravel().tolist(), int(label)) for image, label in zip(images, labels, strict=True))

    np.testing.assert_array_equal(
        rows(np.round(images[..., 0] * (16 / 255)).astype(int), labels), rows(theirs.images.astype(int), theirs.target)
    )
    assert (images.min(), images.max()) == (0, 255)
    assert (images[..., :1] == images).all()
    np.testing.assert_array_equal(digits().val.images, data.val.images)
    assert (digits(seed=1).val.labels != data.val.labels).any()
    assert len(digits(val_fraction=0.5).val) == 898
    for fraction in (0, 1, -0.1):
        with pytest.raises(ValueError, match=f"'val_fraction' must be between 0 and 1, .* got {fraction}"):
            digits(val_fraction=fraction)


@pytest.mark.parametrize(
    ("reader", "write", "names"), [(cifar10, write_cifar10, CIFAR10), (cifar100, write_cifar100, CIFAR100)]
)
def test_cifar_files_that_are_missing_or_damaged_are_named(tmp_path, reader, write, names):
    with pytest.raises(FileNotFoundError, match=rf"neither '.*' nor '.*' has '{names[-1]}'\. Expected the folder"):
        reader(tmp_path)
    folder = tmp_path / "data"
    write(folder)
    for name in names:
        path, data = folder / name, (folder / name).read_bytes()
        for damaged in (data[:-1], b""):
            path.write_bytes(damaged)
            with pytest.raises(ValueError, match=rf"'.*{name}' has [\d,]+ bytes; expected a multiple of 3,07[34]"):
                reader(folder)
        label = 1 if reader is cifar100 else 0
        path.write_bytes(data[:label] + b"\xc8" + data[label + 1 :])
        with pytest.raises(ValueError, match=rf"'.*{name}' has label 200; expected 0 to"):
            reader(folder)
        path.write_bytes(data)
    (folder / names[0]).unlink()
    with pytest.raises(FileNotFoundError, match=rf"'.*{names[0]}' is missing"):
        reader(folder)


def test_names_of_classes_are_counted(tmp_path):
    write_cifar10(tmp_path / "data")
    (tmp_path / "data/batches.meta.txt").write_text("cat\ndog\n")
    with pytest.raises(ValueError, match=r"batches\.meta\.txt' has 2 names of classes; expected 10"):
        cifar10(tmp_path / "data")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "t10k-images-idx3-ubyte",
            lambda data: data[:-1],
            r"has 1,567 bytes of data; expected 1,568 for \(2, 28, 28\)",
        ),
        ("train-images-idx3-ubyte", lambda data: data[:10], r"begins with b'.x00.x00.x08.x03'; expected an IDX file"),
        ("train-images-idx3-ubyte", lambda data: b"PK" + data, r"begins with b'PK.*; expected an IDX file of unsigned"),
        ("train-labels-idx1-ubyte", lambda data: idx(np.arange(4, dtype=np.uint8)), "5 images but 4 labels in 'train'"),
        ("t10k-labels-idx1-ubyte", lambda data: idx(np.asarray([1, 10], np.uint8)), "has label 10; expected 0 to 9"),
    ],
)
def test_idx_files_of_another_form_are_refused(tmp_path, name, change, message):
    write_mnist(tmp_path)
    (tmp_path / name).write_bytes(change((tmp_path / name).read_bytes()))
    with pytest.raises(ValueError, match=message):
        mnist(tmp_path)


def test_idx_files_that_are_missing_or_not_whole_are_named(tmp_path):
    write_mnist(tmp_path, ".gz")
    path = tmp_path / "train-images-idx3-ubyte.gz"
    data = path.read_bytes()
    for damaged in (data[:-20], b"not packed", data[:100] + b"\xff" * 50 + data[150:]):
        path.write_bytes(damaged)
        with pytest.raises(
            ValueError, match=r"train-images-idx3-ubyte\.gz' cannot be unpacked .* Is the download whole"
        ):
            mnist(tmp_path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"train-images-idx3-ubyte' is missing"):
        mnist(tmp_path)
