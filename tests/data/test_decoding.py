"""Bytes to pixels: every format and mode against Pillow or a formula, and what is no image."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

import theano_mgpu as tm
from theano_mgpu.data import decode
from theano_mgpu.data.decoding import image_size, looks_whole


def picture(width=40, height=24):
    """A smooth picture without symmetry."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // width, y * 255 // height, (x + 2 * y) * 255 // (width + 2 * height)], -1).astype(
        "uint8"
    )


def encoded(image, kind, **options):
    file = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(file, kind, **options)
    return file.getvalue()


def chunk(name, body):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width, height, depth, colour, rows):
    """A PNG by the standard's own definition, for what Pillow does not write."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("WebP", {"lossless": True})])
def test_lossless_formats_give_the_pixels_that_were_written(kind, options):
    pixels = decode(encoded(picture(), kind, **options))
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable
    np.testing.assert_array_equal(pixels, picture())


# The two libraries may carry different releases of libjpeg-turbo, whose IDCT is the same to a level or two.
@pytest.mark.parametrize(
    ("mode", "subsampling", "tolerance"), [("RGB", 0, 2), ("RGB", 2, 2), ("L", 0, 2), ("CMYK", 0, 0), ("CMYK", 2, 0)]
)
def test_a_jpeg_is_what_pillow_reads(mode, subsampling, tolerance):
    data = encoded(Image.fromarray(picture()).convert(mode), "JPEG", quality=95, subsampling=subsampling)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    assert np.abs(decode(data) - expected).max() <= tolerance
    assert image_size(data) == (40, 24)
    # And what was written: not its negative, as CMYK files have it.
    written = np.asarray(Image.fromarray(picture()).convert(mode).convert("RGB")).astype(int)
    assert np.abs(decode(data) - written).mean() < 5


def test_the_first_frame_of_a_gif_is_taken():
    frames = [Image.new("P", (5, 3), index) for index in (0, 1)]
    for frame in frames:
        frame.putpalette([10, 20, 30, 200, 210, 220])
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(decode(data), np.full((3, 5, 3), (10, 20, 30), np.uint8))


def test_palettes_and_bits_become_rgb():
    palette = Image.fromarray(picture()).quantize(200)
    np.testing.assert_array_equal(decode(encoded(palette, "PNG")), np.asarray(palette.convert("RGB")))
    bits = np.arange(24).reshape(4, 6) % 3 == 0
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(bits), "PNG")), np.repeat(bits[..., None], 3, 2) * 255)


def test_what_is_transparent_lies_over_white():
    rgba = np.zeros((1, 4, 4), np.uint8)
    rgba[0, :, :3] = (100, 0, 200)
    rgba[0, :, 3] = (0, 51, 102, 255)
    expected = np.round(rgba[..., :3] * (rgba[..., 3:] / 255) + 255 * (1 - rgba[..., 3:] / 255))
    for kind, options in (("PNG", {}), ("WebP", {"lossless": True, "exact": True})):
        np.testing.assert_allclose(decode(encoded(rgba, kind, **options)), expected, atol=1)
    grey = Image.fromarray(rgba).convert("LA")
    np.testing.assert_array_equal(decode(encoded(grey, "PNG"))[0, 0], (255, 255, 255))
    palette = Image.new("P", (3, 1), 0)
    palette.putpalette([1, 2, 3, 4, 5, 6])
    palette.putpixel((1, 0), 1)
    for kind in ("PNG", "GIF"):
        pixels = decode(encoded(palette, kind, transparency=0))
        np.testing.assert_array_equal(pixels[0], [(255, 255, 255), (4, 5, 6), (255, 255, 255)])


def test_sixteen_bits_keep_the_upper_eight():
    values = [0, 255, 256, 30000, 65535]
    row = struct.pack(">5H", *values)
    expected = [[v // 256] * 3 for v in values]
    np.testing.assert_array_equal(decode(png(5, 1, 16, 0, [row]))[0], expected)
    colour = struct.pack(">15H", *np.repeat(values, 3))
    np.testing.assert_array_equal(decode(png(5, 1, 16, 2, [colour]))[0], expected)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WebP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"JPEG": {"quality": 95, "subsampling": 0}, "PNG": {}, "WebP": {"lossless": True}}[kind]
    data = encoded(picture(), kind, exif=exif, **options)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    np.testing.assert_allclose(decode(data), expected, atol=2)
    assert image_size(data) == (expected.shape[1], expected.shape[0])
    # The corner that is dark in the picture comes where this orientation puts it (EXIF 2.32, table 4.6.4).
    corner = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0), 5: (0, 0), 6: (0, -1), 7: (-1, -1), 8: (-1, 0)}
    assert decode(data)[corner[orientation]].max() < 30


def test_damaged_exif_is_no_reason_to_refuse_the_pixels():
    data = encoded(picture(), "JPEG", exif=b"Exif\0\0nonsense")
    assert decode(data).shape == (24, 40, 3)
    assert image_size(data) == (40, 24)


@given(width=st.integers(1, 90), height=st.integers(1, 90), least=st.tuples(st.integers(1, 100), st.integers(1, 100)))
@settings(max_examples=50, deadline=None)
def test_a_jpeg_decoded_at_its_own_scale_is_large_enough_and_no_larger_than_needed(width, height, least):
    data = encoded(picture(width, height), "JPEG")
    pixels = decode(data, min_width=least[0], min_height=least[1])
    scales = [(-(-height * n // 8), -(-width * n // 8)) for n in (1, 2, 4, 8)]
    enough = [size for size in scales if size[0] >= least[1] and size[1] >= least[0]]
    assert pixels.shape[:2] == (enough[0] if enough else (height, width))


def test_a_reduced_jpeg_shows_the_same_picture_and_knows_which_way_up_it_is():
    data = encoded(picture(400, 240), "JPEG", quality=95)
    pixels = decode(data, min_width=200, min_height=100)
    assert pixels.shape == (120, 200, 3)
    expected = picture(400, 240).reshape(120, 2, 200, 2, 3).mean((1, 3))
    assert np.abs(pixels - expected).mean() < 2
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded(picture(400, 240), "JPEG", exif=exif)
    assert decode(turned, min_width=120, min_height=200).shape == (200, 120, 3)
    assert decode(turned, min_width=100, min_height=101).shape == (200, 120, 3)
    assert decode(turned, min_width=121, min_height=100).shape == (400, 240, 3)
    assert decode(encoded(picture(), "PNG"), min_width=5, min_height=5).shape == (24, 40, 3)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no bytes, expected a JPEG, PNG, WebP or GIF"),
        (b"BM plain text", r"not a JPEG, PNG, WebP or GIF; it begins with b'BM plain'"),
        (b"\xff\xd8\xff\xe0", "a JPEG that is cut off or damaged"),
        (b"RIFF\x04\0\0\0WEBP", "a WebP that is cut off or damaged"),
        (b"GIF89a", "a GIF that is cut off or damaged"),
    ],
)
def test_what_is_no_image_is_refused(data, message):
    with pytest.raises(tm.ImageError, match=message):
        decode(data)
    with pytest.raises(tm.ImageError, match=message):
        image_size(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WebP", "GIF"])
@pytest.mark.parametrize("kept", [0.5, 0.95])
def test_a_file_that_is_cut_off_is_refused_and_does_not_look_whole(kind, kept):
    rng = np.random.default_rng(0)
    whole = encoded(rng.integers(0, 255, (60, 50, 3), np.uint8), kind)
    cut = whole[: int(len(whole) * kept)]
    assert looks_whole(whole, whole[-64:], len(whole))
    assert not looks_whole(cut, cut[-64:], len(cut))
    with pytest.raises(tm.ImageError, match=f"a {kind} that is cut off or damaged"):
        decode(cut)


def test_stray_bytes_in_a_jpeg_are_taken_as_pillow_takes_them():
    data = encoded(picture(400, 240), "JPEG", restart_marker_blocks=4)
    at = data.index(b"\xff\xd3")
    stray = data[:at] + b"\x00\x01\x02" + data[at:]
    assert decode(stray).shape == (240, 400, 3)


def test_an_enormous_image_is_refused_before_its_pixels_are_made():
    bomb = png(60_000, 60_000, 8, 2, [])
    with pytest.raises(tm.ImageError, match=r"60000 x 60000 = 3,600,000,000 pixels, more than max_pixels=89478485"):
        decode(bomb)
    assert image_size(bomb) == (60_000, 60_000)
    for kind in ("JPEG", "PNG", "WebP", "GIF"):
        data = encoded(picture(), kind)
        assert decode(data, max_pixels=960).shape == (24, 40, 3)
        with pytest.raises(tm.ImageError, match=r"40 x 24 = 960 pixels, more than max_pixels=959\. Scale it down"):
            decode(data, max_pixels=959)
