"""What comes is a function of cursor and seed, whatever makes it; every image counts once; nothing is left behind."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import theano_mgpu as tm
from theano_mgpu.data import (
    Augmentation,
    Batch,
    Batches,
    Box,
    ColourJitter,
    Examples,
    RandAugment,
    RandomErasing,
    TrivialAugment,
    pipeline,
    resized_crop,
)
from theano_mgpu.data.batch_reader import example_generator
from theano_mgpu.data.batches import batches_of
from theano_mgpu.data.colours import trivial_augment
from theano_mgpu.data.crops import random_resized_crop

ROOT = Path(__file__).parents[2]
EVERYTHING = Augmentation(
    jitter=ColourJitter(hue=0.1), rand_augment=RandAugment(), erasing=RandomErasing(probability=0.5)
)


def test_trivial_augment_is_what_follows_crop_and_flip():
    """With crops of the whole image and no flips, each image is one operation on it, at the strength that is drawn."""
    examples = Examples(np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8), np.arange(40))
    settings = TrivialAugment(interpolation="bilinear")
    only = Augmentation(padding=0, flip=0.0, trivial_augment=settings)
    with pipeline(examples, 40, train=True, image_size=8, seed=5, augmentation=only, workers=0) as made:
        ((images, labels),) = made.batches()
    changed = 0
    for image, index in zip(images, labels, strict=True):
        rng = example_generator(5, 0, index, 0)
        rng.random(), rng.integers(0, 1, 2)  # the flip's and the window's
        np.testing.assert_array_equal(image, trivial_augment(rng, examples.images[index], settings))
        changed += not np.array_equal(image, examples.images[index])
    assert changed > 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Thirty JPEGs of three classes, of several sizes, the largest worth a smaller scale."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for number in range(30):
        width, height = ((120, 90), (64, 80), (33, 40))[number % 3]
        coarse = rng.integers(0, 256, (6, 6, 3), np.uint8)
        path = root / "train" / f"class {number % 3}" / f"{number:02}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(path, quality=92)
    return root


@pytest.fixture
def images(folder):
    return tm.data.image_folder(folder, val_fraction=0.1).train


def numbered(count, side=8):
    """An image is its number in every pixel."""
    values = np.arange(count, dtype=np.uint8)[:, None, None, None]
    return Examples(np.broadcast_to(values, (count, side, side, 3)).copy(), np.arange(count, dtype=np.int32))


def taken(made, cursor, count):
    with made:
        return list(itertools.islice(made.batches_from(cursor), count))


def alike(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert (one.cursor, one.epoch) == (other.cursor, other.epoch)
        for array, same in zip(one.arrays, other.arrays, strict=True):
            assert array.dtype == same.dtype
            np.testing.assert_array_equal(array, same)


@pytest.mark.parametrize("train", [True, False])
def test_batches_are_a_function_of_the_cursor_whatever_the_workers(images, train):
    options = {"train": train, "image_size": 32, "seed": 3, "augmentation": EVERYTHING}
    whole = taken(pipeline(images, 6, workers=0, **options), 0, 11)
    for batch in whole[:4]:
        assert batch.arrays[0].shape == (6, 32, 32, 3) or not train
        assert (batch.arrays[0].dtype, batch.arrays[1].dtype) == (np.uint8, np.int32)
    for cursor in (1, 4, 7):
        alike(taken(pipeline(images, 6, workers=0, **options), cursor, 3), whole[cursor : cursor + 3])
    for workers in (1, 2) if train else (2,):
        alike(taken(pipeline(images, 6, workers=workers, prefetch=1, **options), 2, 9), whole[2:])
    other = taken(pipeline(images, 6, workers=0, **{**options, "seed": 4}), 0, 1)
    assert not np.array_equal(other[0].arrays[0], whole[0].arrays[0]) or not train


def test_an_example_looks_the_same_in_a_batch_of_another_size(images):
    def shown(batch_size):
        made = pipeline(images, batch_size, train=True, image_size=24, augmentation=EVERYTHING, workers=0)
        batches = list(made.batches())
        order = np.random.default_rng([0, 0]).permutation(len(images))[: sum(len(b[1]) for b in batches)]
        np.testing.assert_array_equal(np.concatenate([b[1] for b in batches]), images.labels[order])
        return dict(zip(order, np.concatenate([b[0] for b in batches]), strict=True))

    small, large = shown(4), shown(9)
    for index in small.keys() & large.keys():
        np.testing.assert_array_equal(small[index], large[index])


def test_an_epoch_ends_where_its_number_is_whole_and_the_next_has_another_order():
    made = pipeline(numbered(10), 4, train=True, image_size=8, workers=0)
    assert (made.batches_per_epoch, len(made), made.batch_size) == (2, 10, 4)
    batches = taken(made, 0, 6)
    assert [batch.epoch for batch in batches] == [0.5, 1, 1.5, 2, 2.5, 3]
    assert [batch.cursor for batch in batches] == [1, 2, 3, 4, 5, 6]
    orders = [np.concatenate([b.arrays[1] for b in batches[i : i + 2]]) for i in (0, 2, 4)]
    for epoch, order in enumerate(orders):
        np.testing.assert_array_equal(order, np.random.default_rng([0, epoch]).permutation(10)[:8])


def thirds(number):
    """Of a batch the first, second or last third, of uneven sizes; the second of less than three examples is empty."""
    return lambda count: slice(count * number // 3, count * (number + 1) // 3)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("options", [{}, {"workers": 1}, {"repeats": 2}, {"on_bad_image": "skip"}], ids=str)
def test_parts_of_batches_are_together_the_whole_ones(images, damaged, train, options):
    """Each of three ranks makes its own part, nothing else, and of the same examples the same."""
    if "repeats" in options and not train:
        pytest.skip("repeats are for training")
    source = damaged if "on_bad_image" in options else images
    options = {"train": train, "image_size": 16, "augmentation": EVERYTHING, "workers": 0, **options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pipeline(source, 4, **options) as made:
            whole = list(itertools.islice(made.batches_from(1), 2 * made.batches_per_epoch))
        parts = []
        for number in range(3):
            with pipeline(source, 4, **options) as made:
                parts.append(list(itertools.islice(made.batches_from(1, thirds(number)), len(whole))))
    joined = []
    for batches in zip(*parts, strict=True):
        assert len({(batch.cursor, batch.epoch) for batch in batches}) == 1
        assert all(len(batch.arrays[0]) < 4 for batch in batches)
        arrays = tuple(np.concatenate(arrays) for arrays in zip(*(batch.arrays for batch in batches), strict=True))
        joined.append(Batch(arrays, batches[0].cursor, batches[0].epoch))
    alike(joined, whole)


def test_workers_that_wait_make_the_part_that_is_asked_for():
    """A pipeline goes on where it was only for the same part."""
    with pipeline(numbered(9), 3, train=False, image_size=8, workers=0) as made:
        for part in (thirds(0), thirds(2), None, thirds(2), thirds(2)):
            shown = [labels.tolist() for _, labels in made.batches(part=part)]
            assert shown == [list(range(start, start + 3))[part(3) if part else slice(3)] for start in (0, 3, 6)]


@pytest.mark.parametrize("knows_parts", [True, False])
def test_parts_of_batches_in_memory_and_of_ones_own(knows_parts):
    class Own:
        def batches_from(self, cursor):
            return Batches(numbered(10), 4, seed=1).batches_from(cursor)

    source = Batches(numbered(10), 4, seed=1) if knows_parts else Own()
    for cursor in (0, 5):  # where a batch is cut as it is nowhere else
        whole = list(itertools.islice(source.batches_from(cursor), 7))
        parts = [list(itertools.islice(batches_of(source, cursor, thirds(n)), 7)) for n in range(3)]
        for batch, *of_ranks in zip(whole, *parts, strict=True):
            assert {(part.cursor, part.epoch) for part in of_ranks} == {(batch.cursor, batch.epoch)}
            for array, *arrays in zip(batch.arrays, *(part.arrays for part in of_ranks), strict=True):
                np.testing.assert_array_equal(np.concatenate(arrays), array)
                assert max(map(len, arrays)) < len(array) or len(array) == 1


def test_validation_shows_every_image_once_in_order(images):
    for batch_size, workers in ((4, 0), (5, 1), (100, 0)):
        with pipeline(images, batch_size, train=False, image_size=16, workers=workers) as made:
            for _ in range(2):
                batches = list(made.batches())
                np.testing.assert_array_equal(np.concatenate([labels for _, labels in batches]), images.labels)
            assert {len(labels) for _, labels in batches[:-1]} <= {batch_size}
    shown = np.concatenate([pixels for pixels, _ in batches])
    for index in range(0, len(images), 5):
        width, height = int(images.widths[index]), int(images.heights[index])
        shorter = min(width, height)
        image = Image.fromarray(images.read(index))
        image = image.resize((int(18 * width / shorter), int(18 * height / shorter)), Image.Resampling.BILINEAR)
        left, top = round((image.width - 16) / 2), round((image.height - 16) / 2)
        expected = np.asarray(image.crop((left, top, left + 16, top + 16))).astype(int)
        assert np.abs(shown[index] - expected).max() <= 1


class FullSize:
    """Another source: no smaller scale, no less exact pixels."""

    def __init__(self, images):
        self.images = images
        self.labels, self.widths, self.heights = images.labels, images.widths, images.heights

    def __len__(self):
        return len(self.images)

    def read(self, index, **least):
        return self.images.read(index)


def test_training_shows_the_published_crop_and_flip(images):
    """With the draws of one example's generator."""
    with pipeline(FullSize(images), 1, train=True, image_size=16, workers=0) as made:
        for batch in itertools.islice(made.batches_from(0), 12):
            index = int(np.random.default_rng([0, 0]).permutation(len(images))[batch.cursor - 1])
            rng = example_generator(0, 0, index, 0)
            width, height = int(images.widths[index]), int(images.heights[index])
            left, top, across, down = random_resized_crop(rng, width, height, (0.08, 1.0), (3 / 4, 4 / 3))
            image = Image.fromarray(images.read(index)).crop((left, top, left + across, top + down))
            expected = np.asarray(image.resize((16, 16), Image.Resampling.BILINEAR))
            expected = expected[:, ::-1] if rng.random() < 0.5 else expected
            assert np.abs(batch.arrays[0][0].astype(int) - expected).max() <= 1


