"""Folders of images: layouts, the scan and its cache, broken files, duplicates, and what is refused."""

from __future__ import annotations

import io
import os
import pickle
import re
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

import theano_mgpu as tm
from theano_mgpu.data import image_folder
from theano_mgpu.data import scan as scan_module

COLOURS = {"a": (250, 0, 0), "b": (0, 250, 0), "c": (0, 0, 250)}


def content(colour=(1, 2, 3), size=(6, 4), kind="PNG"):
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, kind)
    return file.getvalue()


def noise(seed, size=(60, 50), kind="JPEG"):
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), np.uint8)).save(file, kind)
    return file.getvalue()


def write(folder, files):
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def distinct(names):
    """An image for each name, no two alike."""
    return {name: content((number % 250, number // 250, 7)) for number, name in enumerate(names)}


def listed(files):
    return [(str(file.path.relative_to(files.root)), file.label) for file in files]


@pytest.fixture
def folder(tmp_path):
    names = [f"{split}/{c}/{i}.png" for split, count in (("train", 3), ("val", 1)) for c in "ab" for i in range(count)]
    return write(tmp_path / "data", distinct(names))


def looked_into(monkeypatch):
    """The names of the files that are opened by scans from here on."""
    seen, look = [], scan_module._look

    def record(path, size):
        seen.append(os.path.basename(path).decode())
        return look(path, size)

    monkeypatch.setattr(scan_module, "_look", record)
    return seen


def test_two_splits_have_the_classes_of_train_in_order(tmp_path):
    files = {
        f"{split}/{c}/{number}.png": content((*colour[:2], number + 1)[:3] if c == "c" else (*colour[:2], number))
        for split, numbers in (("train", (1, 2)), ("val", (7,)))
        for c, colour in COLOURS.items()
        for number in numbers
    }
    del files["val/b/7.png"]
    dataset = image_folder(write(tmp_path, files))
    assert dataset.classes == ("a", "b", "c")
    assert listed(dataset.train) == [(f"train/{c}/{n}.png", label) for label, c in enumerate("abc") for n in (1, 2)]
    assert listed(dataset.val) == [("val/a/7.png", 0), ("val/c/7.png", 2)]
    assert dataset.train.labels.dtype == np.int32
    assert dataset.train.bytes(2) == files["train/b/1.png"]
    assert [dataset.train[i - 6] for i in range(6)] == list(dataset.train)
    assert dataset.train.path(-1) == tmp_path / "train/c/2.png"
    pixels = dataset.train.read(3)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, np.full((4, 6, 3), (0, 250, 2), np.uint8))
    assert (dataset.train.widths.tolist(), dataset.train.heights.tolist()) == ([6] * 6, [4] * 6)
    assert dataset.train.file_sizes[2] == len(files["train/b/1.png"])
    with pytest.raises(IndexError):
        dataset.train[6]


def test_one_folder_is_split_by_seed_and_name_alone(tmp_path):
    names = [f"{c}/{number:03d}.png" for c in "ab" for number in range(200)]
    folder = write(tmp_path / "here", distinct(names))
    dataset = image_folder(folder, val_fraction=0.25)
    train, val = (dict(listed(files)) for files in (dataset.train, dataset.val))
    assert sorted([*train, *val]) == names
    assert all(label == "ab".index(name[0]) for name, label in [*train.items(), *val.items()])
    # 400 draws at 0.25: outside of 70 to 130 once in some 2,000 seeds.
    assert 70 < len(val) < 130
    # Elsewhere, below train, and with files added, the same ones are drawn.
    elsewhere = write(tmp_path / "there", distinct([f"train/{name}" for name in [*names, "a/new.png", "c/new.png"]]))
    again = dict(listed(image_folder(elsewhere, val_fraction=0.25).val))
    assert {name.removeprefix("train/") for name in again} - {"a/new.png", "c/new.png"} == set(val)
    assert dict(listed(image_folder(folder, val_fraction=0.25, seed=1).val)) != val
    assert set(dict(listed(image_folder(folder).val))) < set(val)
    assert len(image_folder(folder, val_fraction=0).val) == 0


def test_a_class_may_be_called_train(tmp_path):
    folder = write(tmp_path, distinct([f"{c}/{i}.png" for c in ("boat", "train") for i in range(40)]))
    assert image_folder(folder).classes == ("boat", "train")


def test_formats_are_told_by_content_and_names_may_be_any(tmp_path):
    files = {
        "train/größe/ünï 猫.jpg": content((10, 20, 30), kind="PNG"),
        "train/größe/b.png": noise(0),
        "train/猫/c.JPEG": content((1, 1, 1), kind="GIF"),
        "train/猫/[red]d": content((2, 2, 2), kind="WebP"),
        "train/猫/.hidden": b"not looked at",
        "val/猫/e.webp": content((3, 3, 3)),
    }
    dataset = image_folder(write(tmp_path, files))
    assert dataset.classes == ("größe", "猫")
    assert len(dataset.train) == 4
    np.testing.assert_array_equal(dataset.train.read(1)[0, 0], (10, 20, 30))
    assert "größe" in str(dataset)
    raw = os.fsencode(tmp_path) + b"/val/\xe7\x8c\xab/\xff\xfe.png"
    with open(raw, "wb") as file:
        file.write(content((4, 4, 4)))
    assert image_folder(tmp_path).val.read(1).shape == (4, 6, 3)


def test_links_to_files_and_folders_are_followed(tmp_path, folder):
    outside = write(tmp_path / "outside", {"x.png": content((9, 9, 9)), "class/y.png": content((8, 8, 8))})
    (folder / "train/a/x.png").symlink_to(outside / "x.png")
    (folder / "train/c").symlink_to(outside / "class")
    (folder / "val/a/gone.png").symlink_to(outside / "gone.png")
    with pytest.warns(UserWarning, match=r"1 file is no usable image: '.*gone\.png': cannot be read \(No such file"):
        dataset = image_folder(folder)
    assert [name for name, _ in listed(dataset.train)][3] == "train/a/x.png"
    assert listed(dataset.train)[-1] == ("train/c/y.png", 2)
    np.testing.assert_array_equal(dataset.train.read(-1)[0, 0], (8, 8, 8))


BROKEN = {
    "zero.jpg": (b"", "no bytes, expected a JPEG, PNG, WebP or GIF"),
    "text.jpg": (b"a letter", r"not a JPEG, PNG, WebP or GIF; it begins with b'a letter'"),
    "cut.jpg": (noise(1)[:-300], "a JPEG that is cut off or damaged"),
    "cut_long.jpg": (noise(1, (400, 300))[:-300], "a JPEG that is cut off or damaged"),
    "cut.webp": (noise(4, kind="WebP")[:-300], "a WebP that is cut off or damaged"),
    "cut.gif": (noise(5, kind="GIF")[:-300], "a GIF that is cut off or damaged"),
    "cut.png": (noise(2, kind="PNG")[:-300], "a PNG that is cut off or damaged"),
    "large.png": (content((1, 1, 1), (101, 100)), r"101 x 100 = 10,100 pixels, more than max_pixels=10000"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_named_once_counted_and_left_out(folder, name):
    data, problem = BROKEN[name]
    write(folder, {f"train/a/{name}": data})
    for _ in ("scanned", "from the cache"):
        with pytest.warns(UserWarning, match=r"^image_folder\(\): 1 file") as caught:
            dataset = image_folder(folder, max_pixels=10_000)
        (message,) = [str(warning.message) for warning in caught]
        assert re.search(f"image_folder\\(\\): 1 file is no usable image: '.*train/a/{name}': {problem}", message)
        assert message.count(name) == 1
        assert "on_bad_image='raise'" in message
        assert [image.path.name for image in dataset.broken] == [name]
        assert re.match(problem, dataset.broken[0].problem)
        assert len(dataset.train) == 6
        assert "1 broken files" in str(dataset)
    with pytest.raises(tm.ImageError, match=rf"{name}': {problem}.*Remove them, or give on_bad_image='skip'"):
        image_folder(folder, max_pixels=10_000, on_bad_image="raise")


def test_many_broken_files_are_counted_and_all_kept_in_the_dataset(folder):
    write(folder, {f"train/a/bad{i:02d}.jpg": b"no" for i in range(30)})
    with pytest.warns(UserWarning, match=r"30 files are no usable image.*bad19.jpg.*and 10 more, all in \.broken"):
        dataset = image_folder(folder)
    assert len(dataset.broken) == 30


@pytest.mark.parametrize("end", [b"\0\0\xff\xffIDATx", b"\0\0\0\0IEND\xaeB`\x82"], ids=["cut", "whole"])
def test_an_enormous_image_is_left_out_by_default_and_never_decoded(folder, end, monkeypatch):
    """A decompression bomb: some bytes that claim 60,000 x 60,000 pixels."""
    header = b"IHDR" + (60_000).to_bytes(4, "big") * 2 + b"\x08\x02\0\0\0"
    bomb = b"\x89PNG\r\n\x1a\n\0\0\0\x0d" + header + zlib.crc32(header).to_bytes(4, "big") + end
    write(folder, {"val/a/bomb.png": bomb})
    monkeypatch.setattr(scan_module, "decode", lambda data: pytest.fail("it was decoded"))
    with pytest.warns(
        UserWarning, match=r"bomb\.png': 60000 x 60000 = 3,600,000,000 pixels, more than max_pixels=89478"
    ):
        dataset = image_folder(folder)
    assert [image.path.name for image in dataset.broken] == ["bomb.png"]
    assert len(dataset.val) == 2
    with pytest.raises(tm.ImageError, match=r"bomb\.png': 60000 x 60000"):
        image_folder(folder, on_bad_image="raise")


def test_a_larger_limit_takes_what_a_smaller_one_refused(folder):
    write(folder, {"train/a/large.png": content((1, 1, 1), (101, 100))})
    with pytest.warns(UserWarning, match="large"):
        image_folder(folder, max_pixels=10_000)
    dataset = image_folder(folder, max_pixels=10_100)
    assert dataset.train.read(3).shape == (100, 101, 3)


def test_damage_that_a_scan_does_not_see_is_named_when_it_is_read(folder):
    data = bytearray(noise(3, kind="PNG"))
    data[len(data) // 2] ^= 0xFF
    write(folder, {"train/b/bits.png": bytes(data)})
    dataset = image_folder(folder)
    with pytest.raises(tm.ImageError, match=r"'.*train/b/bits\.png': a PNG that is cut off or damaged"):
        dataset.train.read(6)
    (folder / "train/b/bits.png").unlink()
    with pytest.raises(tm.ImageError, match=r"bits\.png' cannot be read \(No such file"):
        dataset.train.read(6)


def test_images_of_one_pixel_stay_in_with_a_warning(folder):
    write(folder, {"val/b/dot.png": content((5, 5, 5), (1, 1))})
    with pytest.warns(UserWarning, match=r"1 images in 'val' are one pixel wide or high: '.*dot\.png' \(1 x 1\)"):
        dataset = image_folder(folder)
    assert dataset.val.read(2).shape == (1, 1, 3)


def test_sizes_are_as_displayed(folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(folder / "train/a/turned.jpg", exif=exif)
    # A thumbnail pushes the header behind what a scan reads at first.
    exif[0x927C] = b"x" * 40_000
    Image.new("RGB", (44, 22)).save(folder / "train/a/turned_long.jpg", exif=exif)
    dataset = image_folder(folder)
    assert list(zip(dataset.train.widths, dataset.train.heights, strict=True))[3:5] == [(20, 40), (22, 44)]


def test_files_that_are_in_both_splits_are_reported(folder, monkeypatch):
    hashed, of_bytes = [], scan_module._hash
    monkeypatch.setattr(scan_module, "_hash", lambda data: hashed.append(len(data)) or of_bytes(data))
    same = noise(4, (400, 300))
    # As long, with the same beginning and end, and another byte in the middle: no duplicate.
    other = bytearray(same)
    other[len(same) // 2] ^= 1
    write(folder, {"train/a/first.jpg": same, "train/a/other.jpg": bytes(other), "val/b/second.jpg": same})
    write(folder, {"train/a/twice.jpg": same})
    for _ in ("scanned", "from the cache"):
        with pytest.warns(UserWarning, match=r"1 validation images are also training images.*second.*first"):
            dataset = image_folder(folder)
        (pair,) = dataset.duplicates
        assert (pair.train, pair.val) == (folder / "train/a/first.jpg", folder / "val/b/second.jpg")
        assert "1 validation images are also" in str(dataset)
        # The four that could be alike are read whole, once.
        assert hashed == [len(same)] * 4


def test_only_new_and_changed_files_are_looked_into_again(folder, monkeypatch):
    seen = looked_into(monkeypatch)
    first = image_folder(folder)
    assert len(seen) == 8
    seen.clear()
    second = image_folder(folder)
    assert seen == []
    assert listed(second.train) == listed(first.train)
    np.testing.assert_array_equal(second.train.widths, first.train.widths)
    write(folder, {"train/a/1.png": content((77, 1, 1), (9, 8)), "train/a/0new.png": content((78, 1, 1), (3, 2))})
    (folder / "train/b/0.png").unlink()
    times = (folder / "train/b/1.png").stat()
    os.utime(folder / "train/b/1.png", ns=(times.st_atime_ns, times.st_mtime_ns + 1))
    third = image_folder(folder)
    assert sorted(seen) == ["0new.png", "1.png", "1.png"]
    assert third.train.widths.tolist() == [6, 3, 9, 6, 6, 6]
    seen.clear()
    (folder / "train/b/1.png").write_bytes(content((79, 1, 1), (5, 5)) + b"longer, with an older time")
    os.utime(folder / "train/b/1.png", ns=(times.st_atime_ns, times.st_mtime_ns + 1))
    assert image_folder(folder).train.widths.tolist() == [6, 3, 9, 6, 5, 6]
    assert seen == ["1.png"]
    seen.clear()
    image_folder(folder)
    assert seen == []


def test_a_file_that_could_not_be_opened_is_tried_again(folder, monkeypatch):
    seen = looked_into(monkeypatch)
    link = folder / "train/a/link.png"
    link.symlink_to(folder / "later.png")
    with pytest.warns(UserWarning, match=r"link\.png"):
        image_folder(folder)
    seen.clear()
    write(folder, {"later.png": content((60, 60, 60))})
    assert len(image_folder(folder).train) == 7
    assert seen == ["link.png"]


def test_a_file_that_may_not_be_read_is_tried_again_though_its_time_is_the_same(folder, monkeypatch):
    """A permission changes neither; it is played here, as root may read everything."""
    size, forbidden = scan_module.image_size, (folder / "train/a/1.png").read_bytes()

    def refuse(head):
        if head == forbidden:
            raise PermissionError(13, "Permission denied")
        return size(head)

    with monkeypatch.context() as patch:
        patch.setattr(scan_module, "image_size", refuse)
        with pytest.warns(UserWarning, match=r"1\.png': cannot be read \(Permission denied\)"):
            assert len(image_folder(folder).train) == 5
    assert len(image_folder(folder).train) == 6


def test_a_scan_that_is_stopped_keeps_what_it_has_seen(folder, monkeypatch):
    monkeypatch.setattr(scan_module, "_CHUNK", 1)
    monkeypatch.setattr(scan_module, "_THREADS", 1)
    seen, look = looked_into(monkeypatch), scan_module._look

    def stop(path, size):
        if path.endswith(b"b/0.png"):
            raise KeyboardInterrupt
        return look(path, size)

    monkeypatch.setattr(scan_module, "_look", stop)
    with pytest.raises(KeyboardInterrupt):
        image_folder(folder)
    monkeypatch.setattr(scan_module, "_look", look)
    seen.clear()
    assert len(image_folder(folder).train) == 6
    assert len(seen) == 5


def test_a_cache_that_cannot_be_written_is_said_and_changes_nothing(folder, own_cache, monkeypatch):
    (own_cache / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(own_cache / "file"))
    with pytest.warns(UserWarning, match=r"could not be kept in .*XDG_CACHE_HOME names another folder"):
        dataset = image_folder(folder)
    assert len(dataset.train) == 6


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[: len(data) // 2], lambda data: b"x" * 100])
def test_a_damaged_cache_is_written_anew(folder, monkeypatch, damage):
    image_folder(folder)
    path = scan_module.cache_file(folder)
    path.write_bytes(damage(path.read_bytes()))
    seen = looked_into(monkeypatch)
    assert len(image_folder(folder).train) == 6
    assert len(seen) == 8
    seen.clear()
    image_folder(folder)
    assert seen == []


def test_nothing_is_written_to_the_data_sets_folder(folder):
    before = sorted(folder.rglob("*"))
    image_folder(folder)
    assert sorted(folder.rglob("*")) == before


def test_progress_is_shown_on_standard_error_when_asked_for(folder, capsys):
    image_folder(folder, progress=True)
    shown = capsys.readouterr()
    assert "looking into files" in shown.err
    assert shown.out == ""
    image_folder(folder, progress=False)
    assert capsys.readouterr().err == ""


def test_a_split_travels_to_another_process(folder):
    train = image_folder(folder).train
    copy = pickle.loads(pickle.dumps(train))
    assert listed(copy) == listed(train)
    np.testing.assert_array_equal(copy.read(4), train.read(4))


def test_a_printed_dataset_is_a_table_of_classes_and_counts(tmp_path, folder):
    text = str(image_folder(folder))
    rows = [line.split() for line in text.splitlines()]
    assert ["label", "class", "train", "val"] in rows
    assert ["0", "a", "3", "1"] in rows
    assert ["2", "classes", "6", "2"] in rows
    assert "6 to 6 wide (median 6), 4 to 4 high (median 4)" in text
    many = write(tmp_path / "many", distinct([f"train/c{i:03d}/{j}.png" for i in range(60) for j in range(3)]))
    text = str(image_folder(many))
    assert "c019" in text
    assert "c020" not in text
    assert "20 more" in text
    assert "c059" in text


def test_what_is_not_read_is_said(folder):
    write(folder, {"train/a/deeper/x.png": content()})
    (folder / "train/empty").mkdir()
    with pytest.warns(UserWarning, match=r"^image_folder\(\): ") as caught:
        dataset = image_folder(folder)
    messages = " ".join(str(warning.message) for warning in caught)
    assert re.search(r"1 folders inside class folders are not read: '.*train/a/deeper'", messages)
    assert "the class 'empty' without an image to train on" in messages
    assert dataset.classes == ("a", "b", "empty")


@pytest.mark.parametrize(
    ("names", "options", "error", "message"),
    [
        (None, {}, FileNotFoundError, r"'path' is '.*', which does not exist\. Expected train/CLASS/\*"),
        ([], {}, FileNotFoundError, "which is empty. Expected"),
        (["x.png"], {}, FileNotFoundError, "which holds 1 files but no folders"),
        (["train/a/x.png"], {}, ValueError, "has one class, 'a'; a classifier needs two"),
        (["a/x.png"], {}, ValueError, "has one class, 'a'"),
        (["val/a/x.png", "val/b/x.png"], {}, FileNotFoundError, "has a folder 'val' but no classes in 'train'"),
        (["train/a/x.png", "train/b/x.png", "val/x.png"], {}, FileNotFoundError, "1 files but no class folders. Sort"),
        (
            ["train/a/x.png", "train/b/x.png", "val/c/y.png", "val/d/y.png"],
            {},
            ValueError,
            r"has the classes 'c', 'd' without a folder in '.*train'",
        ),
        (["train/a/x.png", "train/b/x.png", "val/a/y.png"], {"val_fraction": 0.1}, ValueError, "has a folder 'val'"),
        (["a/x.png", "b/x.png"], {"val_fraction": 1.0}, ValueError, "'val_fraction' must be at least 0 and less"),
        (["a/x.png", "b/x.png"], {"val_fraction": 1e-9}, ValueError, r"is in 'val' \(2 files, 0 of them broken\)"),
        (["a/x.png", "b/x.png"], {"on_bad_image": "ignore"}, ValueError, "must be 'skip' or 'raise', got 'ignore'"),
        (["a/x.png", "b/x.png"], {"max_pixels": 0}, ValueError, "'max_pixels' must be at least 1, got 0"),
    ],
)
def test_a_folder_that_is_no_data_set_is_refused_in_a_sentence(tmp_path, names, options, error, message):
    folder = tmp_path / "data"
    if names is not None:
        folder.mkdir()
        write(folder, distinct(names))
    with pytest.raises(error, match=message):
        image_folder(folder, **options)


def test_a_file_as_path_and_a_split_of_broken_files_are_refused(tmp_path):
    write(tmp_path, {"file": b"", "d/train/a/x.png": b"no", "d/train/b/x.png": b"no", "d/val/a/x.png": content()})
    with pytest.raises(NotADirectoryError, match="which is a file"):
        image_folder(tmp_path / "file")
    with warnings.catch_warnings(), pytest.raises(ValueError, match=r"is in 'train' \(3 files, 2 of them broken\).*x"):
        image_folder(tmp_path / "d")
