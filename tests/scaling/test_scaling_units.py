"""Bandwidths and times as they are written."""

from __future__ import annotations

import pytest

from theano_mgpu.scaling import bandwidth, in_bits, in_bytes, in_seconds, seconds


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("400Gbit", 50e9),
        ("10Gbit/s", 1.25e9),
        ("1.5GB/s", 1.5e9),
        ("100 Mbps", 12.5e6),
        ("25Gb", 3.125e9),
        ("3TB/s", 3e12),
        ("8bit", 1.0),
        ("1e3 kB", 1e6),
    ],
)
def test_bandwidths_are_bytes_a_second(text, value):
    assert bandwidth("--link", text) == pytest.approx(value)


@pytest.mark.parametrize(
    "text", ["fast", "400", "", "0Gbit", "-1Gbit", "Gbit", "4 Gibit", "1e999GB", "nan GB", "1,5GB/s", "400Gbit 5us"]
)
def test_what_is_no_bandwidth_is_named(text):
    with pytest.raises(ValueError, match=r"'--link' should be a bandwidth .*, got '.*'\. Write it as 400Gbit"):
        bandwidth("--link", text)


@pytest.mark.parametrize(("text", "value"), [("5us", 5e-6), ("0.2 ms", 2e-4), ("1s", 1.0), ("0ns", 0.0), ("3µs", 3e-6)])
def test_times_are_seconds(text, value):
    assert seconds("--latency", text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["-5us", "5", "soon", "", "1e99s", "5 min"])
def test_what_is_no_time_is_named(text):
    with pytest.raises(ValueError, match=r"'--latency' should be a time .*, got '.*'\. Write it as 5us"):
        seconds("--latency", text)


def test_they_are_shown_as_they_are_written():
    assert [in_bits(50e9), in_bits(12.5e6), in_bytes(1.5e9)] == ["400 Gbit/s", "100 Mbit/s", "1.5 GB/s"]
    assert [in_seconds(t) for t in (2.5, 0.9999, 0.012, 5e-6, 0.0)] == ["2.5 s", "1 s", "12 ms", "5 us", "0 s"]
