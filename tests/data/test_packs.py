"""Packs: the same examples as the folder's, scaled as Pillow does it, whole or not there, and read in any process."""

from __future__ import annotations

import io
import multiprocessing
import pickle
import re
import resource
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pytest
from array_record.python.array_record_data_source import ArrayRecordDataSource
from PIL import Image

import theano_mgpu as tm
from theano_mgpu.data import PackedImages, image_folder, is_pack, pack, packed
from theano_mgpu.data.image_files import ImageFiles

SIZES = {"train/a": [(60, 40), (40, 60), (33, 90), (20, 20)], "train/ü b": [(16, 80), (50, 50)], "val/a": [(70, 45)]}


def picture(width, height, kind="JPEG", exif=None):
    """A slope in each colour, which a scaled JPEG nearly keeps, and a fine pattern, which scaling averages away."""
    y, x = np.mgrid[:height, :width]
    pattern = 40 * ((x + y) % 2)
    slopes = [200 * x / width, 200 * y / height, 100 + 60 * np.sin(x / 9)]
    pixels = np.stack([slope + pattern for slope in slopes], axis=2).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **({"quality": 95} if kind == "JPEG" else {}), exif=exif or Image.Exif())
    return file.getvalue()


@pytest.fixture
def folder(tmp_path):
    for name, sizes in SIZES.items():
        (tmp_path / "data" / name).mkdir(parents=True)
        for number, size in enumerate(sizes):
            kind = "PNG" if number == 1 else "JPEG"
            (tmp_path / "data" / name / f"{number}.{kind}").write_bytes(picture(*size, kind))
    return tmp_path / "data"


