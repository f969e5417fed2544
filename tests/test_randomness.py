"""Random draws below the cut: keyed by the generator's state and the shard, never by the device or by order."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.tensor.random.utils import RandomStream

import theano_mgpu as tm

SHARDS = 8
X = np.ones((64, 25), "float32")  # 200 entries a shard
ONE = np.float32(1)
THIRDS = np.full(3, 1 / 3, "float32")

# (next generator, draw) of a generator and a batch, and the mean and deviation of an entry.
DRAWS: dict[str, tuple[Callable, float, float]] = {
    "normal": (lambda rng, x: rng.normal(2 * ONE, 3 * ONE, size=x.shape, dtype="float32"), 2, 3),
    "normal around the batch": (lambda rng, x: rng.normal(x, ONE, dtype="float32"), 1, 1),
    "uniform": (lambda rng, x: rng.uniform(-ONE, ONE, size=x.shape, dtype="float32"), 0, 3**-0.5),
    "poisson": (lambda rng, x: rng.poisson(3 * ONE, size=x.shape), 3, 3**0.5),
    "bernoulli": (lambda rng, x: rng.bernoulli(0.3 * ONE, size=x.shape), 0.3, 0.21**0.5),
    "binomial": (lambda rng, x: rng.binomial(7, 0.3 * ONE, size=x.shape), 2.1, 1.47**0.5),
    "integers": (lambda rng, x: rng.integers(0, 10, size=x.shape), 4.5, 8.25**0.5),
    "categorical": (lambda rng, x: rng.categorical(THIRDS, size=x.shape), 1, (2 / 3) ** 0.5),
    "choice": (lambda rng, x: rng.choice(7, size=x.shape), 3, 2),
    "choice without replacement": (lambda rng, x: of_each_example(rng.choice(50, (25,), replace=False), x), 24.5, 14.5),
    "permutation": (lambda rng, x: of_each_example(rng.permutation(25), x), 12, 52**0.5),
    "dropout": (lambda rng, x: tm.nn.dropout(x, 0.2, rng), 1, 0.5),
}


def of_each_example(drawn, x):
    """One draw a shard, given to each of its examples: what keeps no batch axis could not be concatenated."""
    following, draw = drawn
    return following, pt.zeros_like(x, dtype=draw.dtype) + draw


class Drawing:
    """A step that gives every kind's draws as they are, each of a generator of its own, in a store of its own."""

    def __init__(self, contexts: tm.Contexts, draws: dict[str, Callable], **options) -> None:
        self.store = tm.ParameterStore(seed=1)
        total = self.store.param("total", (), 0.0)
        x = pt.matrix("x", shape=(None, X.shape[1]), dtype="float32")
        following, drawn = {}, {}
        for name, draw in draws.items():
            rng = self.store.rng(name)
            following[rng], drawn[name] = draw(rng, x)
        moments = [tm.average(draw.mean(dtype="float64").astype("float32")) for draw in drawn.values()]
        options = {"contexts": contexts, "shards": SHARDS, "on_unused_input": "ignore"} | options
        self.step = tm.function([x], drawn, updates={**following, total: total + sum(moments)}, **options)

    def draws(self, steps: int, batch: np.ndarray = X) -> dict[str, list[np.ndarray]]:
        """Of each kind, what the steps drew."""
        results = [self.step(batch) for _ in range(steps)]
        return {name: [result[name] for result in results] for name in results[0]}


def bits(arrays) -> list[bytes]:
    return [array.tobytes() for array in arrays]


ALL = {name: draw for name, (draw, _, _) in DRAWS.items()}
KINDS = pytest.mark.parametrize("kind", DRAWS, ids=lambda name: name.replace(" ", "-"))
ONE_KIND = {"uniform": ALL["uniform"]}


@pytest.fixture(scope="module")
def drawn(eight, tmp_path_factory):
    """Draws of four steps on 1, 4 and 8 devices, and on 2 of the last two, in a new store that was loaded.

    With them what the stores hold in the end. Compiling so many draws takes most of the time: each device count once.
    """
    found, sums = {}, {}
    path = tmp_path_factory.mktemp("stores") / "store.safetensors"
    for devices in (1, 4, 8):
        drawing = Drawing(eight[:devices], ALL)
        before = drawing.draws(2)
        if devices == 4:
            drawing.store.save(path)
        after = drawing.draws(2)
        found[devices] = {name: before[name] + after[name] for name in ALL}
        sums[devices] = drawing.store.checksum()
    again = Drawing(eight[:2], ALL)
    again.store.load(path)
    found[2], sums[2] = again.draws(2), again.store.checksum()
    return found, sums


