"""Bad input gets an error that says what to do, before anything has changed; the next good call works."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from comparison import assert_close, states
from pytensor.compile import io

import theano_mgpu as tm
from theano_mgpu.arguments import In

CLASSES = 3
IMAGES = np.random.default_rng(0).standard_normal((8, 4)).astype("float32")
LABELS = np.arange(8, dtype="int32") % CLASSES
RATE = np.float32(0.1)


class Classifier:
    """A step with everything that a bad call could spoil: weights, momentum, a count, a random generator."""

    def __init__(self, contexts: tm.Contexts, update_on: str, shards: int | None = None) -> None:
        rng = np.random.default_rng(1)
        self.weight = pytensor.shared(rng.standard_normal((4, CLASSES)).astype("float32"), name="weight")
        self.velocity = pytensor.shared(np.zeros((4, CLASSES), "float32"), name="velocity")
        self.count = pytensor.shared(np.int64(0), name="count")
        self.generator = pytensor.shared(np.random.default_rng(2), name="generator")
        images, labels = pt.matrix("images", dtype="float32"), pt.ivector("labels")
        rate = pt.scalar("rate", dtype="float32")
        following, noise = pt.random.uniform(size=images.shape, rng=self.generator, return_next_rng=True)
        logits = (images + np.float32(1e-3) * noise.astype("float32")) @ self.weight
        loss = tm.nn.softmax_cross_entropy(logits, labels).mean()
        velocity = np.float32(0.9) * self.velocity - rate * tm.grad(loss, self.weight)
        updates = {
            self.velocity: velocity,
            self.weight: self.weight + velocity,
            self.count: self.count + tm.total(images.shape[0]),
            self.generator: following,
        }
        self.step = tm.function(
            [images, labels, rate],
            {"loss": tm.average(loss), "logits": logits},
            updates=updates,
            contexts=contexts,
            update_on=update_on,
            shards=shards,
            name="train",
        )

    def variables(self) -> list[Any]:
        return [self.weight, self.velocity, self.count, self.generator]

    def good(self) -> float:
        return float(self.step(IMAGES, LABELS, RATE)["loss"])


@pytest.fixture(scope="module", params=["host", "device"])
def classifier(request: pytest.FixtureRequest, eight: tm.Contexts) -> Classifier:
    """One for all bad calls: every one leaves it as it was, and able to go on."""
    made = Classifier(eight[:4], request.param)
    made.good()
    return made


def changed(array: np.ndarray, value: Any, position: Any = -1) -> np.ndarray:
    array = array.copy()
    array[position] = value
    return array


BAD_CALLS = [
    # name, call, error, what its message says
    ("wrong ndim", lambda s: s(IMAGES[0], LABELS, RATE), TypeError,
     r"train\(\): 'images' must be float32 of shape \(any, any\), got float32 of shape \(4,\).*2 axes.*x\[None\]"),
    ("labels with a column", lambda s: s(IMAGES, LABELS[:, None], RATE), TypeError,
     r"'labels' must be int32 of shape \(any\), got int32 of shape \(8, 1\).*1 axes"),
    ("a vector for a scalar", lambda s: s(IMAGES, LABELS, np.ones(2, "float32")), TypeError,
     r"'rate' must be a float32 scalar, got float32 of shape \(2,\)"),
    ("wrong width", lambda s: s(IMAGES[:, :3], LABELS, RATE), ValueError,
     r"train\(\): .*does not fit its inputs float32\(2, 3\).*'images' float32\(8, 3\)"),
    ("width one", lambda s: s(IMAGES[:, :1], LABELS, RATE), ValueError, r"train\(\): .*'images' float32\(8, 1\)"),
    ("strings", lambda s: s(IMAGES, list("abcabcab"), RATE), (TypeError, ValueError),
     r"train\(\): 'labels' must be int32 of shape \(any\), got a list, as an array <U1.*Numbers that fit int32"),
    ("strings in numbers' place", lambda s: s(IMAGES.astype(str), LABELS, RATE), (TypeError, ValueError),
     r"'images' must be float32.*got <U"),
    ("complex", lambda s: s(IMAGES.astype("complex64"), LABELS, RATE), TypeError,
     r"'images' must be float32.*got complex64.*Numbers that fit float32"),
    ("float64", lambda s: s(IMAGES.astype("float64"), LABELS, RATE), TypeError,
     r"'images' must be float32.*got float64.*astype\('float32'\).*allow_input_downcast"),
    ("float labels", lambda s: s(IMAGES, LABELS.astype("float32"), RATE), TypeError, r"'labels' must be int32.*astype"),
    ("int64 beyond int32", lambda s: s(IMAGES, changed(LABELS.astype("int64"), 2**40), RATE), TypeError,
     r"'labels' must be int32.*got int64"),
    ("objects", lambda s: s([object()] * 8, LABELS, RATE), (TypeError, ValueError), r"'images' must be float32"),
    ("none", lambda s: s(None, LABELS, RATE), (TypeError, ValueError), r"'images' must be float32"),
    ("ragged lists", lambda s: s([[1.0], [1.0, 2.0]], LABELS, RATE), (TypeError, ValueError),
     r"'images' must be float32.*list that is no array"),
    ("a symbolic variable", lambda s: s(pt.matrix("x"), LABELS, RATE), TypeError, r"'images' must be float32"),
    ("lengths that differ", lambda s: s(IMAGES, LABELS[:7], RATE), ValueError,
     r"train\(\): 'labels' has 7 examples but 'images' has 8\..*same length.*broadcast="),
    ("an empty batch", lambda s: s(IMAGES[:0], LABELS[:0], RATE), ValueError,
     r"train\(\): 'images' is an empty batch; at least one example"),
    ("missing", lambda s: s(IMAGES), TypeError,
     r"train\(\): missing 'labels', 'rate'; it takes 'images', 'labels', 'rate'"),
    ("nothing", lambda s: s(), TypeError, r"train\(\): missing 'images', 'labels', 'rate'"),
    ("surplus", lambda s: s(IMAGES, LABELS, RATE, 1), TypeError,
     r"train\(\): takes 3 inputs \('images', 'labels', 'rate'\), but 4 were given"),
    ("unknown", lambda s: s(IMAGES, LABELS, rates=RATE), TypeError,
     r"train\(\): no input is named 'rates'; there are 'images', 'labels', 'rate'\. Did you mean 'rate'\?"),
    ("given twice", lambda s: s(IMAGES, LABELS, RATE, images=IMAGES), TypeError,
     r"train\(\): 'images' was given by position and by name"),
    ("a label too large", lambda s: s(IMAGES, changed(LABELS, CLASSES), RATE), (ValueError, IndexError),
     r"(?i)train\(\): .*label.*3"),
    ("a negative label", lambda s: s(IMAGES, changed(LABELS, -1, 0), RATE), (ValueError, IndexError),
     r"(?i)train\(\): .*label.*-1"),
    ("nan", lambda s: s(changed(IMAGES, np.nan, (7, 0)), LABELS, RATE), tm.NonFiniteError,
     r"train\(\): call \d+ would write NaN or infinity to velocity, weight; shards \[3\] .*No parameter.*nonfinite="),
    ("infinity", lambda s: s(changed(IMAGES, np.inf, (2, 0)), LABELS, RATE), tm.NonFiniteError,
     r"train\(\): .*velocity, weight; shards \[1\]"),
    ("an infinite learning rate", lambda s: s(IMAGES, LABELS, np.inf), tm.NonFiniteError,
     r"train\(\): .*velocity, weight; every shard's averages are finite"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), [pytest.param(*case[1:], id=case[0]) for case in BAD_CALLS])
def test_a_bad_call_changes_nothing_and_says_what_to_do(
    classifier: Classifier, call: Callable[[tm.Step], Any], error: Any, message: str
):
    before = states(*classifier.variables())
    with pytest.raises(error, match=f"(?s){message}"):
        call(classifier.step)
    assert states(*classifier.variables()) == before
    assert np.isfinite(classifier.good())
    assert states(*classifier.variables()) != before


def test_after_every_bad_call_a_step_does_what_it_does_without_them(eight):
    """The same bits after bad calls as if they had never been made."""
    tried, undisturbed = Classifier(eight[:2], "host"), Classifier(eight[:2], "host")
    for _, call, error, _ in BAD_CALLS[3::8]:
        with pytest.raises(error):
            call(tried.step)
        assert tried.good() == undisturbed.good()
    assert states(*tried.variables()) == states(*undisturbed.variables())


def test_a_failing_shard_in_a_later_round_changes_nothing(eight):
    """Eight shards over two devices: the first rounds have run when the last one fails."""
    made = Classifier(eight[:2], "host", shards=8)
    before = states(*made.variables())
    with pytest.raises(tm.NonFiniteError, match=r"shards \[7\]"):
        made.step(changed(IMAGES, np.nan, (7, 0)), LABELS, RATE)
    with pytest.raises((ValueError, IndexError), match=r"-1"):
        made.step(IMAGES, changed(LABELS, -1), RATE)
    assert states(*made.variables()) == before
    assert np.isfinite(made.good())


def test_a_variable_of_another_shape_is_refused_at_the_call(eight):
    """Also where the step only writes it, and was compiled for the right shape before."""
    x, mean = pt.matrix("x", dtype="float32"), pytensor.shared(np.zeros(4, "float32"), name="mean")
    step = tm.function([x], updates={mean: tm.average(x.mean(0))}, contexts=eight[:2])
    step(IMAGES)
    mean.set_value(np.zeros(5, "float32"))
    with pytest.raises(ValueError, match=r"new value of mean has shape \(4,\), but the variable has \(5,\)\. Reduce"):
        step(IMAGES)
    assert mean.get_value().tolist() == [0] * 5
    mean.set_value(np.zeros(4, "float32"))
    step(IMAGES)
    assert_close(mean.get_value(), IMAGES.mean(0))


@pytest.mark.parametrize(
    "output",
    [
        lambda x: x.sum(0),
        lambda x: x @ x.T,
        lambda x: pt.concatenate([x, x], axis=0),
        lambda x: x.T,
        lambda x: x[:1],
        lambda x: x.reshape((-1,)),
    ],
    ids=["summed", "pairs of examples", "doubled", "transposed", "first", "flattened"],
)
def test_an_output_without_one_row_an_example_is_refused_at_the_first_call(eight, output):
    x = pt.matrix("x", dtype="float32")
    step = tm.function([x], output(x), contexts=eight[:2], name="embed")
    for values in (IMAGES, IMAGES[:4]):
        with pytest.raises(ValueError, match=r"embed\(\): outputs: .*without passing an average.*row.*tm\.average"):
            step(values)


def test_synchronised_averages_need_all_shards_at_once(eight):
    x = pt.matrix("x", dtype="float32")
    spread = tm.average(((x - tm.average(x.mean(0))) ** 2).mean())
    step = tm.function([x], spread, contexts=eight[:4], name="train")
    assert_close(step(IMAGES), np.asarray(((IMAGES - IMAGES.mean(0)) ** 2).mean()))
    step = tm.function([x], spread, contexts=eight[:4], shards=8, name="train")
    with pytest.raises(
        ValueError, match=r"train\(\): .*synchronised.*8 shards take more on 4 devices.*at most as many"
    ):
        step(IMAGES)


# What is refused before a step exists

x = pt.matrix("x", dtype="float32")
y = pt.matrix("y", dtype="float32")
scalar = pt.scalar("scalar", dtype="float32")
weight = pytensor.shared(np.ones(4, "float32"), name="weight")
other = pytensor.shared(np.ones(4, "float32"), name="other")
mean = tm.average((x * weight).mean())
gradient = pytensor.grad((x * weight).mean(), weight)
double = pt.matrix("x", dtype="float64")

BAD_GRAPHS = [
    ("an update without an average", lambda: {"inputs": [x], "updates": {weight: weight - gradient}}, tm.CutError,
     r"updates: the new value of weight depends on the batch \(.* <- x\).*tm\.average.*tm\.grad"),
    ("a scalar output without an average", lambda: {"inputs": [x], "outputs": x.mean()}, tm.CutError,
     r"outputs: the scalar .*depends on the batch .*tm\.average"),
    ("an update of another dtype", lambda: {"inputs": [x], "updates": {weight: weight.astype("float64")}}, TypeError,
     r"updates: the new value of weight is .*float64.*but the variable is .*float32.*astype\('float32'\)"),
    ("an update of other axes", lambda: {"inputs": [], "updates": {weight: weight.sum()}}, TypeError,
     r"updates: the new value of weight .*reduce it to that shape"),
    ("an update of no variable", lambda: {"inputs": [x], "updates": {x: x}}, TypeError,
     r"updates: expected a shared variable to update, got x"),
    ("one variable updated twice", lambda: {"inputs": [], "updates": [(weight, weight * 2), (weight, weight * 3)]},
     ValueError, r"updates: weight is updated twice; give it one"),
    ("updates that are no pairs", lambda: {"inputs": [], "updates": [weight]}, TypeError,
     r"updates: expected a dict or pairs"),
    ("an unused input", lambda: {"inputs": [x, y], "outputs": mean}, ValueError,
     r"inputs: 'y' is not used by any output or update.*on_unused_input='ignore'"),
    ("an input that is not given", lambda: {"inputs": [x], "outputs": tm.average((x * y).mean())}, ValueError,
     r"inputs: the graph needs y, which is no input\. Add it to inputs"),
    ("an input twice", lambda: {"inputs": [x, x], "outputs": mean}, ValueError, r"inputs: x stands 2 times"),
    ("two inputs of one name", lambda: {"inputs": [x, double], "outputs": tm.average((x * double).mean())}, ValueError,
     r"inputs: 2 inputs are named 'x'"),
    ("a shared variable as input", lambda: {"inputs": [weight], "outputs": weight * 2}, TypeError,
     r"inputs\[0\]: expected a symbolic variable.*got weight.*Shared variables"),
    ("a number as input", lambda: {"inputs": [3], "outputs": mean}, TypeError,
     r"inputs\[0\]: expected a symbolic variable"),
    ("inputs that are no list", lambda: {"inputs": x, "outputs": mean}, TypeError, r"inputs: expected a list"),
    ("an updating input", lambda: {"inputs": [io.In(scalar, update=scalar + 1)], "outputs": scalar * 2}, ValueError,
     r"inputs\[0\]: In\(\.\.\., update=\.\.\.\) is not supported; use a shared variable"),
    ("givens that replace an input", lambda: {"inputs": [x], "outputs": mean, "givens": {x: x * 2}}, ValueError,
     r"givens: x is an input, so it cannot be replaced too"),
    ("givens of another type", lambda: {"inputs": [y], "outputs": mean, "givens": {x: y.sum(0)}}, TypeError,
     r"givens: x is .*but its replacement is .*Cast or reshape"),
    ("givens twice", lambda: {"inputs": [y], "outputs": mean, "givens": [(x, y), (x, y * 2)]}, ValueError,
     r"givens: x is replaced twice"),
    ("a mode", lambda: {"inputs": [x], "outputs": mean, "mode": "FAST_RUN"}, TypeError,
     r"function\(\): mode= is not supported: .*XLA.*pytensor\.function"),
    ("an unknown option", lambda: {"inputs": [x], "outputs": mean, "update": {}}, TypeError,
     r"function\(\): update= is not supported"),
    ("no default updates", lambda: {"inputs": [x], "outputs": mean, "no_default_updates": True}, TypeError,
     r"no_default_updates= is not supported"),
    ("an unknown place of update", lambda: {"inputs": [x], "outputs": mean, "update_on": "gpu"}, ValueError,
     r"update_on: expected one of 'host', 'device', got 'gpu'"),
    ("an unknown way with NaN", lambda: {"inputs": [x], "outputs": mean, "nonfinite": "warn"}, ValueError,
     r"nonfinite: expected one of 'raise', 'skip', 'ignore', got 'warn'"),
    ("an unknown way with unused inputs", lambda: {"inputs": [x], "outputs": mean, "on_unused_input": True}, ValueError,
     r"on_unused_input: expected one of"),
    ("an unknown precision", lambda: {"inputs": [x], "outputs": mean, "precision": "float8"}, ValueError,
     r"precision: expected one of 'float32', 'bfloat16', 'float16', 'float64', got 'float8'"),
    ("a precision that is no name, before any device is looked up",
     lambda: {"inputs": [x], "outputs": mean, "precision": ["float32"], "contexts": "nowhere"}, ValueError,
     r"precision: .*\['float32'\]"),
    ("no shards", lambda: {"inputs": [x], "outputs": mean, "shards": 0}, ValueError, r"shards: .* or \"auto\", got 0"),
    ("half a shard", lambda: {"inputs": [x], "outputs": mean, "shards": 1.5}, ValueError,
     r"shards: .*whole number.*got 1\.5"),
    ("broadcast of no input", lambda: {"inputs": [x], "outputs": mean, "broadcast": [y]}, ValueError,
     r"broadcast: y is not among the inputs"),
    ("broadcast of one variable", lambda: {"inputs": [x], "outputs": mean, "broadcast": x}, TypeError,
     r"broadcast: expected a list of inputs, got x"),
    ("wrong context names", lambda: {"inputs": [x], "outputs": mean, "contexts": "gpu0"}, ValueError,
     r"contexts: 'spec' is 'gpu0'.*devices here are .*cpu0"),
    ("a malformed map", lambda: {"inputs": [x], "outputs": mean, "contexts": "dev0=cpu0->dev1"}, ValueError,
     r"contexts: 'dev0=cpu0->dev1'.*name->cuda0"),
    ("more devices than exist", lambda: {"inputs": [x], "outputs": mean, "contexts": "cpu:9"}, RuntimeError,
     r"contexts: \"cpu:9\" asks for 9 .*already made 8"),
    ("a list of names", lambda: {"inputs": [x], "outputs": mean, "contexts": ["cpu0"]}, TypeError,
     r"contexts: expected tm\.contexts\(\.\.\.\).*\['cpu0'\]"),
    ("a default of another type", lambda: {"inputs": [x, In(scalar, value="high")], "outputs": mean * scalar},
     (TypeError, ValueError), r"In\(\): 'scalar' must be a float32 scalar, got a str"),
    ("an output that is no variable", lambda: {"inputs": [x], "outputs": [mean, object()]}, TypeError,
     r"outputs\[1\]: expected a symbolic variable, got <object"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "error", "message"), [pytest.param(*case[1:], id=case[0]) for case in BAD_GRAPHS])
def test_a_bad_graph_is_refused_before_there_is_a_step(eight, given, error, message):
    before = states(weight, other)
    with pytest.raises(error, match=f"(?s){message}"):
        tm.function(**{"contexts": eight[:2], **given()})
    assert states(weight, other) == before


def test_all_but_inputs_and_outputs_are_given_by_name():
    """``pytensor.function`` has them in another order."""
    with pytest.raises(TypeError, match="positional"):
        tm.function([x], mean, {weight: weight * 2})


def test_an_unused_input_is_warned_of_or_ignored_where_asked(eight):
    with pytest.warns(UserWarning, match="'y' is not used"):
        tm.function([x, y], mean, contexts=eight[:2], on_unused_input="warn")
    step = tm.function([x, y], mean, contexts=eight[:2], on_unused_input="ignore")
    assert_close(step(IMAGES, IMAGES), np.asarray(IMAGES.mean()))


def test_an_update_of_another_shape_is_refused_at_the_first_call(eight):
    """Lengths are known only then; nothing is written."""
    for update_on in ("host", "device"):
        step = tm.function(
            [x], updates={weight: tm.average(x.mean(0))}, contexts=eight[:2], update_on=update_on, name="train"
        )
        before = states(weight)
        with pytest.raises(ValueError, match=r"updates: the new value of weight has shape \(3,\), but .* has \(4,\)"):
            step(IMAGES[:, :3])
        assert states(weight) == before
    step(IMAGES)
    weight.set_value(np.ones(4, "float32"))


def test_a_variable_that_no_device_can_hold_is_refused_by_name(eight):
    from pytensor.typed_list import TypedListType

    kind = TypedListType(pt.TensorType("float32", shape=(None,)))()
    kind.name = "rows"
    with pytest.raises(TypeError, match="rows"):
        tm.function([kind], [], contexts=eight[:2], on_unused_input="ignore")
