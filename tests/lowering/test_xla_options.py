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


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_this_xla_knows_the_options(platform):
    """Those for a GPU are asked for where there is one; whether their names are known, every XLA can say."""
    assert xla_options(platform)


def test_another_platform_has_no_options():
    assert xla_options("tpu") is None


def test_options_that_this_xla_does_not_know_are_not_given(monkeypatch):
    monkeypatch.setitem(module._OPTIONS, "cpu", {"xla_cpu_an_option_of_the_past": "1"})
    assert xla_options("cpu") is None
