"""``store.load`` and ``store.save`` with layout="torch", against files made by PyTorch."""

from __future__ import annotations

import zipfile

import numpy as np
import pytest
import safetensors.numpy

from theano_mgpu.store import ParameterStore
from theano_mgpu.weights.pth_reader import read_pth
from theano_mgpu.weights.safetensors_file import read_safetensors

AXES = {"conv.weight": (3, 2, 0, 1), "fc.weight": (1, 0)}
TRACKED = "bn.num_batches_tracked"


def in_torchs_order(store):
    return {name: value.transpose(AXES.get(name, range(value.ndim))) for name, value in store.get_values().items()}


def assert_holds(store, expected, rtol=0.0):
    for name, value in in_torchs_order(store).items():
        np.testing.assert_allclose(value, expected[name], rtol=rtol, err_msg=name)


FILES = ["zip.pth", "legacy.pth", "protocol4.pth", "parameters.pth", "plain.safetensors"]


@pytest.mark.parametrize("name", FILES)
def test_files_of_pytorch_are_read_in_our_order_of_axes(store, reference, expected, name):
    generators = store.rng("drop").get_value(borrow=True).bit_generator.state
    report = store.load(reference / name, layout="torch")
    assert_holds(store, expected)
    assert store["conv.weight"].get_value().flags.c_contiguous
    assert report.loaded == tuple(store)
    assert (report.skipped, report.missing, report.ignored) == ((), (), (TRACKED,))
    assert store.rng("drop").get_value(borrow=True).bit_generator.state == generators


@pytest.mark.parametrize(
    ("name", "ignored"),
    [
        ("checkpoint.pth", (TRACKED, "optimizer", "epoch", "args")),
        ("timm.pth.tar", (TRACKED, "epoch", "arch", "metric")),
    ],
)
def test_of_a_checkpoint_the_weights_are_taken(store, reference, expected, name, ignored):
    report = store.load(reference / name, layout="torch")
    assert_holds(store, expected)
    assert report.ignored == ignored


@pytest.mark.parametrize("name", ["views.pth", "views_legacy.pth"])
def test_tensors_may_share_a_storage_and_have_any_strides(store, reference, expected, name):
    store.load(reference / name, layout="torch")
    assert_holds(store, expected | {"bn.bias": np.zeros(3, "float32")})


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
@pytest.mark.parametrize(("dtype", "rtol"), [("bfloat16", 2**-8), ("float16", 2**-10)])
def test_halves_become_float32(store, reference, expected, dtype, rtol, ending):
    store.load(reference / f"{dtype}.{ending}", layout="torch")
    assert_holds(store, expected, rtol)
    assert not np.array_equal(in_torchs_order(store)["fc.weight"], expected["fc.weight"])


def test_a_dtype_without_a_storage_class_is_read(store, reference):
    store.param("steps", (2,), 0, dtype="uint16")
    store.load(reference / "uint16.pth", layout="torch")
    np.testing.assert_array_equal(store["steps"].get_value(), [1, 65535])


@pytest.mark.parametrize("name", ["weights.pth", "weights.pt", "weights.pth.tar", "weights.safetensors"])
def test_save_writes_what_load_reads_and_in_pytorchs_order(store, tmp_path, name):
    before, values = store.checksum(), in_torchs_order(store)
    store.save(tmp_path / name, layout="torch")
    written = read_safetensors(tmp_path / name)[0] if "safe" in name else read_pth(tmp_path / name).arrays
    assert set(written) == {*values, TRACKED}
    for entry, value in values.items():
        np.testing.assert_array_equal(written[entry], value)
    assert (written[TRACKED].dtype, written[TRACKED].shape) == ("int64", ())
    store.set_values({name: value + 1 for name, value in store.get_values().items()})
    store.load(tmp_path / name, layout="torch")
    assert store.checksum() == before
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_store_that_counts_batches_keeps_its_own_count(store, tmp_path):
    store.param(TRACKED, (), 5, dtype="int64", trainable=False)
    store.save(tmp_path / "weights.pth", layout="torch")
    store.set_values({TRACKED: np.int64(7)})
    report = store.load(tmp_path / "weights.pth", layout="torch")
    assert store[TRACKED].get_value() == 5
    assert report.ignored == ()


