"""XLA's options for a step's programs."""

from __future__ import annotations

import pytest

from theano_mgpu.lowering import xla_options as module
from theano_mgpu.lowering.xla_options import device_program_options, update_program_options


@pytest.mark.parametrize("options", [device_program_options, update_program_options])
@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_this_xla_knows_the_options(platform, options):
    """Those for a GPU are asked for where there is one; whether their names are known, every XLA can say."""
    assert options(platform)


@pytest.mark.parametrize("options", [device_program_options, update_program_options])
def test_another_platform_has_no_options(options):
    assert options("tpu") is None


def test_options_that_this_xla_does_not_know_are_not_given(monkeypatch):
    monkeypatch.setitem(module._OF_DEVICE_PROGRAMS, "cpu", {"xla_cpu_an_option_of_the_past": "1"})
    assert device_program_options("cpu") is None
