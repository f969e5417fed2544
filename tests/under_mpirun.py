"""The tests that are marked ``ranks``, once more under mpirun: ``mpirun -n 2 python -m pytest -m ranks``.

Every rank runs the same tests, in the same order. After each part of a test (set-up, call, tear-down) the ranks tell
each other how it went, so that all go on to the same next part: a test that failed on one rank has failed on all, and
the exit status is everyone's. Rank 0 alone prints, other ranks' tracebacks too. Nobody waits for ever: a rank that
failed and hears nothing of the others says so and ends all, and so does a test that takes too long.

A test that starts programs of its own gives them ``without_launcher(os.environ)``, as they are no ranks.
"""

from __future__ import annotations

import faulthandler
import functools
import os
import shutil
import tempfile
import threading
from collections.abc import Generator, Iterable, Mapping
from typing import Any, NoReturn, TextIO

import pytest

from theano_mgpu.cluster import Cluster, cluster, ranks_launched

__all__ = ["pytest_configure", "pytest_ignore_collect", "without_launcher"]

# Seconds: of a test at most, and for the other ranks to come to the end of a test that failed here.
DEADLINE = float(os.environ.get("RANKS_DEADLINE", 300))
GRACE = float(os.environ.get("RANKS_GRACE", 30))


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    if ranks_launched() > 1 and not config.pluginmanager.has_plugin("under_mpirun.Ranks"):
        config.pluginmanager.register(Ranks(config), "under_mpirun.Ranks")
        # Who clears away older tests' folders must be alone.
        folder = os.environ["PYTEST_DEBUG_TEMPROOT"] = tempfile.mkdtemp()
        config.add_cleanup(functools.partial(shutil.rmtree, folder, ignore_errors=True))


def pytest_ignore_collect(collection_path: Any) -> bool | None:
    """Files without such tests, to collect in a second."""
    if ranks_launched() > 1 and collection_path.suffix == ".py" and "mark.ranks" not in collection_path.read_text():
        return True
    return None


def without_launcher(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without what mpirun or srun put there."""
    begins = ("OMPI_", "PMI", "PRTE_", "MPI_LOCAL", "SLURM_")
    return {name: value for name, value in environment.items() if not name.startswith(begins)}


class Ranks:
    """What this rank's pytest tells the others, by a communicator of its own: the tests' messages stay theirs."""

    def __init__(self, config: pytest.Config) -> None:
        tests = cluster()
        assert tests is not None
        from mpi4py import MPI

        self.others = Cluster(MPI.COMM_WORLD.Dup(), MPI.Status())
        # Who waits at the end of a test goes on to answer what the others' tests ask.
        self.others.wait = tests.wait
        self.reporter = config.pluginmanager.getplugin("terminalreporter")
        with config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            self.stderr = os.fdopen(os.dup(2), "w")
        if self.others.rank > 0:
            config.pluginmanager.unregister(self.reporter)

    def pytest_report_header(self) -> str:
        return f"rank 0 of {self.others.size}, which reports for all"

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        found = self.others.gathered(([item.nodeid for item in session.items], session.testsfailed))
        for rank, of_rank in enumerate(found):
            if of_rank != found[0]:
                raise pytest.UsageError(f"rank {rank} and rank 0 collected different tests: {of_rank} and {found[0]}")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self) -> Generator[None, object, object]:
        faulthandler.dump_traceback_later(DEADLINE, exit=True, file=self.stderr)
        try:
            return (yield)
        finally:
            faulthandler.cancel_dump_traceback_later()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        own = (item.nodeid, report.when, report.outcome, text_of(report) if report.failed else "")
        waits = threading.Timer(GRACE, self.give_up, [f"{item.nodeid} ({report.when})", own[-1]])
        waits.daemon = True
        if report.failed:
            waits.start()
        everyone = self.others.gathered(own)
        waits.cancel()
        if any(of_rank[:3] != everyone[0][:3] or of_rank[2] == "failed" for of_rank in everyone):
            report.outcome = "failed"
            report.longrepr = "\n".join(by_rank(everyone))
            report.sections = []
        return report

    def pytest_internalerror(self, excrepr: object) -> None:
        self.give_up("pytest itself", str(excrepr))

    def give_up(self, what: str, text: str) -> NoReturn:
        """End this process; mpirun ends the others."""
        end(self.stderr, f"rank {self.others.rank} of {self.others.size}: {what} failed, and not on all ranks:\n{text}")


def text_of(report: pytest.TestReport) -> str:
    return "\n".join([report.longreprtext, *(f"--- {title} ---\n{content}" for title, content in report.sections)])


def by_rank(everyone: list[tuple[str, str, str, str]]) -> Iterable[str]:
    """What the ranks say, the same text once."""
    for text in dict.fromkeys(everyone):
        ranks = ", ".join(str(rank) for rank, own in enumerate(everyone) if own == text)
        yield f"===== rank {ranks}: {text[2]} =====\n{text[3]}"


def end(stderr: TextIO, text: str) -> NoReturn:
    stderr.write(f"\n{text}\n")
    stderr.flush()
    os._exit(1)
