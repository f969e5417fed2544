"""mixup and CutMix: the papers' formulas in numpy with the numbers that were drawn, and the same bits everywhere."""

import functools

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

import theano_mgpu as tm
from theano_mgpu import layers, nn

SHARDS, HEIGHT, WIDTH, CLASSES = 8, 12, 16, 10
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (32, HEIGHT, WIDTH, 3)).astype("uint8")
# Of two images of a shard no two have a label in common, so that who was mixed with whom can be read off.
LABELS = np.tile(np.arange(4), SHARDS).astype("int32")

MIXERS = {
    "mixup": lambda images, labels, rng: nn.mixup(images, labels, 0.4, rng),
    "cutmix": lambda images, labels, rng: nn.cutmix(images, labels, 1.0, rng),
    "either": lambda images, labels, rng: nn.mixup_or_cutmix(images, labels, 0.4, 1.0, rng),
}


def variables(dtype="uint8"):
    return pt.tensor("images", shape=(None, HEIGHT, WIDTH, 3), dtype=dtype), pt.vector("labels", dtype="int32")


def mixing(contexts, mixer, shards=SHARDS):
    """A step that gives all of ``Mixed``, the weight once for each example."""
    images, labels = variables()
    rng = tm.ParameterStore(seed=4).rng("mixing")
    next_rng, mixed = MIXERS[mixer](images, labels, rng)
    weights = pt.zeros_like(mixed.labels, dtype="float32") + mixed.weight
    outputs = [mixed.images, mixed.labels, mixed.other_labels, weights]
    return tm.function([images, labels], outputs, updates={rng: next_rng}, contexts=contexts, shards=shards)


def by_shard(arrays, shards=SHARDS):
    return zip(*(np.split(array, shards) for array in arrays), strict=True)


def in_float64(images):
    return images.astype("float64")


@pytest.fixture(scope="module")
def drawn(eight):
    """Sixteen steps of each kind on four devices, 128 shards."""

    @functools.cache
    def steps(mixer):
        step = mixing(eight[:4], mixer)
        return [step(IMAGES, LABELS) for _ in range(16)]

    return steps


def shards_of(steps):
    """Of each shard of each step: images, other images, mixed images, weight."""
    for step in steps:
        for own, labels, mixed, first, second, weights in by_shard([IMAGES, LABELS, *step]):
            np.testing.assert_array_equal(first, labels)
            assert sorted(second) == sorted(labels)  # a permutation
            assert len(set(weights)) == 1
            assert mixed.dtype == np.float32
            yield own, own[[list(labels).index(label) for label in second]], mixed, float(weights[0])


def test_mixup_is_the_papers_formula(drawn):
    weights = []
    for own, other, mixed, weight in shards_of(drawn("mixup")):
        expected = weight * in_float64(own) + (1 - weight) * in_float64(other)
        np.testing.assert_allclose(mixed, expected, rtol=1e-5, atol=1e-4)
        weights.append(weight)
    assert len(set(weights)) == len(weights)
    # Beta(0.4, 0.4) has the mean 1/2 and the variance 1 / (4 * 1.8); three standard errors of 128 draws.
    assert np.mean(weights) == pytest.approx(0.5, abs=3 * (0.139 / 128) ** 0.5)
    assert np.var(weights) == pytest.approx(1 / 7.2, rel=0.3)


