"""Checkpoints hold everything, appear whole or not at all, and say what is wrong."""

from __future__ import annotations

import errno
import json
import threading

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
import safetensors
import safetensors.numpy

import theano_mgpu as tm
from tests.training.network import examples, fresh, network
from theano_mgpu.training import Checkpoint, Checkpoints, Progress, TrainingState, checkpoint_file, checkpoints


def values(step):
    """The exact bits of all that a step reads or writes."""
    found = [variable.get_value() for variable in step.get_shared()]
    return [v.tobytes() if isinstance(v, np.ndarray) else str(v.bit_generator.state) for v in found]


def trained(made, steps, start=0):
    data = examples()
    for number in range(start, start + steps):
        made.step(data.images[number : number + 8], data.labels[number : number + 8], 0.1)
    return made


@pytest.fixture
def made(eight):
    return fresh(eight)


@pytest.fixture
def state(made):
    return TrainingState(made.step, made.store, must_match={"classes": ["a", "b"]})


def test_everything_comes_back_in_another_step(eight, tmp_path, made, state):
    trained(made, 3)
    state.advance(cursor=17, epoch=0.75, metrics_position=120, best=0.1 + 0.2, sums={"loss": 1 / 3})
    with Checkpoints(tmp_path) as kept:
        kept.save(3, state)
    other = network(eight[:2], units=5)
    other_state = TrainingState(other.step, other.store, must_match={"classes": ["a", "b"]})
    other_state.restore(Checkpoints(tmp_path).newest())
    assert values(other.step) == values(made.step)
    assert other.store.checksum() == made.store.checksum()
    assert (other_state.progress.step, other_state.progress) == (3, state.progress)
    assert values(trained(other, 2, start=3).step) == values(trained(made, 2, start=3).step)


def test_the_file_names_every_variable_and_no_device(tmp_path, made, state):
    with Checkpoints(tmp_path) as kept:
        kept.save(12, state)
    (path,) = kept.paths()
    assert path.name == "step-00000012.safetensors"
    arrays = safetensors.numpy.load_file(path)
    assert {"bn.running_mean", "hidden.weight", "hidden.weight.velocity", "hidden.weight.ema"} <= set(arrays)
    for name, variable in state.variables.items():
        if name in arrays:
            np.testing.assert_array_equal(arrays[name], variable.get_value(), strict=True)
    with safetensors.safe_open(path, "np") as file:
        metadata = file.metadata()
    assert list(json.loads(metadata["generators"])) == ["drop"]
    assert {*arrays, "drop"} == set(state.variables)
    assert metadata["theano_mgpu_checkpoint"] == "1"
    assert "cpu" not in str(metadata)
    assert "device" not in str(metadata)


def test_what_is_saved_is_the_moment_of_the_call(tmp_path, made, state, monkeypatch):
    trained(made, 1)
    expected, writing = values(made.step), threading.Event()
    write = checkpoints.write_checkpoint

    def slow(path, checkpoint):
        assert writing.wait(60)
        write(path, checkpoint)

    monkeypatch.setattr(checkpoints, "write_checkpoint", slow)
    with Checkpoints(tmp_path) as kept:
        kept.save(1, state)
        for variable in made.store.trainable():  # as a plain function that works in place
            variable.get_value(borrow=True)[...] = 7
        assert not kept.paths()  # and the step went on before anything was written
        writing.set()
    state.restore(kept.newest())
    assert values(made.step) == expected


@pytest.mark.parametrize(
    "dtype", ["float16", "float32", "float64", "int8", "int64", "uint8", "uint32", "bool", "complex64"]
)
def test_arrays_of_every_dtype_and_shape(tmp_path, dtype):
    arrays = {f"x{len(shape)}": np.ones(shape, dtype) for shape in [(), (0, 3), (3, 1, 2), (5,)]}
    arrays["transposed"] = np.arange(6).reshape(2, 3).astype(dtype).T
    path = tmp_path / "checkpoint.safetensors"
    saved = Checkpoint(Progress(step=4), arrays, "{}", {"skipped": 2}, 8, {})
    checkpoint_file.write_checkpoint(path, saved)
    for read in (safetensors.numpy.load_file(path), checkpoint_file.read_checkpoint(path).arrays):
        assert set(read) == set(arrays)
        for name, array in arrays.items():
            np.testing.assert_array_equal(read[name], array, strict=True)
    assert checkpoint_file.read_checkpoint(path).progress == Progress(step=4)


