"""safetensors files that others wrote: cut short, of another kind, with numbers that NumPy has not."""

from __future__ import annotations

import json
import struct

import pytest


def safetensors_file(entries, content=b""):
    header = json.dumps(entries).encode()
    return struct.pack("<Q", len(header)) + header + content


DAMAGED = {
    "cut_short": lambda data: data[:-1],
    "header_alone": lambda data: data[:30],
    "empty": lambda data: b"",
    "too_long": lambda data: data + b"\0",
    "header_of_exabytes": lambda data: struct.pack("<Q", 2**60) + data[8:],
    "beyond_its_end": lambda data: safetensors_file(
        {"fc.bias": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}, bytes(16)
    ),
    "a_pth": lambda data: b"PK\x03\x04" + data,
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_file_is_refused_by_its_path(store, reference, tmp_path, damage):
    path, before = tmp_path / "weights.safetensors", store.checksum()
    path.write_bytes(DAMAGED[damage]((reference / "plain.safetensors").read_bytes()))
    with pytest.raises(ValueError, match=rf"load\('{path}'\): not a whole safetensors file .*Nothing was changed"):
        store.load(path, layout="torch")
    assert store.checksum() == before


@pytest.mark.parametrize("layout", ["store", "torch"])
def test_numbers_that_numpy_has_not_are_named_and_can_be_skipped(store, tmp_path, layout):
    path, before = tmp_path / "weights.safetensors", store.checksum()
    entry = {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}
    path.write_bytes(safetensors_file({"fc.bias": entry}, bytes(4)))
    with pytest.raises(ValueError, match=r"'fc\.bias' holds F8_E4M3, which NumPy cannot hold"):
        store.load(path, layout=layout)
    report = store.load(path, layout=layout, skip=["*"])
    assert report.skipped == ("fc.bias",)
    assert "fc.weight" in report.missing
    assert "fc.bias" not in report.missing
    assert store.checksum() == before