def box_of(own, other, mixed):
    """Rows and columns where each pixel is the other image's; elsewhere it is its own, and nothing else is there."""
    is_own, is_other = (mixed == own).all((0, 3)), (mixed == other).all((0, 3))
    assert (is_own | is_other).all()
    rows, columns = np.flatnonzero(~is_own.all(1)), np.flatnonzero(~is_own.all(0))
    expected = np.zeros((HEIGHT, WIDTH), bool)
    if len(rows):
        assert (np.diff(rows) == 1).all()
        assert (np.diff(columns) == 1).all()
        expected[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
    np.testing.assert_array_equal(~is_own, expected)
    return rows, columns


def test_cutmix_shows_a_box_of_the_other_image_and_weighs_by_its_area(drawn):
    whole, weights = [], []
    for own, other, mixed, weight in shards_of(drawn("cutmix")):
        if np.array_equal(own, other):
            continue  # mixed with itself, one time in 24
        rows, columns = box_of(own, other, mixed)
        assert weight == pytest.approx(1 - len(rows) * len(columns) / (HEIGHT * WIDTH), abs=1e-6)
        weights.append(weight)
        touches = {0, HEIGHT - 1} & set(rows) or {0, WIDTH - 1} & set(columns)
        if len(rows) and not touches:
            whole.append((len(rows), len(columns)))
    # In the image's proportion of 12 to 16, each side an even number below: algorithm 1 halves and rounds.
    sides = {(2 * (int(HEIGHT * r) // 2), 2 * (int(WIDTH * r) // 2)) for r in np.linspace(0, 1, 10_001)}
    assert len(whole) > 10
    assert set(whole) <= sides
    assert 0 <= min(weights) < 0.4
    assert max(weights) > 0.9


def test_one_of_both_is_drawn_for_each_shard(drawn):
    cuts = []
    for own, other, mixed, _ in shards_of(drawn("either")):
        if not np.array_equal(own, other):
            cuts.append(bool(((mixed == own).all((0, 3)) | (mixed == other).all((0, 3))).all()))
    # Four standard deviations of 120 draws; a weight next to 0 or 1 looks like a cut.
    assert 0.3 < np.mean(cuts) < 0.72
    assert len(set(cuts[:SHARDS])) == 2


def test_the_same_shards_mix_alike_on_any_number_of_devices(contexts, drawn):
    step = mixing(contexts, "either")
    for expected in drawn("either")[:3]:
        for array, wanted in zip(step(IMAGES, LABELS), expected, strict=True):
            assert array.tobytes() == wanted.tobytes()


def test_a_shard_of_one_example_and_shards_of_two_sizes_mix_within_themselves(eight):
    """Nine examples over eight shards: one pair, seven alone."""
    images, first, second, weights = mixing(eight[:4], "either")(IMAGES[:9], np.arange(9, dtype="int32"))
    np.testing.assert_array_equal(first, np.arange(9))
    alone = second == first
    assert alone.sum() >= 7
    assert np.abs(second - first).max() <= 1
    np.testing.assert_allclose(images[alone], IMAGES[:9][alone], rtol=1e-6, atol=1e-4)
    assert len(np.unique(weights)) > 1


def test_probabilities_at_the_ends_take_one_of_the_two(ops):
    images, labels = variables()
    for probability, is_cut in ((0, False), (1, True)):
        rng = pytensor.shared(np.random.default_rng(1))
        _, mixed = nn.mixup_or_cutmix(images, labels, 20.0, 20.0, rng, cutmix_probability=probability)
        values = ops.evaluate([mixed.images, mixed.other_labels], {images: IMAGES[:4], labels: LABELS[:4]})
        whole = (values[0] == IMAGES[:4]).all(-1) | (values[0] == IMAGES[values[1]]).all(-1)
        assert whole.all() == is_cut


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_cross_entropy_with_the_mixed_targets(ops, smoothing):
    images, labels = variables()
    logits = pt.matrix("logits", dtype="float32")
    _, mixed = nn.mixup(images, labels, 0.4, pytensor.shared(np.random.default_rng(0)))
    losses = nn.mixed_cross_entropy(logits, mixed, smoothing)
    z = np.random.default_rng(2).normal(0, 2, (32, CLASSES)).astype("float32")
    losses, targets, gradient, others, weights = ops.evaluate(
        [
            *(losses, mixed.targets(CLASSES, smoothing), pytensor.grad(losses.sum(), logits)),
            *(mixed.other_labels, pt.zeros_like(labels, dtype="float32") + mixed.weight),
        ],
        {images: IMAGES, labels: LABELS, logits: z},
    )

    weights = weights[:, None].astype("float64")
    expected = weights * np.eye(CLASSES)[LABELS] + (1 - weights) * np.eye(CLASSES)[others]
    expected = (1 - smoothing) * expected + smoothing / CLASSES
    np.testing.assert_allclose(targets, expected, atol=1e-6)
    p = np.exp(z.astype("float64"))
    p /= p.sum(1, keepdims=True)
    np.testing.assert_allclose(losses, -(expected * np.log(p)).sum(1), rtol=1e-5)
    np.testing.assert_allclose(gradient, p - expected, atol=1e-6)


@pytest.mark.parametrize("mixer", MIXERS)
def test_gradients_reach_float_images(ops, mixer):
    images, labels = variables("float32")
    _, mixed = MIXERS[mixer](images, labels, pytensor.shared(np.random.default_rng(0)))
    gradient = pytensor.grad((mixed.images**2).sum(), images)
    values = IMAGES.astype("float32")
    mixed, gradient = ops.evaluate([mixed.images, gradient], {images: values, labels: LABELS})
    # Euler: of a quadratic form x . gradient = 2 * form.
    np.testing.assert_allclose((values * gradient).sum(dtype="float64"), 2 * (mixed**2).sum(dtype="float64"), rtol=1e-5)


def test_layers_keep_the_generator_in_the_store_and_register_its_next_state():
    images, labels = variables()
    store = tm.ParameterStore()
    layers.mixup(store, "mixup", images, labels, 0.2)
    layers.cutmix(store, "cutmix", images, labels, 1.0)
    layers.mixup_or_cutmix(store, "either", images, labels, 0.2, 1.0, cutmix_probability=0.3)
    assert list(store.generators()) == ["mixup", "cutmix", "either"]
    assert list(store.updates()) == list(store.generators().values())


def test_a_network_learns_from_mixed_images(eight):
    images, labels = variables()
    store = tm.ParameterStore(seed=0)
    mixed = layers.mixup_or_cutmix(store, "mixing", images, labels, 0.2, 1.0)
    x = nn.normalise_images(mixed.images)
    logits = layers.dense(store, "fc", x.reshape((-1, HEIGHT * WIDTH * 3)), CLASSES)
    loss = nn.mixed_cross_entropy(logits, mixed, 0.1).mean()
    parameters = store.trainable()
    updates = tm.updates.sgd(tm.grad(loss, parameters), parameters, learning_rate=1e-3) | store.updates()
    step = tm.function([images, labels], tm.average(loss), updates=updates, contexts=eight[:2], shards=4)
    losses = [float(step(IMAGES, LABELS)) for _ in range(60)]
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:5])


def test_arguments_that_make_no_sense_are_named():
    images, labels = variables()
    rng = pytensor.shared(np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"mixup\(\): alpha is above 0; it came as 0\. Leave the call out"):
        nn.mixup(images, labels, 0, rng)
    with pytest.raises(ValueError, match=r"mixup_or_cutmix\(\): cutmix_alpha is above 0; it came as -1"):
        nn.mixup_or_cutmix(images, labels, 0.2, -1, rng)
    with pytest.raises(ValueError, match="cutmix_probability lies between 0 and 1; it came as 2"):
        nn.mixup_or_cutmix(images, labels, 0.2, 1, rng, cutmix_probability=2)
    with pytest.raises(TypeError, match=r"cutmix\(\): rng is a random generator variable"):
        nn.cutmix(images, labels, 1, np.random.default_rng(0))
    with pytest.raises(TypeError, match=r"mixup\(\): labels have type .* expected a vector of integers"):
        nn.mixup(images, pt.fmatrix(), 1, rng)
    with pytest.raises(ValueError, match=r"cutmix\(\): images have shape \(None,\)"):
        nn.cutmix(pt.vector(), labels, 1, rng)
    with pytest.raises(TypeError, match=r"mixup\(\): images have dtype int64"):
        nn.mixup(pt.tensor4(dtype="int64"), labels, 1, rng)