def test_an_array_that_no_file_holds_is_named(tmp_path):
    saved = Checkpoint(Progress(), {"x": np.zeros(1, "complex128")}, "{}", {}, 8, {})
    with pytest.raises(ValueError, match="'x' is complex128"):
        checkpoint_file.write_checkpoint(tmp_path / "x.safetensors", saved)


def test_variables_without_names_of_their_own_are_told_apart(eight):
    x = pt.vector("x", dtype="float32")
    shared = [pytensor.shared(np.float32(i), name=name) for i, name in enumerate([None, "a", "a", None])]
    resident = tm.resident(np.ones(3, "float32"), name="data")
    rows = pt.ivector("rows")
    loss = tm.average((resident[rows] * x).mean())
    step = tm.function([x, rows], loss, updates={v: v + loss for v in shared}, contexts=eight[:1])
    named = TrainingState(step, tm.ParameterStore()).variables
    assert named == {"unnamed": shared[0], "a": shared[1], "a#2": shared[2], "unnamed#2": shared[3]}


def test_so_many_are_kept_and_the_best_besides(tmp_path, state):
    with Checkpoints(tmp_path, keep=2) as kept:
        for number in range(1, 6):
            kept.save(number, state, best=number == 2)
    assert [path.name for path in kept.paths()] == ["step-00000005.safetensors", "step-00000004.safetensors"]
    assert kept.best().progress.step == 2
    assert kept.newest().progress.step == 5
    assert sorted(path.name for path in tmp_path.iterdir())[0] == "best.safetensors"
    assert len(list(tmp_path.iterdir())) == 3


def test_the_best_is_copied_where_there_are_no_links(tmp_path, state, monkeypatch):
    def no_links(*arguments):
        raise OSError(errno.EPERM, "no links")

    monkeypatch.setattr("os.link", no_links)
    with Checkpoints(tmp_path) as kept:
        kept.save(1, state, best=True)
    assert kept.best().progress.step == 1


@pytest.mark.parametrize("damage", ["cut", "bit", "metadata", "empty", "other"])
def test_a_damaged_newest_is_said_and_the_one_before_is_taken(tmp_path, state, damage):
    with Checkpoints(tmp_path) as kept:
        kept.save(1, state)
        kept.save(2, state)
    newest = kept.paths()[0]
    content = newest.read_bytes()
    damaged = {
        "cut": content[:-5],
        "bit": content[:-1] + bytes([content[-1] ^ 1]),
        "metadata": content.replace(b'\\"cursor\\": 0', b'\\"cursor\\": 9'),
        "empty": b"",
        "other": safetensors.numpy.save({"x": np.zeros(3)}),
    }[damage]
    assert damaged != content
    newest.write_bytes(damaged)
    with pytest.warns(RuntimeWarning, match=r"step-00000002.safetensors' is damaged.*before it is taken"):
        assert kept.newest().progress.step == 1
    kept.paths()[1].write_bytes(b"")
    with pytest.warns(RuntimeWarning), pytest.raises(tm.DamagedCheckpointError, match="All 2 checkpoints"):
        kept.newest()


def test_a_damaged_later_one_goes_when_the_run_went_on(tmp_path, state):
    with Checkpoints(tmp_path) as kept:
        for number in (1, 9):
            kept.save(number, state)
        kept.paths()[0].write_bytes(b"")
        (tmp_path / ".step-00000003.safetensors.abcd.partial").write_bytes(b"left by a killed process")
        for number in (2, 3):
            kept.save(number, state)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step-00000002.safetensors",
        "step-00000003.safetensors",
    ]


def test_a_newer_format_is_an_error(tmp_path, state, monkeypatch):
    with Checkpoints(tmp_path) as kept:
        kept.save(1, state)
        monkeypatch.setattr(checkpoint_file, "FORMAT_VERSION", 2)
        kept.save(2, state)
        kept.wait()
    monkeypatch.setattr(checkpoint_file, "FORMAT_VERSION", 1)
    with pytest.raises(ValueError, match=r"format version 2, and this version of theano_mgpu reads up to 1\."):
        kept.newest()


