"""Crops, colour changes and erasing against their published descriptions, written again here."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from theano_mgpu.data import Augmentation, Box, ColourJitter, RandAugment, RandomErasing, TrivialAugment
from theano_mgpu.data.colours import (
    MODERATE,
    OPERATIONS,
    WIDE,
    Amount,
    erase,
    jitter,
    rand_augment,
    trivial_augment,
    turn_hue,
)
from theano_mgpu.data.crops import centre_crop, random_resized_crop
from theano_mgpu.data.image_sizes import ImageSizes


def noise(width, height, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize(("width", "height"), [(500, 375), (375, 500), (40, 31)])
def test_crops_have_the_shares_and_ratios_of_the_inception_paper(width, height):
    """The first try is uniform in area and log-uniform in ratio; what does not fit is drawn again."""
    rng = np.random.default_rng(0)
    boxes = [random_resized_crop(rng, width, height, (0.08, 1.0), (3 / 4, 4 / 3)) for _ in range(4000)]
    for box in boxes:
        assert 0 <= box.left <= box.left + box.width <= width
        assert 0 <= box.top <= box.top + box.height <= height
    drawn = np.random.default_rng(1)
    area = drawn.uniform(0.08, 1, 200_000) * width * height
    ratio = np.exp(drawn.uniform(math.log(3 / 4), math.log(4 / 3), 200_000))
    across, down = np.round(np.sqrt(area * ratio)), np.round(np.sqrt(area / ratio))
    fits = (across <= width) & (down <= height)
    found = np.array([(box.width * box.height, box.width / box.height) for box in boxes])
    assert abs(found[:, 0].mean() / (across * down)[fits].mean() - 1) < 0.04
    assert abs(np.log(found[:, 1]).mean() - np.log(across / down)[fits].mean()) < 0.012


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [(1000, 10, (493, 0, 13, 10)), (10, 1000, (0, 493, 10, 13)), (1, 1, (0, 0, 1, 1))],
)
def test_where_no_crop_fits_the_middle_is_taken(width, height, expected):
    """torchvision: the largest box of a ratio within range."""
    box = random_resized_crop(np.random.default_rng(0), width, height, (0.9, 1.0), (3 / 4, 4 / 3))
    assert box == expected


def test_every_place_of_a_crop_is_as_likely():
    rng = np.random.default_rng(0)
    lefts = [random_resized_crop(rng, 4, 4, (0.25, 0.25), (1, 1)).left for _ in range(3000)]
    counts = np.bincount(lefts, minlength=3)
    assert counts.sum() == 3000
    assert np.abs(counts / 3000 - 1 / 3).max() < 0.04


@pytest.mark.parametrize(("width", "height"), [(500, 375), (375, 500), (333, 500), (224, 224), (1, 1), (97, 41)])
def test_the_middle_is_what_pillow_resizes_and_cuts(width, height):
    """Resize of the shorter side, the longer rounded down, and a centre crop, as torchvision's presets do."""
    shorter = min(width, height)
    across, down = int(256 * width / shorter), int(256 * height / shorter)
    left, top = round((across - 224) / 2), round((down - 224) / 2)
    image = Image.fromarray(noise(width, height))
    expected = image.resize((across, down), Image.Resampling.BILINEAR).crop((left, top, left + 224, top + 224))
    box = centre_crop(width, height, 224, 256)
    from theano_mgpu.data import resized_crop

    difference = np.abs(resized_crop(np.asarray(image), box, 224, within="image") - np.asarray(expected).astype(int))
    assert difference.max() <= 1


