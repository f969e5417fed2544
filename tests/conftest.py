"""Eight simulated devices for every test, and contexts over some of them."""

from __future__ import annotations

import hypothesis
import pytest

import theano_mgpu as tm

# A busy machine is no reason to fail.
hypothesis.settings.register_profile("tests", deadline=None)
hypothesis.settings.load_profile("tests")
# Their number is fixed once JAX has made its first device.
EIGHT = tm.contexts("cpu:8")


def pytest_report_header() -> str:
    return f"devices: {', '.join(map(str, EIGHT))}"


@pytest.fixture(scope="session")
def eight() -> tm.Contexts:
    """All eight devices; slices of them are contexts too."""
    return EIGHT


@pytest.fixture(params=[1, 2, 4, 8], ids=lambda count: f"{count}-devices")
def contexts(request: pytest.FixtureRequest) -> tm.Contexts:
    """The first one, two, four and eight devices."""
    return EIGHT[: request.param]