def test_a_crop_is_never_decoded_at_less_than_its_size(images):
    asked = []

    class Watched(FullSize):
        def read(self, index, *, min_width=None, min_height=None):
            pixels = images.read(index, min_width=min_width, min_height=min_height)
            asked.append(pixels.shape[1] / images.widths[index])
            return pixels

    with pipeline(Watched(images), 1, train=True, image_size=16, workers=0) as made:
        for number, batch in enumerate(itertools.islice(made.batches_from(0), 27)):
            index = int(np.random.default_rng([0, 0]).permutation(len(images))[number])
            rng = example_generator(0, 0, index, 0)
            box = random_resized_crop(
                rng, int(images.widths[index]), int(images.heights[index]), (0.08, 1), (0.75, 4 / 3)
            )
            assert min(box.width, box.height) * asked[-1] >= 16 or asked[-1] == 1
            assert batch.cursor == number + 1
    assert min(asked) < 0.6


def test_padding_moves_the_image_over_black():
    examples = Examples(np.full((1, 8, 8, 3), 200, np.uint8), np.zeros(1, np.int32))
    moved = Augmentation(padding=2, flip=0)
    with pipeline(examples, 1, train=True, image_size=8, augmentation=moved, workers=0) as made:
        shown = [batch.arrays[0][0, :, :, 0] for batch in itertools.islice(made.batches_from(0), 200)]
    windows = {
        np.pad(np.full((8, 8), 200, np.uint8), 2)[y : y + 8, x : x + 8].tobytes() for y in range(5) for x in range(5)
    }
    assert {image.tobytes() for image in shown} == windows