def test_jitter_multiplies_by_factors_in_range_and_in_random_order():
    pixels = noise(16, 16)
    dark = ImageEnhance.Brightness(Image.fromarray(pixels))
    only = ColourJitter(brightness=0.4, contrast=0, saturation=0)
    found = [jitter(np.random.default_rng(seed), pixels, only) for seed in range(200)]
    means = np.array([image.mean() for image in found]) / pixels.mean()
    assert np.asarray(dark.enhance(0.6)).mean() / pixels.mean() - 0.01 <= means.min() < 0.65
    assert 1.2 < means.max() <= np.asarray(dark.enhance(1.4)).mean() / pixels.mean() + 0.01
    none = ColourJitter(brightness=0, contrast=0, saturation=0)
    np.testing.assert_array_equal(jitter(np.random.default_rng(0), pixels, none), pixels)
    two = ColourJitter(brightness=0.9, contrast=0.9, saturation=0)
    orders = set()
    for seed in range(20):
        rng = np.random.default_rng(seed)
        order = list(rng.permutation(["brightness", "contrast", "saturation", "hue"]))
        factors = 0.1 + 1.8 * rng.random(4)[:2]
        image = Image.fromarray(pixels)
        for name in sorted(("brightness", "contrast"), key=order.index):
            kind, factor = {
                "brightness": (ImageEnhance.Brightness, factors[0]),
                "contrast": (ImageEnhance.Contrast, factors[1]),
            }[name]
            image = kind(image).enhance(factor)
        orders.add(tuple(sorted(("brightness", "contrast"), key=order.index)))
        np.testing.assert_array_equal(jitter(np.random.default_rng(seed), pixels, two), np.asarray(image))
    assert len(orders) == 2


def test_hue_turns_along_the_circle():
    red = Image.new("RGB", (4, 4), (200, 20, 20))
    for turns, expected in [(1 / 3, (20, 200, 20)), (-1 / 3, (20, 20, 200)), (0, (200, 20, 20))]:
        assert np.abs(np.asarray(turn_hue(red, turns)).astype(int) - expected).max() <= 6  # a step of hue is 4


NEAREST, BILINEAR, AFFINE = Image.Resampling.NEAREST, Image.Resampling.BILINEAR, Image.Transform.AFFINE


def smooth(width, height):
    """A photograph's kind of image: neighbours are alike."""
    return Image.fromarray(noise(12, 12)).resize((width, height), Image.Resampling.BICUBIC)


def published(image, shear, translate, rotate, factor, bits, threshold, how=NEAREST):
    """The fourteen operations in Pillow's own words; solarize inverts what is at the threshold or above."""
    pixels = np.asarray(image)
    return {
        "identity": image,
        "shear_x": image.transform(image.size, AFFINE, (1, shear, 0, 0, 1, 0), how),
        "shear_y": image.transform(image.size, AFFINE, (1, 0, 0, shear, 1, 0), how),
        "translate_x": image.transform(image.size, AFFINE, (1, 0, translate, 0, 1, 0), how),
        "translate_y": image.transform(image.size, AFFINE, (1, 0, 0, 0, 1, translate), how),
        "rotate": image.rotate(rotate, how),
        "brightness": ImageEnhance.Brightness(image).enhance(factor),
        "colour": ImageEnhance.Color(image).enhance(factor),
        "contrast": ImageEnhance.Contrast(image).enhance(factor),
        "sharpness": ImageEnhance.Sharpness(image).enhance(factor),
        "posterize": ImageOps.posterize(image, bits),
        "solarize": Image.fromarray(np.where(pixels < threshold, pixels, 255 - pixels)),
        "autocontrast": ImageOps.autocontrast(image),
        "equalize": ImageOps.equalize(image),
    }


def test_rand_augments_operations_are_torchvisions_with_its_strengths():
    """Magnitude 9 of 31: shear 0.3, translation 150/331 of the image, 30 degrees, 0.9, 4 bits, times 9/30."""
    image = smooth(331, 331)
    expected = published(image, 0.09, 45, 9, 1.27, 7, 178.5)
    assert list(OPERATIONS) == list(expected)
    for name, result in expected.items():
        np.testing.assert_array_equal(OPERATIONS[name](image, Amount(9 / 30, MODERATE)), result, err_msg=name)
    other_way = np.asarray(OPERATIONS["translate_x"](image, Amount(-9 / 30, MODERATE)))
    np.testing.assert_array_equal(other_way[:, 45:], np.asarray(image)[:, :-45])
    # linspace(0, 150, 31)[11] is 55
    assert Amount(11 / 30, MODERATE).translation(331) == 55