@pytest.fixture
def damaged(folder):
    """With a PNG whose damage a scan does not see."""
    noise = np.random.default_rng(0).integers(0, 255, (50, 60, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG")
    content = bytearray(file.getvalue())
    content[len(content) // 2] ^= 0xFF
    (folder / "train/a/9.png").write_bytes(content)
    return folder


def compare(source, packed_images):
    assert len(packed_images) == len(source)
    for name in ("labels", "widths", "heights", "file_sizes"):
        expected, found = getattr(source, name), getattr(packed_images, name)
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
    assert [example.label for example in packed_images] == source.labels.tolist()
    for index in range(-1, len(source)):
        assert packed_images.name(index) == source.name(index)
        assert packed_images.bytes(index) == source.bytes(index)


@pytest.mark.parametrize("shard_size", [1, 3000, 1024**3])
def test_a_pack_without_scaling_has_the_folders_bytes_in_its_order(tmp_path, folder, shard_size):
    source = image_folder(folder)
    written = pack(folder, tmp_path / "pack", shard_size=shard_size, threads=3)
    for data in (written, packed(tmp_path / "pack")):
        assert data.classes == source.classes == ("a", "ü b")
        compare(source.train, data.train)
        compare(source.val, data.val)
        assert data.shorter_side is None
        np.testing.assert_array_equal(data.train.read(3, min_width=5), source.train.read(3, min_width=5))
    shards = len(list((tmp_path / "pack").glob("train-*.array_record")))
    assert shards in {1: {6}, 3000: {2, 3, 4}, 1024**3: {1}}[shard_size]
    with pytest.raises(IndexError):
        written.train.bytes(6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "pack"]
    rows = [line.split() for line in str(written).splitlines()]
    assert ["0", "a", "4", "1"] in rows


@pytest.mark.parametrize(("train", "workers"), [(True, 1), (False, 0)])
def test_a_pipeline_gives_the_same_batches_from_either(tmp_path, folder, train, workers):
    batches = []
    for source in (image_folder(folder).train, pack(folder, tmp_path / "pack").train):
        options = {"image_size": 16, "seed": 3, "workers": 0 if batches == [] else workers}
        with tm.data.pipeline(source, 3, train=train, **options) as read:
            several = read.batches_from(0)
            batches.append([next(several).arrays for _ in range(4)])
    for expected, found in zip(*batches, strict=True):
        for wanted, array in zip(expected, found, strict=True):
            np.testing.assert_array_equal(array, wanted)
    assert not np.array_equal(batches[0][0][0], batches[0][1][0])


def test_other_readers_of_array_record_find_the_same_records(tmp_path, folder):
    written = pack(folder, tmp_path / "pack", shard_size=3000)
    paths = sorted(map(str, (tmp_path / "pack").glob("train-*.array_record")))
    assert len(paths) > 1
    with ArrayRecordDataSource(paths) as records:
        assert [records[i] for i in range(len(records))] == [written.train.bytes(i) for i in range(6)]


def test_larger_images_are_scaled_as_pillow_does_it_and_others_kept(tmp_path, folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    (folder / "train/a/5.jpg").write_bytes(picture(80, 50, exif=exif))
    (folder / "train/a/6.jpg").write_bytes(picture(32, 41))
    source = image_folder(folder)
    data = pack(source, tmp_path / "pack", shorter_side=32)
    assert data.shorter_side == 32
    sizes = list(zip(data.train.widths, data.train.heights, strict=True))
    # The longer side as torchvision has it: int(longer * 32 / shorter). The one of 51 was turned upright.
    assert sizes == [(48, 32), (32, 48), (32, 87), (20, 20), (32, 51), (32, 41), (16, 80), (32, 32)]
    assert data.train.file_sizes.tolist() == [len(data.train.bytes(i)) for i in range(8)]
    for index, size in enumerate(sizes):
        if min(source.train.widths[index], source.train.heights[index]) <= 32:
            assert data.train.bytes(index) == source.train.bytes(index)
            continue
        content = data.train.bytes(index)
        assert Image.open(io.BytesIO(content)).format == "JPEG"
        scaled = Image.fromarray(source.train.read(index)).resize(size, Image.Resampling.BILINEAR)
        expected = np.asarray(scaled).astype(int)
        difference = np.abs(data.train.read(index).astype(int) - expected)
        assert difference.mean() < 2.5  # what quality 90 loses
        assert difference.max() < 30


def test_quality_is_the_jpegs(tmp_path, folder):
    small, large = (pack(folder, tmp_path / str(q), shorter_side=32, quality=q) for q in (10, 95))
    assert small.train.file_sizes[0] < large.train.file_sizes[0]
    assert small.checksum != large.checksum


def test_an_image_too_long_for_a_jpeg_keeps_its_bytes(tmp_path, folder):
    content = picture(70_000, 3, "PNG")
    (folder / "val/a/long.png").write_bytes(content)
    data = pack(folder, tmp_path / "pack", shorter_side=2)
    assert max(data.val.widths) == 46_666
    (folder / "val/a/long.png").write_bytes(picture(70_000, 3, "PNG"))
    kept = pack(folder, tmp_path / "kept", shorter_side=3)
    assert kept.val.bytes(1) == content


def test_the_checksum_is_of_images_labels_and_classes_alone(tmp_path, folder):
    checksum = pack(folder, tmp_path / "1").checksum
    assert pack(folder, tmp_path / "2", shard_size=1, threads=1).checksum == checksum
    (folder / "train/a").rename(folder / "train/z")
    (folder / "val/a").rename(folder / "val/z")
    assert pack(folder, tmp_path / "3").checksum != checksum


def test_what_the_scan_left_out_is_named_in_the_pack_too(tmp_path, folder):
    (folder / "train/a/empty.jpg").write_bytes(b"")
    (folder / "val/a/same.jpg").write_bytes((folder / "train/a/0.JPEG").read_bytes())
    with pytest.warns(UserWarning, match="image_folder"):
        source = image_folder(folder)
    data = pack(source, tmp_path / "pack")
    assert data.broken == source.broken
    assert data.duplicates == source.duplicates
    assert len(data.broken) == len(data.duplicates) == 1
    assert "1 broken files left out; 1 validation images" in str(data)


def test_an_image_that_cannot_be_scaled_is_left_out_and_named(tmp_path, damaged):
    with pytest.warns(UserWarning, match=r"pack\(\): 1 images were left out.*train/a/9\.png': a PNG that is cut off"):
        data = pack(damaged, tmp_path / "pack", shorter_side=32)
    assert [path.path.name for path in data.broken] == ["9.png"]
    assert len(data.train) == 6
    assert data.train.name(4) == "train/ü b/0.JPEG"
    assert [data.train.read(i).shape[:2] for i in range(6)] == list(
        zip(data.train.heights, data.train.widths, strict=True)
    )


def test_or_ends_in_an_error_that_names_it_and_leaves_nothing(tmp_path, damaged):
    with pytest.raises(tm.ImageError, match=r"pack\(\): '.*train/a/9\.png': a PNG.*Remove it, or give on_bad_image="):
        pack(damaged, tmp_path / "pack", shorter_side=32, on_bad_image="raise")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_damage_that_was_packed_unread_is_named_when_it_is_read(tmp_path, damaged):
    data = pack(damaged, tmp_path / "pack")
    with pytest.raises(tm.ImageError, match=r"'.*pack/train/a/9\.png': a PNG that is cut off or damaged"):
        data.train.read(4)


def first_bytes(images: PackedImages) -> bytes:
    return images.bytes(0)[:4]


def test_a_split_travels_to_another_process_and_serves_many_threads(tmp_path, folder):
    train = pack(folder, tmp_path / "pack", shard_size=3000).train
    expected = [train.bytes(i) for i in range(6)]
    copy = pickle.loads(pickle.dumps(train))
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(copy.bytes, [i % 6 for i in range(300)])) == expected * 50
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as processes:
        assert processes.submit(first_bytes, train).result() == expected[0][:4]


def test_an_interrupted_pack_leaves_nothing(tmp_path, folder, monkeypatch):
    read = ImageFiles.bytes

    def interrupt(files, index):
        if index == 4:
            raise KeyboardInterrupt
        return read(files, index)

    monkeypatch.setattr(ImageFiles, "bytes", interrupt)
    with pytest.raises(KeyboardInterrupt):
        pack(folder, tmp_path / "pack", threads=2)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize("allowed", [20_000, 70_000])
def test_a_disk_that_is_full_is_said_and_nothing_left(tmp_path, folder, allowed):
    """Files may not grow beyond a limit, which the disk refuses in the same way; the first file needs 64 KiB."""
    source = image_folder(folder)
    noise = np.random.default_rng(0).integers(0, 255, (200, 300, 3), np.uint8)
    Image.fromarray(noise).save(folder / "train/a/0.JPEG", "JPEG", quality=100)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (allowed, limits[1]))
    try:
        with pytest.raises(OSError, match=r"pack\(\): '.*pack' could not be written \(.*File too large.*Nothing of it"):
            pack(source, tmp_path / "pack")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_target_that_is_there_is_not_touched(tmp_path, folder):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("mine")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileExistsError, match=r"pack\(\): 'out' is '.*file', which exists already\. Name another"):
        pack(folder, tmp_path / "file")
    with pytest.raises(FileExistsError, match="exists already and is not empty"):
        pack(folder, tmp_path / "full")
    assert is_pack(pack(folder, tmp_path / "empty").path)
    with pytest.raises(FileExistsError):
        pack(folder, tmp_path / "empty")
    with pytest.raises(NotADirectoryError, match=r"'.*file/pack' could not be written \(Not a directory\)"):
        pack(folder, tmp_path / "file" / "pack")
    with pytest.raises(ValueError, match="inside of what is packed"):
        pack(folder, folder / "pack")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "empty", "file", "full"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shorter_side": 0}, "'shorter_side' should be an integer of at least 1, not 0"),
        ({"quality": 101}, "'quality' should be an integer from 1 to 100, not 101"),
        ({"shard_size": 1.5}, "'shard_size' should be an integer of at least 1, not 1.5"),
        ({"threads": True}, "'threads' should be an integer"),
        ({"on_bad_image": "ignore"}, "'on_bad_image' must be 'skip' or 'raise', got 'ignore'"),
    ],
)
def test_arguments_that_make_no_sense_are_named(tmp_path, folder, options, message):
    with pytest.raises(ValueError, match=re.escape(f"pack(): {message}")):
        pack(folder, tmp_path / "pack", **options)