def test_prefixes_of_wrappers_are_taken_off_but_not_those_of_the_store(tmp_path):
    value = np.ones(2, "float32")
    for prefix, own in [("module.", ""), ("_orig_mod.module.", ""), ("module._orig_mod.", ""), ("module.", "module.")]:
        store = ParameterStore()
        store.param(f"{own}p", (2,), 0.0)
        safetensors.numpy.save_file({f"{prefix}p": value}, tmp_path / "file.safetensors")
        assert store.load(tmp_path / "file.safetensors", layout="torch").loaded == (f"{own}p",)
        np.testing.assert_array_equal(store[f"{own}p"].get_value(), value)


def head_of(units):
    store = ParameterStore()
    store.param("conv.weight", (3, 2, 2, 3), 0.0, torch_axes=(3, 2, 0, 1))
    store.param("fc.weight", (3, units), 0.0, torch_axes=(1, 0))
    store.param("fc.bias", (units,), 0.0)
    return store


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_a_head_of_another_size_is_skipped_and_reported(tmp_path, ending):
    large, small = head_of(7), head_of(5)
    large.set_values({name: value + 2 for name, value in large.get_values().items()})
    small.param("fc.scale", (5,), 3.0)
    path = tmp_path / f"weights.{ending}"
    large.save(path, layout="torch")
    report = small.load(path, layout="torch", skip=("fc.*",))
    assert report.loaded == ("conv.weight",)
    assert set(report.skipped) == {"fc.weight", "fc.bias"}
    assert report.missing == ("fc.scale",)
    assert small["conv.weight"].get_value().min() == 2
    assert [small[name].get_value().max() for name in ("fc.weight", "fc.bias", "fc.scale")] == [0, 0, 3]
    assert str(report).splitlines() == [
        "loaded     1  conv.weight",
        f"skipped    2  {', '.join(report.skipped)}",
        "missing    1  fc.scale",
    ]


def test_in_the_stores_own_layout_skip_covers_generators_too(store, tmp_path):
    store.save(tmp_path / "weights.safetensors")
    other = ParameterStore()
    for name in ("conv.weight", "conv.bias"):
        other.param(name, store[name].type.shape, 0.0, torch_axes=store[name].tag.torch_axes)
    other.rng("crop")
    report = other.load(tmp_path / "weights.safetensors", skip=["bn.*", "fc.*", "drop", "crop"])
    assert report.loaded == ("conv.weight", "conv.bias")
    assert set(report.skipped) == {n for n in store if not n.startswith("conv")} | {"drop"}
    assert report.missing == ("crop",)
    np.testing.assert_array_equal(other["conv.weight"].get_value(), store["conv.weight"].get_value())


def test_everything_that_does_not_match_is_named_and_nothing_changed(store, reference, tmp_path):
    other = head_of(5)
    other.param("bn.wieght", (3,), 0.0)
    other.save(tmp_path / "weights.pth", layout="torch")
    before = store.checksum()
    with pytest.raises(ValueError, match="nothing was changed") as caught:
        store.load(tmp_path / "weights.pth", layout="torch")
    for part in (
        f"load('{tmp_path / 'weights.pth'}')",
        "'conv.bias' is missing",
        "'bn.running_var' is missing",
        # As torch has its axes.
        "'fc.weight' has shape (5, 3) instead of (4, 3)",
        "'fc.bias' has shape (5,) instead of (4,)",
        "'bn.wieght' is not in the store (nearest: 'bn.weight'",
    ):
        assert part in str(caught.value)
    assert store.checksum() == before