def full_disk(monkeypatch, after):
    """A file system that takes so many bytes of a file."""
    real = checkpoint_file._bytes

    def bytes_of(array):
        nonlocal after
        after -= array.nbytes
        if after < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(array)

    write = checkpoint_file._write_safetensors

    def write_until_full(file, arrays, metadata):
        monkeypatch.setattr(checkpoint_file, "_bytes", bytes_of)
        try:
            write(file, arrays, metadata)
        finally:
            monkeypatch.setattr(checkpoint_file, "_bytes", real)

    monkeypatch.setattr(checkpoint_file, "_write_safetensors", write_until_full)


def test_a_full_disk_stops_the_run_and_leaves_the_old_checkpoint_whole(tmp_path, state, monkeypatch):
    kept = Checkpoints(tmp_path, keep=1)
    kept.save(1, state)
    kept.wait()
    full_disk(monkeypatch, after=300)
    kept.save(2, state)
    with pytest.raises(
        OSError, match=r"No space left on device; '.*step-00000001.safetensors' is whole. Make room"
    ) as caught:
        kept.wait()
    assert caught.value.errno == errno.ENOSPC
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001.safetensors"]
    assert kept.newest().progress.step == 1


def test_a_full_disk_lets_the_run_go_on_by_choice(tmp_path, state, monkeypatch):
    kept = Checkpoints(tmp_path, keep=1, on_error="warn")
    kept.save(1, state)
    with monkeypatch.context() as patch:
        kept.wait()
        full_disk(patch, after=300)
        kept.save(2, state)
        with pytest.warns(RuntimeWarning, match="goes on without it"):
            kept.save(3, state)
        with pytest.warns(RuntimeWarning, match="No space left"):
            kept.wait()
    kept.save(4, state)
    kept.wait()
    assert kept.newest().progress.step == 4


def test_a_folder_that_goes_away_is_an_error(tmp_path, state):
    kept = Checkpoints(tmp_path / "checkpoints")
    (tmp_path / "checkpoints").rmdir()
    kept.save(1, state)
    kept._thread.join()
    with pytest.raises(OSError, match=r"could not be written to '.*checkpoints'"):
        kept.wait()


def test_another_network_is_refused_and_nothing_changed(eight, tmp_path, state):
    with Checkpoints(tmp_path) as kept:
        kept.save(1, state)
    other = network(eight[:1], units=4, rule="sgd", shards=1)
    extra = other.store.param("extra", (2,), init=0.0)
    before = [*values(other.step), extra.get_value().tobytes()]
    its_state = TrainingState(other.step, other.store, must_match={"classes": ["a", "c"], "seed": 1})
    with pytest.raises(ValueError, match="another training run") as caught:
        its_state.restore(kept.newest())
    for said in (
        str(tmp_path),
        "classes: only in the checkpoint 'b', only here 'c'",
        "seed: None in the checkpoint, 1 here",
        "'extra' is missing in the checkpoint",
        "'hidden.weight.velocity' of the checkpoint is not in this run",
        "'hidden.weight' is float32 (6, 5) in the checkpoint, float32 (6, 4) here",
        "nothing was changed",
    ):
        assert said in str(caught.value)
    assert "'hidden.weight.ema' is missing" not in str(caught.value)
    assert [*values(other.step), extra.get_value().tobytes()] == before
    assert its_state.progress == Progress()


def test_classes_in_another_order_are_refused(made, state):
    other = TrainingState(made.step, made.store, must_match={"classes": ["b", "a"]})
    with pytest.raises(ValueError, match=r"classes: \['a', 'b'\] in the checkpoint, \['b', 'a'\] here"):
        other.restore(state.copied())


def test_arguments_are_checked(tmp_path, made):
    with pytest.raises(ValueError, match="'keep' should be an integer of at least 1, not 0"):
        Checkpoints(tmp_path, keep=0)
    with pytest.raises(ValueError, match="'on_error'"):
        Checkpoints(tmp_path, on_error="ignore")
    with pytest.raises(TypeError, match="must_match"):
        TrainingState(made.step, made.store, must_match={"x": object()})
    assert Checkpoints(tmp_path).newest() is None
    assert Checkpoints(tmp_path).best() is None


def test_buffers_are_taken_again(tmp_path, state):
    kept = Checkpoints(tmp_path)
    kept.save(1, state)
    first = {name: buffer.ctypes.data for name, buffer in kept._buffers.items()}
    kept.save(2, state)
    kept.wait()
    assert {name: buffer.ctypes.data for name, buffer in kept._buffers.items()} == first