def test_repeats_fill_a_batch_and_look_different():
    """torchvision's RASampler: each index so many times, in another process each time; the epoch as long as without."""
    examples = Examples(
        np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), np.uint8), np.arange(12, dtype=np.int32)
    )
    with pipeline(examples, 6, train=True, image_size=8, repeats=3, workers=0) as made:
        assert made.batches_per_epoch == 2
        batches = list(made.batches())
    first, second = np.split(np.random.default_rng([0, 0]).permutation(12)[:4], 2)
    np.testing.assert_array_equal(np.stack([labels for _, labels in batches]), [[*first] * 3, [*second] * 3])
    assert len({image.tobytes() for images, _ in batches for image in images}) == 12


def test_sizes_grow_with_the_epochs():
    with pipeline(numbered(4, 64), 2, train=True, image_size="32:96", epochs=4, workers=0) as made:
        shapes = [batch.arrays[0].shape[1:3] for batch in itertools.islice(made.batches_from(0), 8)]
        assert [made.image_size_at(epoch) for epoch in range(4)] == [32, 64, 64, 96]
    assert shapes == [(32, 32)] * 2 + [(64, 64)] * 4 + [(96, 96)] * 2
    assert pipeline(numbered(4), 2, train=False, image_size="32:96", epochs=4, workers=0).image_size_at(0) == 96


