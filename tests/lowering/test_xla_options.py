"""XLA's options for a device program."""

from __future__ import annotations

import pytest

from theano_mgpu.lowering import xla_options as module
from theano_mgpu.lowering.xla_options import xla_options


@pytest.fixture(autouse=True)
def _asked_anew():
    xla_options.cache_clear()
    yield
    xla_options.cache_clear()


def test_this_xla_knows_the_options_for_a_cpu():
    assert xla_options("cpu")


def test_another_platform_has_no_options():
    assert xla_options("gpu") is None


def test_options_that_this_xla_does_not_know_are_not_given(monkeypatch):
    monkeypatch.setattr(module, "_ALL_BUT_CONVOLUTIONS", {"xla_cpu_an_option_of_the_past": "1"})
    assert xla_options("cpu") is None