#: Of TrivialAugmentWide's 31 strengths some: shear, pixels, degrees, factor - 1, bits that stay, solarize's threshold.
#: linspace(0, 0.99, 31), int(linspace(0, 32, 31)), linspace(0, 135, 31), linspace(0, 0.99, 31),
#: 8 - round(arange(31) / 5), linspace(255, 0, 31).
WIDE_SPACE = {
    0: (0.0, 0, 0.0, 0.0, 8, 255.0),
    1: (0.033, 1, 4.5, 0.033, 8, 246.5),
    3: (0.099, 3, 13.5, 0.099, 7, 229.5),
    7: (0.231, 7, 31.5, 0.231, 7, 195.5),
    10: (0.33, 10, 45.0, 0.33, 6, 170.0),
    15: (0.495, 16, 67.5, 0.495, 5, 127.5),
    20: (0.66, 21, 90.0, 0.66, 4, 85.0),
    29: (0.957, 30, 130.5, 0.957, 2, 8.5),
    30: (0.99, 32, 135.0, 0.99, 2, 0.0),
}


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("magnitude", WIDE_SPACE)
def test_trivial_augments_operations_have_the_wide_spaces_strengths(magnitude, sign, interpolation):
    image = smooth(97, 83)
    shear, pixels, degrees, enhance, bits, threshold = WIDE_SPACE[magnitude]
    how = BILINEAR if interpolation == "bilinear" else NEAREST
    expected = published(image, sign * shear, sign * pixels, sign * degrees, 1 + sign * enhance, bits, threshold, how)
    # 0.033 * 30 and 0.99 differ in their last bit, and so may a pixel's last one.
    amount = Amount(sign * magnitude / 30, WIDE, interpolation)
    assert list(OPERATIONS) == list(expected)
    for name, result in expected.items():
        difference = np.abs(np.asarray(OPERATIONS[name](image, amount)).astype(int) - np.asarray(result))
        assert np.count_nonzero(difference) <= 0.01 * difference.size, name
        assert name in ("shear_x", "shear_y", "rotate") or difference.max() <= 1, name


def drawn(image, augment, settings):
    pixels = np.asarray(image)
    return [augment(np.random.default_rng(seed), pixels, settings).tobytes() for seed in range(600)]


def test_rand_augment_draws_every_operation_both_ways():
    image = Image.fromarray(noise(24, 24))
    found = drawn(image, rand_augment, RandAugment(operations=1, magnitude=20))
    possible = {
        np.asarray(operation(image, Amount(sign * 20 / 30, MODERATE))).tobytes()
        for operation in OPERATIONS.values()
        for sign in (1, -1)
    }
    assert set(found) == possible
    two = rand_augment(np.random.default_rng(3), np.asarray(image), RandAugment(operations=2, magnitude=20))
    assert two.tobytes() not in found


def test_trivial_augment_draws_every_operation_at_every_strength_as_often():
    image = Image.fromarray(noise(24, 24))
    found = drawn(image, trivial_augment, TrivialAugment(bins=3, interpolation="bilinear"))
    possible = {
        (name, part): np.asarray(operation(image, Amount(part, WIDE, "bilinear"))).tobytes()
        for name, operation in OPERATIONS.items()
        for part in (-1, -0.5, 0, 0.5, 1)
    }
    assert set(found) == set(possible.values())
    # One of 14 operations, and of 3 strengths, is 14.3 of 600; the strength 0 has both signs.
    counts = {key: found.count(result) for key, result in possible.items()}
    for name in ("shear_x", "rotate", "contrast"):
        assert 14.3 / 2.5 < counts[name, -1] + counts[name, 1] < 14.3 * 2
    assert 43 / 1.5 < counts["equalize", 1] < 43 * 1.5, "one operation in 14, whatever its strength"


@pytest.mark.parametrize("fill", [(1, 2, 3), "noise"])
def test_erasing_fills_one_rectangle_of_the_right_share(fill):
    settings = RandomErasing(probability=0.4, fill=fill)
    shares = []
    for seed in range(600):
        pixels = np.full((100, 80, 3), 255, np.uint8)
        erase(np.random.default_rng(seed), pixels, settings)
        changed = (pixels != 255).any(axis=2)
        rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
        if len(rows):
            down, across = np.ptp(rows) + 1, np.ptp(columns) + 1
            shares.append(down * across / changed.size)
            assert fill == "noise" or (pixels[changed] == fill).all()
            assert fill == "noise" or changed.sum() == down * across
            assert 0.25 < down / across < 3.9
    assert abs(len(shares) / 600 - 0.4) < 0.06
    assert 0.015 < min(shares) < max(shares) < 0.34


