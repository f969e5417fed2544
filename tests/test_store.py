"""The parameter store: names, seeds, updates, values, files."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from theano_mgpu.store import ParameterStore


def normal(rng, shape):
    return rng.normal(size=shape)


@pytest.fixture
def store():
    """Two parameters and a generator."""
    store = ParameterStore(seed=3)
    store.param("conv1.weight", (3, 3, 2, 4), normal)
    store.param("bn1.running_mean", (4,), 0.5, trainable=False, decay=False)
    store.rng("drop")
    return store


def test_a_parameter_is_a_float32_shared_variable_with_its_static_shape_and_tags(store):
    weight, mean = store["conv1.weight"], store["bn1.running_mean"]
    assert (weight.name, weight.type.dtype, weight.type.shape) == ("conv1.weight", "float32", (3, 3, 2, 4))
    assert (weight.tag.trainable, weight.tag.decay) == (True, True)
    assert (mean.tag.trainable, mean.tag.decay) == (False, False)
    assert type(weight.container.storage[0]) is np.ndarray
    np.testing.assert_array_equal(mean.get_value(), np.full(4, 0.5, "float32"))


def test_the_store_is_a_mapping_in_order_of_creation(store):
    assert list(store) == ["conv1.weight", "bn1.running_mean"]
    assert len(store) == 2
    assert "conv1.weight" in store
    assert "drop" not in store
    assert store.trainable() == [store["conv1.weight"]]


def test_a_missing_name_is_a_key_error_with_the_nearest_names(store):
    with pytest.raises(KeyError, match=r"no parameter 'conv1\.wieght' \(nearest: 'conv1\.weight'"):
        store["conv1.wieght"]
    with pytest.raises(KeyError, match=r"store\.rng\('drop'\)"):
        store["drop"]


def test_the_same_name_gives_the_same_variable_whatever_its_initialiser(store):
    before = store["conv1.weight"].get_value()
    assert store.param("conv1.weight", [3, 3, 2, 4], 0.0) is store["conv1.weight"]
    np.testing.assert_array_equal(store["conv1.weight"].get_value(), before)
    assert len(store) == 2


@pytest.mark.parametrize(
    ("shape", "options", "found"),
    [
        ((3, 3, 2, 5), {}, r"\(3, 3, 2, 4\).*asked for was shape \(3, 3, 2, 5\)"),
        ((3, 3, 2, 4), {"dtype": "float64"}, "float32.*float64"),
        ((3, 3, 2, 4), {"trainable": False}, "trainable=True.*trainable=False"),
        ((3, 3, 2, 4), {"decay": False}, "decay=True.*decay=False"),
    ],
)
def test_a_second_call_that_disagrees_names_parameter_and_both_descriptions(store, shape, options, found):
    with pytest.raises(ValueError, match=rf"param\('conv1\.weight'\).*{found}.*name of its own"):
        store.param("conv1.weight", shape, 0.0, **options)


def test_initial_values_depend_on_seed_and_name_but_not_on_order():
    values = []
    for names in (["a", "b"], ["b", "a"]):
        store = ParameterStore(seed=1)
        for name in names:
            store.param(name, (5,), normal)
            store.rng(name)
        values.append((store.get_values(), [store.rng(n).get_value().random() for n in "ab"], store.checksum()))
    (first, first_draws, first_sum), (second, second_draws, second_sum) = values
    np.testing.assert_equal(first, second)
    assert first_draws == second_draws
    assert first_sum == second_sum
    assert not np.array_equal(first["a"], first["b"])
    assert first_draws[0] != first_draws[1]
    assert not np.array_equal(first["a"], ParameterStore(seed=2).param("a", (5,), normal).get_value())


def test_a_generator_does_not_repeat_the_draws_of_the_parameter_of_its_name():
    store = ParameterStore()
    parameter = store.param("a", (5,), normal, dtype="float64")
    assert not np.array_equal(store.rng("a").get_value().normal(size=5), parameter.get_value())


@pytest.mark.parametrize(
    ("init", "expected"),
    [
        (2, [2, 2]),
        (np.float64(0.1), [0.1, 0.1]),
        (np.array([1.5, 2.5]), [1.5, 2.5]),
        (lambda rng, shape: [3.0, 4.0], [3, 4]),
    ],
)
def test_an_initialiser_is_a_number_an_array_or_a_function(init, expected):
    value = ParameterStore().param("p", (2,), init).get_value()
    assert value.dtype == "float32"
    np.testing.assert_array_equal(value, np.array(expected, "float32"))


@pytest.mark.parametrize(
    ("init", "found"),
    [
        (np.zeros(3), r"shape \(3,\) instead of \(2,\)"),
        (np.zeros(2, "complex64"), "dtype complex64"),
        (np.array(["a", "b"]), "dtype <U1"),
        (lambda: 0.0, "could not be called as init"),
        (1e300, "too large for float32"),
    ],
)
def test_an_initial_value_that_does_not_fit_names_the_parameter(init, found):
    store = ParameterStore()
    with pytest.raises(ValueError, match=rf"param\('p'\).*{found}"):
        store.param("p", (2,), init)
    assert "p" not in store


@pytest.mark.parametrize("shape", [3, "3", (-1,), (2.0,), (None, 2)])
def test_a_shape_that_is_none_is_refused(shape):
    with pytest.raises(ValueError, match=r"param\('p'\): 'shape'"):
        ParameterStore().param("p", shape, 0.0)


@pytest.mark.parametrize("seed", [-1, 1.5, True, None])
def test_a_seed_is_a_non_negative_integer(seed):
    with pytest.raises(ValueError, match="non-negative integer"):
        ParameterStore(seed=seed)


def test_values_are_never_shared_with_the_callers_arrays():
    store, given_array = ParameterStore(), np.zeros(3, "float32")
    variable = store.param("p", (3,), given_array)
    given_array += 1
    assert variable.get_value().sum() == 0
    store.set_values({"p": given_array})
    given_array += 1
    store.get_values()["p"][:] = 7
    np.testing.assert_array_equal(variable.get_value(), [1, 1, 1])


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "int8", "bool"])
def test_set_values_takes_part_of_the_names_and_what_converts(store, dtype):
    other = store["conv1.weight"].get_value()
    store.set_values({"bn1.running_mean": np.array([0, 1, 1, 0], dtype)})
    np.testing.assert_array_equal(store["bn1.running_mean"].get_value(), np.array([0, 1, 1, 0], "float32"))
    np.testing.assert_array_equal(store["conv1.weight"].get_value(), other)
    assert store["bn1.running_mean"].get_value().dtype == "float32"


@pytest.mark.parametrize(
    "bad", [np.zeros(4, "complex64"), np.array(list("abcd")), np.zeros(4, "int64"), np.zeros(3), np.full(4, 1e300)]
)
def test_set_values_names_all_problems_and_changes_nothing(store, bad):
    before = store.checksum()
    with pytest.raises(
        ValueError, match=r"nothing was changed.*'bn1\.running_mean' has.*'conv1\.wieght' is not in the"
    ):
        store.set_values({"conv1.weight": np.ones((3, 3, 2, 4)), "bn1.running_mean": bad, "conv1.wieght": np.ones(1)})
    assert store.checksum() == before


def test_the_checksum_sees_every_bit_name_shape_and_generator(store):
    seen = {store.checksum()}
    for value in (np.float32(0.0), np.float32(-0.0), np.nextafter(np.float32(1), np.float32(2))):
        store.set_values({"bn1.running_mean": np.array([0, 0, 0, value])})
        seen.add(store.checksum())
    store.rng("drop").get_value(borrow=True).random()
    seen.add(store.checksum())
    for name, shape in (("a", (2, 3)), ("a", (3, 2)), ("b", (3, 2))):
        other = ParameterStore()
        other.param(name, shape, 0.0)
        seen.add(other.checksum())
    assert len(seen) == 8


def test_the_checksum_is_sha256_of_names_dtypes_shapes_bytes_and_generators():
    store = ParameterStore()
    store.param("b", (), 1.0)
    store.param("a", (2,), 0.0, dtype="int32")
    content = b'["a", "int32", [2]]' + bytes(8) + b'["b", "float32", []]' + np.float32(1).tobytes() + b"{}"
    assert store.checksum() == hashlib.sha256(content).hexdigest()


# Updates


def moving(store, x):
    mean = store["bn1.running_mean"]
    return mean * np.float32(0.9) + x


def test_registered_updates_run_in_a_plain_function(store):
    x, mean = pt.vector("x", dtype="float32", shape=(4,)), store["bn1.running_mean"]
    next_rng, draw = store.rng("drop").uniform(size=(2,))
    store.register_update(mean, moving(store, x))
    store.register_update(store.rng("drop"), next_rng)
    step = pytensor.function([x], draw, updates=store.updates(), mode=pytensor.compile.mode.Mode("py", None))
    twin = ParameterStore(seed=3).rng("drop").get_value()
    for _ in range(2):
        np.testing.assert_array_equal(step(np.ones(4, "float32")), twin.uniform(size=2))
    np.testing.assert_allclose(mean.get_value(), np.full(4, (0.5 * 0.9 + 1) * 0.9 + 1), rtol=1e-6)


def test_updates_are_a_new_dictionary_each_time(store):
    store.register_update(store["bn1.running_mean"], moving(store, pt.vector("x", dtype="float32")))
    store.updates().clear()
    assert list(store.updates()) == [store["bn1.running_mean"]]


def test_a_second_training_graph_starts_a_new_set_once_the_first_was_taken(store):
    extra = store.param("bn2.running_mean", (4,), 0.0, trainable=False)
    first, second = moving(store, pt.vector("x", dtype="float32")), moving(store, pt.vector("y", dtype="float32"))
    store.register_update(extra, extra * np.float32(2))
    store.register_update(store["bn1.running_mean"], first)
    taken = store.updates()
    store.register_update(store["bn1.running_mean"], second)
    assert taken == {extra: taken[extra], store["bn1.running_mean"]: first}
    assert store.updates() == {store["bn1.running_mean"]: second}


def test_looking_at_the_updates_half_way_loses_none(store):
    extra = store.param("bn2.running_mean", (4,), 0.0, trainable=False)
    store.register_update(store["bn1.running_mean"], moving(store, pt.vector("x", dtype="float32")))
    store.updates()
    store.register_update(extra, extra * np.float32(2))
    assert set(store.updates()) == {extra, store["bn1.running_mean"]}


def test_two_values_for_one_variable_in_one_set_are_refused_and_equal_ones_are_not(store):
    x = pt.vector("x", dtype="float32")
    store.register_update(store["bn1.running_mean"], moving(store, x))
    store.register_update(store["bn1.running_mean"], moving(store, x))
    with pytest.raises(ValueError, match=r"'bn1\.running_mean' has an update already"):
        store.register_update(store["bn1.running_mean"], moving(store, x + x))


@pytest.mark.parametrize("new_value", [pt.dvector(), pt.fmatrix(), pt.tensor(dtype="float32", shape=(5,)), 1.0])
def test_an_update_of_another_type_is_refused(store, new_value):
    with pytest.raises(ValueError, match=r"new value of 'bn1\.running_mean' should be a"):
        store.register_update(store["bn1.running_mean"], new_value)


def test_an_update_of_another_stores_variable_is_refused(store):
    other = ParameterStore().param("bn1.running_mean", (4,), 0.0)
    with pytest.raises(ValueError, match="not a variable of this store"):
        store.register_update(other, other * np.float32(2))


# Files


def changed(store):
    """Other values and another state of the generator."""
    store.set_values({name: value + 1 for name, value in store.get_values().items()})
    store.rng("drop").get_value(borrow=True).random()


def test_load_brings_back_what_save_wrote(store, tmp_path):
    checksum = store.checksum()
    store.save(tmp_path / "weights.safetensors")
    changed(store)
    assert store.checksum() != checksum
    store.load(str(tmp_path / "weights.safetensors"))
    assert store.checksum() == checksum
    assert [entry.name for entry in tmp_path.iterdir()] == ["weights.safetensors"]


@given(
    value=hnp.arrays(
        st.sampled_from(["float16", "float32", "float64", "int32", "uint8", "bool"]), hnp.array_shapes(min_dims=0)
    )
)
@settings(max_examples=30, deadline=None)
def test_any_array_survives_a_file(tmp_path_factory, value):
    store, path = ParameterStore(), tmp_path_factory.mktemp("any") / "file"
    store.param("p", value.shape, np.asarray(value, order="F"), dtype=value.dtype.name)
    store.save(path)
    store.set_values({"p": np.zeros_like(value)})
    store.load(path)
    loaded = store.get_values()["p"]
    assert (loaded.dtype, loaded.tobytes()) == (value.dtype, value.tobytes())
    np.testing.assert_array_equal(safetensors.numpy.load_file(path)["p"], value)


@pytest.mark.parametrize("name", ["PCG64", "PCG64DXSM", "Philox", "SFC64", "MT19937"])
def test_every_bit_generator_survives_a_file(tmp_path, name):
    store = ParameterStore()
    generator = np.random.Generator(getattr(np.random, name)(5))
    generator.integers(10, dtype="uint32")
    store.rng("r").set_value(generator)
    store.save(tmp_path / "file")
    store.rng("r").set_value(np.random.default_rng(0))
    store.load(tmp_path / "file")
    np.testing.assert_array_equal(store.rng("r").get_value().normal(size=9), generator.normal(size=9))


def test_a_failed_save_leaves_the_old_file_and_nothing_else(store, tmp_path, monkeypatch):
    path = tmp_path / "weights"
    store.save(path)
    before = path.read_bytes()
    changed(store)

    def full_disk(*_):
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="no space"):
        store.save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def flipped(data):
    return data[:-1] + bytes([data[-1] ^ 1])


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (lambda data: data[:-1], "not a whole safetensors file"),
        (lambda data: data[:20], "not a whole safetensors file"),
        (lambda data: b"", "not a whole safetensors file"),
        (lambda data: b"PK\x03\x04 something else entirely", "not a whole safetensors file"),
        (flipped, "another checksum"),
    ],
)
def test_a_damaged_file_is_refused_by_its_path(store, tmp_path, damage, found):
    path = tmp_path / "weights"
    store.save(path)
    path.write_bytes(damage(path.read_bytes()))
    changed(store)
    before = store.checksum()
    with pytest.raises(ValueError, match=rf"load\('{path}'\).*{found}"):
        store.load(path)
    assert store.checksum() == before


def test_a_file_that_is_not_there_is_a_file_not_found_error(store, tmp_path):
    with pytest.raises(FileNotFoundError):
        store.load(tmp_path / "nothing")


def test_loading_names_everything_that_does_not_match_and_changes_nothing(store, tmp_path):
    other = ParameterStore()
    other.param("conv1.weight", (3, 3, 2, 5), 0.0)
    other.param("conv2.weight", (1,), 0.0)
    other.rng("crop")
    other.save(tmp_path / "weights")
    before = store.checksum()
    with pytest.raises(ValueError, match="nothing was changed") as caught:
        store.load(tmp_path / "weights")
    for part in (
        "'bn1.running_mean' is missing",
        "'conv1.weight' has shape (3, 3, 2, 5) instead of (3, 3, 2, 4)",
        "'conv2.weight' is not in the store",
        "generator 'drop' is missing",
        "generator 'crop' is not in the store",
    ):
        assert part in str(caught.value)
    assert store.checksum() == before


@pytest.mark.parametrize(
    "state",
    ["[]", "{", '{"drop": {}}', '{"drop": {"bit_generator": "default_rng"}}', '{"drop": {"bit_generator": "PCG64"}}'],
)
def test_unreadable_generator_states_are_refused(store, tmp_path, state):
    arrays = store.get_values()
    safetensors.numpy.save_file(arrays, tmp_path / "weights", metadata={"generators": state})
    with pytest.raises(ValueError, match="generators' states cannot be read"):
        store.load(tmp_path / "weights")


def test_the_generators_are_json_in_the_files_metadata(store, tmp_path):
    store.save(tmp_path / "weights")
    with safetensors.safe_open(tmp_path / "weights", framework="np") as file:
        states = json.loads(file.metadata()["generators"])
    assert states == {"drop": store.rng("drop").get_value().bit_generator.state}


def test_printing_shows_a_table_with_totals(store):
    text = str(store)
    lines = text.splitlines()
    assert lines[0].split() == ["name", "shape", "dtype", "parameters", "trainable"]
    assert lines[2].split() == ["conv1.weight", *"3x3x2x4".replace("x", " x ").split(), "float32", "72", "yes"]
    assert lines[-1].split() == ["total", "76", "72"]
    assert repr(store) == "<ParameterStore seed=3: 2 parameters, 76 numbers, 1 generators>"
    assert str(ParameterStore()).splitlines()[-1].split() == ["total", "0", "0"]