@pytest.mark.parametrize(
    ("skip", "found"),
    [
        (("fc.*", "cv.*"), r"'cv\.\*' in skip= matches no name.*\(nearest: .*'conv\.bias'"),
        ("fc.*", "'skip' should be patterns, as in skip="),
        ((1,), "'skip' should be patterns"),
    ],
)
def test_a_pattern_that_matches_nothing_is_an_error(store, reference, skip, found):
    before = store.checksum()
    with pytest.raises(ValueError, match=rf"load\('.*zip\.pth'\).*{found}"):
        store.load(reference / "zip.pth", layout="torch", skip=skip)
    assert store.checksum() == before


def test_a_file_in_the_other_layout_is_refused(store, reference, tmp_path):
    before = store.checksum()
    store.save(tmp_path / "own.safetensors")
    store.save(tmp_path / "torch.safetensors", layout="torch")
    with pytest.raises(ValueError, match="in the store's own layout; load it without layout='torch'"):
        store.load(tmp_path / "own.safetensors", layout="torch")
    for path in (reference / "plain.safetensors", tmp_path / "torch.safetensors"):
        with pytest.raises(ValueError, match="in torch's layout; load it with layout='torch'"):
            store.load(path)
    assert store.checksum() == before


@pytest.mark.parametrize("function", ["save", "load"])
@pytest.mark.parametrize(
    ("name", "layout", "found"),
    [
        ("w.pth", "pytorch", "'layout' should be 'store' or 'torch', not 'pytorch'"),
        ("w.npz", "torch", r"should end in one of \.safetensors, \.pth, \.pt, \.pth\.tar"),
        ("w.pth", "store", r"use layout='torch', or end it in \.safetensors"),
    ],
)
def test_an_unknown_layout_or_ending_lists_the_known_ones(store, tmp_path, function, name, layout, found):
    with pytest.raises(ValueError, match=rf"{function}\('.*{name}'\): .*{found}"):
        getattr(store, function)(tmp_path / name, layout=layout)
    assert not any(tmp_path.iterdir())


def test_a_failed_save_leaves_the_old_file_and_nothing_else(store, tmp_path, monkeypatch):
    path = tmp_path / "weights.pth"
    store.save(path, layout="torch")
    before = path.read_bytes()
    store.set_values({"fc.bias": np.ones(4)})

    def full_disk(*_):
        raise OSError("no space left")

    monkeypatch.setattr(zipfile.ZipFile, "writestr", full_disk)
    with pytest.raises(OSError, match="no space"):
        store.save(path, layout="torch")
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_is_not_there_is_a_file_not_found_error(store, tmp_path):
    for name in ("nothing.pth", "nothing.safetensors"):
        with pytest.raises(FileNotFoundError):
            store.load(tmp_path / name, layout="torch")


@pytest.mark.parametrize("axes", [(0, 1), (0, 0, 1, 2), (1, 2, 3, 4), "abcd", 3])
def test_torch_axes_are_a_permutation(axes):
    store = ParameterStore()
    with pytest.raises(ValueError, match=r"param\('p'\): 'torch_axes' should be None or the numbers 0 to 3"):
        store.param("p", (1, 2, 3, 4), 0.0, torch_axes=axes)
    assert "p" not in store


def test_a_second_call_with_other_torch_axes_is_refused():
    store = ParameterStore()
    store.param("p", (2, 2), 0.0)
    with pytest.raises(ValueError, match=r"param\('p'\).*asked for was .*torch_axes=\(1, 0\)"):
        store.param("p", (2, 2), 0.0, torch_axes=(1, 0))


def test_a_parameter_without_torch_axes_has_the_same_axes_in_torch(tmp_path):
    store = ParameterStore()
    value = np.arange(24.0).reshape(2, 3, 4)
    store.param("p", (2, 3, 4), value)
    store.save(tmp_path / "weights.safetensors", layout="torch")
    np.testing.assert_array_equal(safetensors.numpy.load_file(tmp_path / "weights.safetensors")["p"], value)
    assert store.load(tmp_path / "weights.safetensors", layout="torch").loaded == ("p",)
    np.testing.assert_array_equal(store["p"].get_value(), value)