def test_sizes_grow_as_ffcvs_do():
    """ffcv-imagenet's rn18_16_epochs.yaml: min_res 160, max_res 192, start_ramp 11, end_ramp 13."""
    sizes = ImageSizes.parse("160:192@11:13", 16)
    published = [int(np.round(np.interp(epoch, [11, 13], [160, 192]) / 32)) * 32 for epoch in range(16)]
    assert [sizes.at(epoch) for epoch in range(16)] == published
    grown = ImageSizes.parse("128:224", 16)
    published = [int(np.round(np.interp(epoch, [0, 13], [128, 224]) / 32)) * 32 for epoch in range(18)]
    assert [grown.at(epoch) for epoch in range(18)] == published
    assert set(published) == {128, 160, 192, 224}
    assert [ImageSizes.parse(224, None).at(epoch) for epoch in (0, 99)] == [224, 224]
    assert ImageSizes.parse("128:224", 1).at(1) == 224


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Augmentation(area=(0, 1)), r"'area' should be two numbers, the smaller first, above 0, at most 1"),
        (lambda: Augmentation(area=(0.5, 0.1)), "'area' should be two numbers, the smaller first"),
        (lambda: Augmentation(ratio=(1, 2, 3)), "'ratio' should be two numbers"),
        (lambda: Augmentation(flip=1.5), "'flip' should be a number of at least 0 and at most 1, not 1.5"),
        (lambda: Augmentation(flip=float("nan")), "'flip' should be a number"),
        (lambda: Augmentation(padding=-1), "'padding' should be an integer of at least 0, not -1"),
        (lambda: Augmentation(jitter=0.4), r"'jitter' should be tm.data.ColourJitter\(...\), not 0.4"),
        (lambda: Augmentation(resize=100).resize_for(224), "'resize' is 100, less than the image size, 224"),
        (lambda: ColourJitter(hue=0.7), "'hue' should be a number of at least 0 and at most 0.5"),
        (lambda: ColourJitter(brightness=-1), "'brightness' should be a number of at least 0, not -1"),
        (lambda: RandAugment(magnitude=31), "'magnitude' should be an integer of at least 0 and at most 30, not 31"),
        (lambda: RandAugment(operations=True), "'operations' should be an integer of at least 1, not True"),
        (lambda: TrivialAugment(bins=1), "'bins' should be an integer of at least 2, not 1"),
        (lambda: TrivialAugment(interpolation="cubic"), "'interpolation' should be 'nearest' or 'bilinear'"),
        (lambda: Augmentation(rand_augment=RandAugment(), trivial_augment=TrivialAugment()), "are both given"),
        (lambda: RandomErasing(fill=(0, 0, 300)), "'fill' should be 'noise' or three integers from 0 to 255"),
        (lambda: RandomErasing(probability="often"), "'probability' should be a number"),
        (lambda: ImageSizes.parse("130:224", 9), "multiples of 32, the smaller first"),
        (lambda: ImageSizes.parse("128:224", None), "Say by 'epochs'"),
        (lambda: ImageSizes.parse("128-224", 9), "two sizes such as '128:224'"),
        (lambda: ImageSizes.parse("128:224@9:3", 9), "the earlier epoch comes first"),
        (lambda: ImageSizes.parse(0, None), "'image_size' should be an integer of at least 1"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_default_is_crop_and_flip():
    default = Augmentation()
    assert (default.area, default.ratio, default.flip) == ((0.08, 1.0), (3 / 4, 4 / 3), 0.5)
    changes = (default.jitter, default.rand_augment, default.trivial_augment, default.erasing, default.padding)
    assert changes == (None,) * 5
    assert [default.resize_for(size) for size in (224, 176, 32)] == [256, 201, 37]
    assert Box(1, 2, 3, 4).scaled(2, 0.5) == (2, 1, 6, 2)