def test_evaluation_takes_a_pipeline():
    examples = numbered(11)

    def predict(pixels):
        return np.eye(11)[pixels[:, 4, 4, 0] // 2 * 2]  # right for even numbers

    with pipeline(examples, 4, train=False, image_size=8, workers=0) as made:
        found = tm.training.evaluate(predict, made)
        assert (found["examples"], found["top1"]) == (11, 6 / 11)
        assert tm.training.evaluate(predict, examples, 4)["top1"] == 6 / 11
        with pytest.raises(ValueError, match="'batch_size' belongs to the pipeline"):
            tm.training.evaluate(predict, made, 4)
    with pytest.raises(ValueError, match="'batch_size' is needed"):
        tm.training.evaluate(predict, examples)


@pytest.fixture
def damaged(tmp_path):
    """Ten images, two of which break in the middle: a scan does not see it."""
    rng = np.random.default_rng(0)
    for number in range(10):
        path = tmp_path / "train" / f"class {number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 20, 3), np.uint8)).save(path)
    for number in (2, 7):
        path = tmp_path / "train" / f"class {number % 2}" / f"{number}.png"
        content = bytearray(path.read_bytes())
        content[200:300] = bytes(100)
        path.write_bytes(content)
    (tmp_path / "val").mkdir()
    for name in ("class 0", "class 1"):
        (tmp_path / "val" / name).mkdir()
        Image.new("RGB", (20, 20)).save(tmp_path / "val" / name / "0.png")
    return tm.data.image_folder(tmp_path).train


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_is_named_and_ends_it(damaged, workers):
    with pipeline(damaged, 5, train=True, image_size=8, workers=workers) as made:
        assert len(made) == 10
        with pytest.raises(tm.ImageError, match=r"\d\.png': a PNG that is cut off or damaged"):
            list(made.batches())
        assert made.bad_images == 0


def test_a_broken_image_is_left_out_with_a_warning_that_names_it(damaged):
    def read(train, workers, epochs=2):
        with (
            pipeline(damaged, 5, train=train, image_size=8, workers=workers, on_bad_image="skip") as made,
            warnings.catch_warnings(record=True) as said,
        ):
            warnings.simplefilter("always")
            batches = [batch for epoch in range(epochs) for batch in made.batches(epoch)]
            assert made.bad_images == 2
        return batches, [str(warning.message) for warning in said]

    batches, said = read(train=True, workers=0)
    assert len(said) == 2
    assert {name for name in ("2.png", "7.png") for sentence in said if name in sentence} == {"2.png", "7.png"}
    assert all("another image is taken instead" in sentence for sentence in said)
    assert [len(labels) for _, labels in batches] == [5, 5, 5, 5]
    again, _ = read(train=True, workers=1)
    for (one, _), (other, _) in zip(batches, again, strict=True):
        np.testing.assert_array_equal(one, other)
    batches, said = read(train=False, workers=0, epochs=1)
    assert sum(len(labels) for _, labels in batches) == 8
    assert all("it is left out" in sentence for sentence in said)


def test_when_no_image_is_whole_that_is_said():
    class Broken:
        labels, widths, heights = np.zeros(3, int), np.full(3, 9), np.full(3, 9)

        def __len__(self):
            return 3

        def read(self, index, **least):
            raise tm.ImageError(f"image {index} is broken")

    for train in (True, False):
        made = pipeline(Broken(), 3, train=train, image_size=8, workers=0, on_bad_image="skip")
        with pytest.raises(tm.ImageError, match=r"none of the 3 images .*could be read; the .*image \d is broken$"):
            list(made.batches())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "'batch_size' should be an integer of at least 1, not 0"),
        ({"batch_size": 5}, "4 images do not fill a batch of 5"),
        ({"workers": -1}, "'workers' should be an integer of at least 0, not -1"),
        ({"workers": 1.0}, "'workers' should be an integer"),
        ({"prefetch": 0}, "'prefetch' should be an integer of at least 1"),
        ({"seed": -1}, "'seed' should be an integer of at least 0"),
        ({"repeats": 2, "train": False}, "repeats=2 is for training"),
        ({"augmentation": "randaug"}, r"'augmentation' should be tm.data.Augmentation\(...\), not 'randaug'"),
        ({"on_bad_image": "ignore"}, "'on_bad_image' should be 'raise' or 'skip', not 'ignore'"),
        ({"image_size": "big"}, "'image_size' should be"),
        ({"augmentation": Augmentation(resize=4), "train": False}, "'resize' is 4, less than the image size, 8"),
        ({"source": numbered(0)}, "'source' is empty"),
        ({"source": Examples(np.zeros((4, 8, 8)), np.zeros(4, int))}, "uint8 images of shape"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(change, message):
    arguments = {"source": numbered(4), "batch_size": 2, "train": True, "image_size": 8, **change}
    with pytest.raises(ValueError, match=message):
        pipeline(**arguments)


def test_what_is_no_source_is_refused():
    with pytest.raises(TypeError, match=r"'source' is a list without labels, widths, heights, read. Expected"):
        pipeline([1, 2], 1, train=True)
    made = pipeline(numbered(4), 2, train=True, image_size=8)
    for cursor in (-1, 1.5, True):
        with pytest.raises(ValueError, match="'cursor' should be an integer of at least 0"):
            made.batches_from(cursor)
    source = made.batches_from(0)
    next(source)
    made.close()
    with pytest.raises(ValueError, match="the pipeline was closed"):
        next(source)


def children(process):
    """Its descendants, by Linux's own account, zombies left out."""
    found = []
    for number in filter(str.isdigit, os.listdir("/proc")):
        try:
            state, parent = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[:2]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(parent) == process and state != "Z":
            found += [int(number), *children(int(number))]
    return found


SCRIPT = textwrap.dedent("""
    import sys, time
    import numpy as np
    import theano_mgpu as tm

    # No "if __name__": workers do not run this file again.
    print("begun", flush=True)
    class Grey:
        labels, widths, heights = np.zeros(8, int), np.full(8, 9), np.full(8, 9)
        def __len__(self):
            return 8
        def read(self, index, **least):
            return np.full((9, 9, 3), index, np.uint8)

    source = tm.data.pipeline(Grey(), 2, train=True, image_size=8, workers=2)
    batches = source.batches_from(0)
    with tm.training.StopSignals() as signals:
        print("images", len(next(batches)), flush=True)
        while sys.argv[1] != "end" and not signals.received:
            next(batches)
            time.sleep(0.02)
    for _ in range(20):
        next(batches)
    images, labels = next(batches).arrays
    print("finished", flush=True)
""")


@pytest.mark.parametrize(
    "how",
    ["SIGINT", "SIGKILL", *(pytest.param(how, marks=pytest.mark.slow) for how in ("end", "SIGTERM"))],
)
def test_workers_end_with_the_process_and_leave_signals_to_it(tmp_path, how):
    """Signals go to the whole group, as those of a terminal and of a cluster do."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    process = subprocess.Popen(
        [sys.executable, script, how],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    assert process.stdout.readline() == "images 2\n"
    workers = children(process.pid)
    if how == "SIGKILL":
        assert len(workers) >= 2
        process.kill()
    elif how != "end":
        os.killpg(process.pid, getattr(signal, how))
    out, error = process.communicate(timeout=60)
    if how != "SIGKILL":
        assert (process.returncode, out) == (0, "finished\n"), error
        assert "leaked" not in error
        assert "ignored" not in error
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and any(Path(f"/proc/{worker}").exists() for worker in workers):
        time.sleep(0.1)
    left = [worker for worker in workers if Path(f"/proc/{worker}").exists()]
    assert not left


def test_shared_memory_is_kept_as_long_as_a_batch_and_no_longer(images):
    before = set(os.listdir("/dev/shm"))
    with pipeline(images, 6, train=True, image_size=64, workers=1) as made:
        first = next(made.batches_from(0)).arrays[0]
        kept = first[2:4].copy()
        part = first[2:4]
        del first
        assert sum(len(batch) for batch in itertools.islice(made.batches_from(1), 20)) == 120
        np.testing.assert_array_equal(part, kept)
        del part
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and (left := set(os.listdir("/dev/shm")) - before):
        time.sleep(0.05)
    assert not [name for name in left if name.startswith("psm_")]


def memory(process):
    """Resident, in MB; shared pages included."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


@pytest.mark.slow
def test_memory_does_not_grow_over_ten_thousand_batches(images):
    with pipeline(images, 4, train=True, image_size=32, workers=2) as made:
        measured = []
        for batch in itertools.islice(made.batches_from(0), 10_001):
            if batch.cursor % 2500 == 1:
                measured.append([memory(process) for process in [os.getpid(), *children(os.getpid())]])
        before, *_, after = measured[1:]
        growth = np.subtract(after, before)
    assert len(after) >= 3
    assert growth.max() < 10, measured


def test_resized_crop_is_what_the_pipeline_writes():
    examples = Examples(np.random.default_rng(0).integers(0, 256, (3, 20, 30, 3), np.uint8), np.arange(3))
    whole = Augmentation(area=(1, 1), ratio=(1.5, 1.5), flip=1)
    with pipeline(examples, 3, train=True, image_size=8, augmentation=whole, workers=0) as made:
        images, labels = next(made.batches_from(0)).arrays
    for image, label in zip(images, labels, strict=True):
        np.testing.assert_array_equal(image, resized_crop(examples.images[label], Box(0, 0, 30, 20), 8, flip=True))
