"""The resize against Pillow's, and against the filter's definition."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from theano_mgpu.data import Box, bundled_photographs, resized_crop

ROOT = Path(__file__).parents[2]


def noise(width, height, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def by_definition(pixels, box, size):
    """The triangle filter in float64 and no rounding between, over the box alone."""

    def matrix(pixels_in):
        scale = pixels_in / size
        centres = (np.arange(size)[:, None] + 0.5) * scale
        weights = np.clip(1 - np.abs(np.arange(pixels_in) + 0.5 - centres) / max(scale, 1), 0, None)
        return weights / weights.sum(axis=1, keepdims=True)

    left, top, width, height = box
    part = pixels[top : top + height, left : left + width].astype(np.float64)
    return np.einsum("yh,xw,hwc->yxc", matrix(height), matrix(width), part)


@given(
    st.integers(1, 90), st.integers(1, 90), st.integers(1, 40), st.booleans(), st.data()
)  # fmt: skip
def test_every_box_is_the_triangle_filters(width, height, size, flip, data):
    across, down = data.draw(st.integers(1, width)), data.draw(st.integers(1, height))
    box = Box(data.draw(st.integers(0, width - across)), data.draw(st.integers(0, height - down)), across, down)
    pixels = noise(width, height)
    found = resized_crop(pixels, box, size, flip=flip)
    expected = by_definition(pixels, box, size)[:, :: -1 if flip else 1]
    assert found.dtype == np.uint8
    assert np.abs(found - expected).max() <= 0.501  # rounding, and float32


@pytest.mark.parametrize(
    ("box", "size"),
    [((0, 0, 500, 375), 224), ((13, 7, 300, 260), 224), ((101, 50, 90, 80), 224), ((3, 3, 450, 350), 32)],
)
def test_no_value_of_a_photograph_differs_from_pillows_by_more_than_one(box, size):
    path = next(photograph.path for photograph in bundled_photographs() if photograph.name == "coffee")
    image = Image.open(path).convert("RGB").resize((500, 375), Image.Resampling.BICUBIC)
    left, top, width, height = box
    cut = image.crop((left, top, left + width, top + height))
    expected = np.asarray(cut.resize((size, size), Image.Resampling.BILINEAR)).astype(int)
    difference = np.abs(resized_crop(np.asarray(image), Box(*box), size) - expected)
    assert difference.max() <= 1
    assert difference.mean() < 0.25


def test_a_box_within_an_image_sees_what_lies_around_it():
    pixels = noise(60, 50)
    box = Box(10.25, 7.5, 40.5, 31.75)
    right, bottom = box.left + box.width, box.top + box.height
    image = Image.fromarray(pixels)
    expected = image.resize((20, 20), Image.Resampling.BILINEAR, box=(box.left, box.top, right, bottom))
    difference = np.abs(resized_crop(pixels, box, 20, within="image") - np.asarray(expected).astype(int))
    assert difference.max() <= 1
    alone = resized_crop(pixels, box, 20)
    assert np.abs(alone - np.asarray(expected).astype(int)).max() > 1
    whole = resized_crop(pixels[7:40, 10:51], Box(0.25, 0.5, 40.5, 31.75), 20)
    np.testing.assert_array_equal(alone, whole)


def test_views_read_only_arrays_and_an_output_of_ones_own():
    pixels = noise(30, 20)
    expected = resized_crop(pixels, Box(2, 3, 20, 15), 8)
    shown = np.pad(pixels, ((1, 2), (3, 4), (0, 0)))[1:-2, 3:-4]
    shown.flags.writeable = False
    batch = np.zeros((3, 8, 8, 3), np.uint8)
    assert resized_crop(shown, Box(2, 3, 20, 15), 8, out=batch[1]) is not None
    np.testing.assert_array_equal(batch[1], expected)
    assert not batch[[0, 2]].any()


def test_what_is_no_box_or_no_image_is_refused():
    with pytest.raises(ValueError, match=r"Box\(.*\) is not within an image of 30 x 20 pixels"):
        resized_crop(noise(30, 20), Box(11, 0, 20, 20), 8)
    with pytest.raises(ValueError, match="not within"):
        resized_crop(noise(30, 20), Box(0, 0, 0, 20), 8)
    with pytest.raises(ValueError, match=r"uint8 \(height, width, 3\), not float64"):
        resized_crop(noise(30, 20) / 255, Box(0, 0, 20, 20), 8)


def test_it_compiles_where_no_folder_can_be_written_to(tmp_path):
    """Numba refuses to compile for a cache that it has no place for."""
    code = (
        "import numba.core.caching as c\n"
        "c.CacheImpl._locator_classes = []\n"
        "import numpy as np\n"
        "from theano_mgpu.data import Box, resized_crop\n"
        "print(resized_crop(np.full((9, 9, 3), 7, np.uint8), Box(0, 0, 9, 9), 4).sum())\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=environment, check=False
    )
    assert (done.returncode, done.stdout) == (0, f"{7 * 48}\n"), done.stderr
