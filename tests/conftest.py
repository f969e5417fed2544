"""Eight simulated devices for every test, and contexts over some of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import hypothesis
import jax
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


@pytest.fixture(scope="session")
def compiled_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """XLA's results are kept from here on, for these tests alone: the same programs are not compiled again."""
    settings = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirteen classes, four training and two validation images of each."""
    folder = tmp_path_factory.mktemp("photographs") / "data"
    return tm.data.photographs(folder, image_size=24, train_per_class=4, val_per_class=2)