@KINDS
def test_draws_have_the_same_bits_on_any_number_of_devices(drawn, kind):
    found, _ = drawn
    assert bits(found[1][kind]) == bits(found[4][kind]) == bits(found[8][kind])


@KINDS
def test_draws_go_on_exactly_from_a_file(drawn, kind):
    """In a new store and a new step, on another number of devices."""
    found, _ = drawn
    assert bits(found[2][kind]) == bits(found[4][kind][2:])


def test_what_is_made_of_draws_has_the_same_bits_too(drawn):
    """A parameter that adds up the averages of all draws, and the generators themselves."""
    _, sums = drawn
    assert len(set(sums.values())) == 1


@KINDS
def test_no_two_shards_and_no_two_steps_draw_alike(drawn, kind):
    found, _ = drawn
    shards = [shard for step in found[4][kind] for shard in np.split(step, SHARDS)]
    assert len(set(bits(shards))) == 4 * SHARDS


@KINDS
def test_draws_follow_their_distribution(drawn, kind):
    """Within five deviations of the mean of as many independent draws."""
    found, _ = drawn
    _, mean, deviation = DRAWS[kind]
    values = np.concatenate(found[4][kind]).astype("float64")
    of_each_shard = kind in ("permutation", "choice without replacement")
    independent = values.size // (len(X) // SHARDS) if of_each_shard else values.size
    assert values.mean() == pytest.approx(mean, abs=5 * deviation / np.sqrt(independent))
    assert values.std() == pytest.approx(deviation, rel=0.1)


def test_categories_come_as_often_as_their_probabilities_say(eight):
    p = np.array([0.2, 0.3, 0.5], "float32")
    kinds = {
        "categorical": lambda rng, x: rng.categorical(p, size=x.shape),
        "choice": lambda rng, x: rng.choice(3, p=p, size=x.shape),
        "a row each": lambda rng, x: rng.categorical(pt.zeros_like(x)[:, :, None] + p),
    }
    for name, (found,) in Drawing(eight[:2], kinds).draws(1).items():
        # Five deviations of 1,600 draws.
        frequencies = np.bincount(found.ravel(), minlength=3) / found.size
        np.testing.assert_allclose(frequencies, p, atol=0.065, err_msg=name)


# Of these PyTensor has no lowering to JAX: each against its own numpy and scipy.
LOWERED_HERE: dict[str, Callable] = {
    "beta binomial": lambda rng, x: rng.betabinom(9, 2 * ONE, 3 * ONE, size=x.shape),
    "negative binomial": lambda rng, x: rng.negative_binomial(4, 0.4 * ONE, size=x.shape),
    "geometric": lambda rng, x: rng.geometric(0.4 * ONE, size=x.shape),
    "triangular": lambda rng, x: rng.triangular(-ONE, 2 * ONE, 3 * ONE, size=x.shape, dtype="float32"),
    "half normal": lambda rng, x: rng.halfnormal(ONE, 2 * ONE, size=x.shape, dtype="float32"),
    "half Cauchy": lambda rng, x: rng.halfcauchy(ONE, 2 * ONE, size=x.shape, dtype="float32"),
    "lognormal": lambda rng, x: rng.lognormal(0.1 * x, 0.5 * ONE, dtype="float32"),
    "weibull": lambda rng, x: rng.weibull(1.5 * ONE, size=x.shape, dtype="float32"),
    "wald": lambda rng, x: rng.wald(2 * ONE, 3 * ONE, size=x.shape, dtype="float32"),
    "inverse gamma": lambda rng, x: rng.invgamma(4 * ONE, 2 * ONE, size=x.shape, dtype="float32"),
    "generalised gamma": lambda rng, x: rng.gengamma(2 * ONE, 1.5 * ONE, 3 * ONE, size=x.shape, dtype="float32"),
    "truncated exponential": lambda rng, x: rng.truncexpon(2 * ONE, ONE, 3 * ONE, size=x.shape, dtype="float32"),
}


@pytest.fixture(scope="module")
def lowered_here(eight):
    """Each kind's draws of one step."""
    return {name: found for name, (found,) in Drawing(eight, LOWERED_HERE).draws(1).items()}


@pytest.mark.slow
@pytest.mark.parametrize("kind", LOWERED_HERE, ids=lambda name: name.replace(" ", "-"))
def test_draws_follow_the_distribution_that_numpy_draws(lowered_here, kind):
    found = lowered_here[kind]
    x = pt.matrix("x", dtype="float32")
    _, draw = LOWERED_HERE[kind](pytensor.shared(np.random.default_rng(0)), x)
    expected = pytensor.function([x], draw, mode="FAST_COMPILE")(np.ones((4000, 25), "float32"))
    assert found.dtype == expected.dtype
    # The distance of Kolmogorov and Smirnov, which 1 in 10,000 samples of this size exceeds.
    values = np.unique(expected)
    parts = [np.searchsorted(np.sort(drawn.ravel()), values, "right") / drawn.size for drawn in (found, expected)]
    assert np.abs(np.subtract(*parts)).max() < 2.2 / np.sqrt(found.size)