def test_what_is_no_pack_is_said(tmp_path, folder):
    assert not is_pack(folder)
    with pytest.raises(FileNotFoundError, match=r"packed\(\): '.*data' has no 'pack\.npz'\. tm\.data\.pack\(folder"):
        packed(folder)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        packed(tmp_path / "nowhere")


def changed_index(path, **changes):
    index = path / "pack.npz"
    with np.load(index) as file:
        arrays = dict(file) | changes
    np.savez(index, **{name: array for name, array in arrays.items() if array is not None})


def test_a_pack_that_is_newer_or_damaged_is_said(tmp_path, folder):
    path = pack(folder, tmp_path / "pack").path
    index = (path / "pack.npz").read_bytes()
    changed_index(path, version=np.int64(2))
    with pytest.raises(ValueError, match=r"is of format 2, and this version of theano_mgpu reads formats up to 1"):
        packed(path)
    (path / "pack.npz").write_bytes(index)
    changed_index(path, classes=None)
    with pytest.raises(ValueError, match=r"pack\.npz' has no 'classes'"):
        packed(path)
    flipped = bytearray(index)
    flipped[index.index(b"train/a/0.JPEG")] ^= 1
    for damage in (index[:1000], b"", bytes(flipped)):
        (path / "pack.npz").write_bytes(damage)
        with pytest.raises(ValueError, match=r"packed\(\): '.*pack\.npz' is damaged"):
            packed(path)


def test_a_shard_that_is_missing_cut_off_or_damaged_is_named(tmp_path, folder):
    data = pack(folder, tmp_path / "pack")
    shard = data.path / "train-00000.array_record"
    content, second = shard.read_bytes(), data.train.bytes(2)
    shard.write_bytes(content[:-10])
    with pytest.raises(ValueError, match=r"train-00000\.array_record' has \d+ bytes, where \d+ were written\. Copy"):
        packed(data.path)
    flipped = bytearray(content)
    flipped[content.index(second) + 100] ^= 1
    shard.write_bytes(flipped)
    train = packed(data.path).train
    assert train.bytes(1) == image_folder(folder).train.bytes(1)
    with pytest.raises(
        tm.ImageError, match=r"'.*pack/train/a/2\.JPEG' cannot be read, as its shard '.*train-00000\.array_rec"
    ):
        train.read(2)
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=r"the shard '.*train-00000\.array_record' is missing"):
        packed(data.path)
    with pytest.raises(tm.ImageError, match="is gone or damaged"):
        pickle.loads(pickle.dumps(train)).bytes(0)


def test_without_array_record_it_is_said_what_to_do(tmp_path, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "array_record.python", None)
    with pytest.raises(ImportError, match=r"array_record, which is published for Linux .* or train from the folder"):
        pack(folder, tmp_path / "pack")


def test_progress_is_shown_on_standard_error_when_asked_for(tmp_path, folder, capsys):
    pack(folder, tmp_path / "pack", progress=True)
    assert "packing images" in capsys.readouterr().err
