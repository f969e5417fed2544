"""``tm.contexts``: names, order, slices, and what it refuses."""

from __future__ import annotations

import subprocess
import sys

import jax
import pytest

import theano_mgpu as tm


def test_simulated_devices_are_numbered_in_order(eight):
    contexts = tm.contexts("cpu:4")
    assert contexts.names == ["cpu0", "cpu1", "cpu2", "cpu3"]
    assert contexts.devices == jax.devices("cpu")[:4] == eight.devices[:4]
    assert contexts.platform == "cpu"
    assert [context.platform for context in contexts] == ["cpu"] * 4


@pytest.mark.parametrize(
    ("spec", "names", "indices"),
    [
        ("cpu", ["cpu0"], [0]),
        ("cpu3", ["cpu3"], [3]),
        ("cpu5, cpu1", ["cpu5", "cpu1"], [5, 1]),
        ("dev0->cpu0;dev1->cpu2", ["dev0", "dev1"], [0, 2]),
        (" left -> cpu7 ; right->cpu6; ", ["left", "right"], [7, 6]),
    ],
)
def test_devices_are_picked_and_named(eight, spec, names, indices):
    contexts = tm.contexts(spec)
    assert contexts.names == names
    assert contexts.devices == [eight[i].device for i in indices]


def test_nothing_means_every_gpu_else_the_cpu(eight):
    assert tm.contexts().devices in (eight.devices, jax.devices())


def test_a_slice_of_contexts_is_contexts(eight):
    assert isinstance(eight[2:4], tm.Contexts)
    assert eight[2:4].names == ["cpu2", "cpu3"]
    assert eight[::-1].names[0] == "cpu7"
    assert isinstance(eight[0], tm.Context)
    assert eight[-1].name == "cpu7"


def test_contexts_are_found_by_name(eight):
    contexts = tm.contexts("dev0->cpu0;dev1->cpu2")
    assert contexts["dev1"].device == eight[2].device
    with pytest.raises(KeyError, match=r"dev2.*dev0, dev1"):
        contexts["dev2"]


def test_equal_contexts_are_equal(eight):
    assert tm.contexts("cpu:8") == eight
    assert hash(tm.contexts("cpu:8")) == hash(eight)
    assert tm.contexts("cpu:2") != eight
    assert eight[0] in eight
    assert len(eight) == 8


def test_contexts_print_as_a_table(eight):
    lines = str(eight[:2]).splitlines()
    assert lines[0].split()[:3] == ["context", "platform", "device"]
    assert [line.split()[:2] for line in lines[2:]] == [["cpu0", "cpu"], ["cpu1", "cpu"]]
    assert repr(eight[:2]) == "<contexts cpu0, cpu1>"
    assert str(eight[0]).startswith("cpu0")


def test_memory_is_in_bytes_where_a_device_reports_it(eight):
    assert all(isinstance(value, int) for value in eight[0].memory().values())


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("gpu9", r"gpu9.*Expected.*devices here are .*cpu0"),
        ("cpu:0", "at least one device"),
        ("cpu:-1", "Expected"),
        ("cpu:two", "Expected"),
        ("", "Expected"),
        ("  ", "Expected"),
        (4, "Expected"),
        (["cpu0"], "Expected"),
        ("cpu8", r"no device cpu8.*cpu0, cpu1, cpu2.*cpu:N"),
        ("cpu0,", "Expected"),
        ("dev0->cpu9", r"no device cpu9"),
        ("dev0->", r"'dev0->'.*name->cuda0"),
        ("->cpu0", r"'->cpu0'.*name->cuda0"),
        ("dev0->cpu0;cpu1", r"'cpu1'.*name->cuda0"),
        ("dev0->cpu0->cpu1", "name->cuda0"),
        ("dev0->cpu0;dev0->cpu1", "name dev0 stands 2 times"),
        ("dev0->cpu0;dev1->cpu0", "device .* stands 2 times"),
        ("cpu0,cpu0", "stands 2 times"),
    ],
)
def test_what_is_no_device_is_refused_by_name(eight, spec, message):
    with pytest.raises(ValueError, match=f"(?s)^contexts: .*{message}"):
        tm.contexts(spec)


@pytest.mark.parametrize("spec", ["cuda", "cuda:0", "cuda0", "dev0->cuda0"])
def test_a_gpu_that_is_not_there_is_refused_with_what_to_install(spec):
    if tm.contexts().platform == "gpu":
        pytest.skip("there is a GPU")
    with pytest.raises(ValueError, match=r"contexts: .*cpu0.*theano-mgpu\[cuda\]"):
        tm.contexts(spec)


def test_an_empty_slice_is_refused(eight):
    with pytest.raises(ValueError, match="at least one device"):
        eight[8:]


def test_more_simulated_devices_than_were_made_are_refused(eight):
    with pytest.raises(RuntimeError, match=r'"cpu:9" asks for 9 .*made 8.*Ask for the largest number first.*slice'):
        tm.contexts("cpu:9")
    assert tm.contexts("cpu:8") == eight


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(
            "assert len(tm.contexts('cpu:3')) == 3; assert len(tm.contexts('cpu:2')) == 2",
            id="the first call makes them, fewer may follow",
        ),
        pytest.param("assert len(tm.contexts()) == 1", id="one where none were asked for"),
    ],
)
def test_a_fresh_process_makes_its_devices_at_the_first_call(program):
    command = f"import theano_mgpu.devices as tm; {program}"
    environment = {"JAX_PLATFORMS": "cpu", "PATH": "/usr/bin:/bin"}
    subprocess.run([sys.executable, "-c", command], check=True, timeout=120, env=environment)


@pytest.mark.parametrize(
    ("memory", "limit"), [("2GB", 2 * 10**9), ("1.5 GiB", 3 * 2**29), ("512mib", 2**29), ("100 kB", 10**5), (77, 77)]
)
def test_a_limit_of_memory_is_in_bytes_or_with_a_unit(memory, limit):
    for spec in ("cpu:2", "cuda or cpu:2", "left->cpu0;right->cpu1"):
        found = tm.contexts(spec, memory=memory)
        assert [context.limit for context in found] == [limit, limit]
        assert found[0].memory()["bytes_limit"] == limit
        assert found[1:][0].limit == limit
    assert f"{limit / 2**30:.2f} GiB" in str(found)
    assert tm.contexts("cpu:2")[0].memory().get("bytes_limit") is None


@pytest.mark.parametrize("memory", ["2", "GB", "0GB", "-1GB", "2 XB", 0, -5, 2.5, True, ""])
def test_a_malformed_limit_is_refused(memory):
    with pytest.raises(ValueError, match=r"contexts: 'memory' is .*bytes on each device.*\"2GB\""):
        tm.contexts("cpu:2", memory=memory)