@pytest.mark.slow
def test_these_draws_have_the_same_bits_on_one_device(eight, lowered_here):
    for name, (alone,) in Drawing(eight[:1], LOWERED_HERE).draws(1).items():
        assert bits([alone]) == bits([lowered_here[name]]), name


def test_the_place_of_the_update_changes_no_draw(eight, drawn):
    found, _ = drawn
    (name,) = ONE_KIND
    on_device = Drawing(eight[:4], ONE_KIND, update_on="device").draws(4)
    assert bits(on_device[name]) == bits(found[1][name])


@pytest.mark.parametrize("examples", [61, 3])
def test_an_uneven_batch_draws_the_same_on_any_number_of_devices(eight, examples):
    (name,) = ONE_KIND
    found = [Drawing(eight[:devices], ONE_KIND).draws(2, X[:examples])[name] for devices in (1, 2, 8)]
    assert len({tuple(bits(steps)) for steps in found}) == 1
    assert len(set(bits(np.concatenate(found[0])))) == 2 * examples


def test_generators_of_two_names_and_two_seeds_draw_apart(eight):
    def noise(seed: int, name: str) -> np.ndarray:
        rng = tm.ParameterStore(seed=seed).rng(name)
        x = pt.matrix("x", dtype="float32")
        following, drawn = rng.normal(size=x.shape)
        return tm.function([x], drawn, updates={rng: following}, contexts=eight[:2])(X)

    drawn = [noise(0, "a"), noise(0, "b"), noise(1, "a")]
    assert len(set(bits(drawn))) == 3
    assert bits([noise(0, "a")]) == bits(drawn[:1])


def test_two_draws_of_one_chain_differ(eight):
    rng = tm.ParameterStore(seed=0).rng("noise")
    x = pt.matrix("x", dtype="float32")
    following, first = rng.normal(size=x.shape)
    last, second = following.normal(size=x.shape)
    step = tm.function([x], [first, second], updates={rng: last}, contexts=eight[:2])
    assert len(set(bits([*step(X), *step(X)]))) == 4


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # PyTensor's, of the stream itself
def test_random_streams_are_keyed_too(eight):
    """PyTensor's stream makes a generator for each draw, and updates it by default."""
    found = set()
    for devices in (1, 2, 8):
        stream = RandomStream(seed=5)
        x = pt.matrix("x", dtype="float32")
        outputs = [stream.normal(size=x.shape), stream.uniform(size=x.shape)]
        step = tm.function([x], outputs, contexts=eight[:devices], shards=SHARDS)
        found.add(tuple(bits([drawn for _ in range(2) for drawn in step(X)])))
    assert len(found) == 1
    normal, uniform, again, _ = (np.frombuffer(drawn).reshape(X.shape) for drawn in found.pop())
    assert len(set(bits([*np.split(normal, SHARDS), *np.split(again, SHARDS)]))) == 2 * SHARDS
    assert abs(normal.mean()) < 5 / np.sqrt(normal.size)
    assert uniform.mean() == pytest.approx(0.5, abs=5 * 12**-0.5 / np.sqrt(uniform.size))


def test_without_an_update_every_call_draws_the_same(eight):
    rng = tm.ParameterStore(seed=0).rng("noise")
    x = pt.matrix("x", dtype="float32")
    _, drawn = rng.normal(size=x.shape)
    step = tm.function([x], drawn, contexts=eight[:2])
    assert bits([step(X)]) == bits([step(X)])
    assert len(set(bits(np.split(step(X), 2)))) == 2


def test_dropout_layers_are_trained_to_the_same_bits(eight):
    """Gradients see the mask that the forward pass saw, whichever device drew it."""
    found = set()
    for devices in (1, 2, 8):
        store = tm.ParameterStore(seed=0)
        x = pt.matrix("x", shape=(None, X.shape[1]), dtype="float32")
        hidden = tm.layers.dropout(store, "drop", tm.layers.dense(store, "hidden", x, 16), 0.5, train=True)
        loss = (tm.layers.dense(store, "out", hidden, 1) ** 2).mean()
        params = store.trainable()
        updates = tm.updates.sgd(tm.grad(loss, params), params, 0.1) | store.updates()
        step = tm.function([x], tm.average(loss), updates=updates, contexts=eight[:devices], shards=SHARDS)
        losses = [step(X) for _ in range(3)]
        assert len(set(bits(losses))) == 3
        found.add(store.checksum())
    assert len(found) == 1
