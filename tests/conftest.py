"""Eight simulated devices for every test, and contexts over some of them; under mpirun four over all ranks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import hypothesis
import jax
import pytest
from under_mpirun import pytest_configure, pytest_ignore_collect  # noqa: F401

import theano_mgpu as tm
from theano_mgpu.cluster import Cluster, cluster, ranks_launched

# A busy machine is no reason to fail, and all ranks run the same examples.
hypothesis.settings.register_profile("tests", deadline=None)
hypothesis.settings.register_profile("ranks", deadline=None, derandomize=True)
hypothesis.settings.load_profile("tests" if ranks_launched() == 1 else "ranks")
# Their number is fixed once JAX has made its first device.
DEVICES = tm.contexts("cpu:8" if ranks_launched() == 1 else f"cpu:{max(1, 4 // ranks_launched())}")


def pytest_report_header() -> str:
    return f"devices: {', '.join(map(str, DEVICES))}"


@pytest.fixture(scope="session")
def eight() -> tm.Contexts:
    """All eight devices; slices of them are contexts too. Not under mpirun."""
    assert len(DEVICES) == 8, "under mpirun there are four devices: a test that is marked 'ranks' takes 'everyone'"
    return DEVICES


@pytest.fixture(scope="session")
def everyone() -> tm.Contexts:
    """Four devices over all ranks: 1 x 4, or 2 x 2 and 4 x 1 under mpirun. For tests that are marked ``ranks``."""
    return DEVICES[:4]


@pytest.fixture(scope="session")
def ranks() -> Cluster:
    """This process and the others that mpirun started; without mpirun it is the only one."""
    if (started := cluster()) is not None:
        return started
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"needs mpi4py and an MPI: {error}")
    return Cluster(MPI.COMM_SELF, MPI.Status())


@pytest.fixture
def common_path(tmp_path: Path) -> Path:
    """An empty folder, the same one for all ranks."""
    started = cluster()
    return tmp_path if started is None else Path(started.from_first(str(tmp_path)))


@pytest.fixture(params=[1, 2, 4, 8], ids=lambda count: f"{count}-devices")
def contexts(request: pytest.FixtureRequest, eight: tm.Contexts) -> tm.Contexts:
    """The first one, two, four and eight devices."""
    return eight[: request.param]


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
