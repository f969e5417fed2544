"""The rules under mpiexec against their papers' equations, written in numpy for all ranks at once."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from rank_program import LARGE, RATE, RULES, STEPS, change, data, start

MPIEXEC = Path(sys.executable).with_name("mpiexec")
DEADLINE = 300  # seconds

#: From all ranks' parameters to all ranks' parameters: a step, (ranks, n) -> (ranks, n) of step t.
Gradient = Callable[[int, np.ndarray], np.ndarray]
Simulated = Iterator[tuple[np.ndarray, np.ndarray | None]]


@dataclass(frozen=True)
class Ran:
    """What the ranks found, by rank."""

    found: list[dict[str, np.ndarray]]
    refusals: list[list[str]]

    @property
    def ranks(self) -> int:
        return len(self.found)

    def every(self, name: str) -> np.ndarray:
        """(ranks, ...)"""
        return np.stack([found[name] for found in self.found])


@pytest.fixture(scope="module", params=[2, 4], ids=lambda ranks: f"{ranks}-ranks")
def ran(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    if not MPIEXEC.exists():
        pytest.skip(f'there is no {MPIEXEC}: pip install "theano-mgpu[mpi]"')
    folder = tmp_path_factory.mktemp("ranks")
    program = Path(__file__).with_name("rank_program.py")
    process = subprocess.run(
        [MPIEXEC, "-n", str(request.param), sys.executable, "-W", "error", program, folder],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )
    assert process.returncode == 0, process.stderr[-4000:]
    pairs = [pickle.loads((folder / f"{rank}.pickle").read_bytes()) for rank in range(request.param)]
    return Ran([found for found, _ in pairs], [refusals for _, refusals in pairs])


each_rule = pytest.mark.parametrize("rule", RULES)


# The papers' equations. ``x`` is (ranks, n); ``moved(t, x)`` is what the step alone makes of it.


def tree_mean(rows: np.ndarray) -> np.ndarray:
    total = rows[0] + rows[1] if len(rows) == 2 else (rows[0] + rows[1]) + (rows[2] + rows[3])
    return total / rows.dtype.type(len(rows))


def local_sgd(x: np.ndarray, moved: Gradient, every: int) -> Simulated:
    for t in range(STEPS):
        x = moved(t, x)
        if (t + 1) % every == 0:
            x = np.broadcast_to(tree_mean(x), x.shape)
        yield x, None


def easgd(x: np.ndarray, moved: Gradient, every: int, beta: float) -> Simulated:
    """Zhang et al. 2015, section 3."""
    alpha, centre = beta / len(x), x[0]
    for t in range(STEPS):
        if t % every == 0:
            x, centre = moved(t, x) - alpha * (x - centre), (1 - beta) * centre + beta * tree_mean(x)
        else:
            x = moved(t, x)
        yield x, centre


def gossip(x: np.ndarray, moved: Gradient, probability: float, seed: int) -> Simulated:
    """Blot et al. 2016: PushMessage at every sender, then ProcessMessages at every receiver."""
    ranks = len(x)
    w = np.full(ranks, 1 / ranks)
    for t in range(STEPS):
        x = moved(t, x).copy()
        rng = np.random.default_rng((seed, t))
        senders = np.flatnonzero(rng.random(ranks) < probability)
        drawn = rng.integers(ranks - 1, size=ranks)
        queue = []
        for sender in senders:
            w[sender] /= 2
            receiver = [rank for rank in range(ranks) if rank != sender][drawn[sender]]
            queue.append((receiver, x[sender].copy(), w[sender]))
        for receiver, theirs, weight in queue:
            total = w[receiver] + weight
            x[receiver] = float(w[receiver] / total) * x[receiver] + float(weight / total) * theirs
            w[receiver] = total
        np.testing.assert_allclose(w.sum(), 1)
        yield x, None


def compressed(x: np.ndarray, moved: Gradient, dtype: Any = ml_dtypes.bfloat16, every: int = 1) -> Simulated:
    """Tang et al. 2019, of the change since the last exchange; the server of each number is one of the ranks."""
    dtype = np.dtype(dtype)
    largest = float(ml_dtypes.finfo(dtype).max)

    def c(numbers: np.ndarray) -> np.ndarray:
        return np.clip(numbers, -largest, largest).astype(dtype)

    common, errors, server_error = x[0], np.zeros_like(x), np.zeros_like(x[0])
    for t in range(STEPS):
        x = moved(t, x)
        if (t + 1) % every == 0:
            d = x - common + errors
            errors = d - c(d).astype(x.dtype)
            m = tree_mean(c(d).astype(np.float32)) + server_error
            server_error = m - c(m).astype(m.dtype)
            common = common + c(m).astype(x.dtype)
            x = np.broadcast_to(common, x.shape)
        yield x, None


def simulated(rule: str, x: np.ndarray, moved: Gradient) -> tuple[np.ndarray, np.ndarray]:
    """(ranks, steps, n) and the centre's (steps, n), or (0,) where there is none."""
    equations = globals()[rule.split()[0]]
    states = list(equations(x, moved, **RULES[rule][1]))
    return np.stack([x for x, _ in states], axis=1), np.array([c for _, c in states if c is not None])


@each_rule
def test_training_follows_the_papers_equations(ran: Ran, rule: str) -> None:
    """Least squares in double precision; the gradients in numpy too."""

    def moved(t: int, x: np.ndarray) -> np.ndarray:
        gradients = []
        for rank, parameters in enumerate(x):
            inputs, targets = data(rank, t)
            residuals = inputs @ parameters[:12].reshape(4, 3) + parameters[12:] - targets
            gradients.append(np.append(inputs.T @ residuals, residuals.sum(axis=0)) / len(inputs))
        return x - RATE * np.array(gradients)

    weight, bias = start(0)
    first = np.tile(np.append(weight, bias), (ran.ranks, 1))
    expected, centre = simulated(rule, first, moved)
    np.testing.assert_allclose(ran.every(f"{rule}: history"), expected, rtol=1e-11)
    for rank in range(ran.ranks):
        np.testing.assert_allclose(ran.found[rank][f"{rule}: centres"], centre, rtol=1e-11)
        np.testing.assert_allclose(ran.found[rank][f"{rule}: final"], tree_mean(expected[:, -1]), rtol=1e-11)


@each_rule
def test_the_order_of_sums_is_fixed_to_the_bit(ran: Ran, rule: str) -> None:
    """Known changes in place of gradients, in float32, some of them below and above what 16 bits hold."""

    def moved(t: int, x: np.ndarray) -> np.ndarray:
        return x + np.stack([change(rank, t) for rank in range(ran.ranks)])

    first = np.tile(change(0, 99), (ran.ranks, 1))
    expected, _ = simulated(rule, first, moved)
    assert np.array_equal(ran.every(f"{rule}: added"), expected)


@each_rule
def test_a_step_gives_what_it_gives_without_an_exchange(ran: Ran, rule: str) -> None:
    weight, bias = start(0)
    for rank in range(ran.ranks):
        inputs, targets = data(rank, 0)
        loss = ((inputs @ weight + bias - targets) ** 2).sum(axis=1).mean() / 2
        np.testing.assert_allclose(ran.found[rank][f"{rule}: losses"][0], loss, rtol=1e-11)


@each_rule
def test_a_checkpoint_holds_the_rules_state(ran: Ran, rule: str) -> None:
    """Every rank goes on from its own checkpoint to the bits of a run that was not stopped."""
    for found in ran.found:
        assert np.array_equal(found[f"{rule}: resumed"], found[f"{rule}: whole"])


def test_local_sgd_averages_moving_averages_but_no_momentum(ran: Ran) -> None:
    """After each step all of the store is alike on the ranks."""
    whole = ran.every("local_sgd every step: whole")
    assert (whole == whole[0]).all()


def test_the_mean_after_every_momentum_step_is_a_step_of_all_ranks(ran: Ran) -> None:
    for found in ran.found:
        np.testing.assert_allclose(found["exchanged"], found["one step"], rtol=1e-11)


def test_bytes_are_at_most_twice_the_parameters(ran: Ran) -> None:
    """Over all ranks 2 (R - 1) of the 15 numbers' bytes for a mean; of a large array each rank sends its share."""
    for rule, exchanges, itemsize in (
        ("local_sgd every step", STEPS, 8),
        ("local_sgd", STEPS // 5, 8),
        ("easgd", STEPS // 3, 8),
        ("compressed bfloat16", STEPS, 2),
        ("compressed float16", STEPS // 4, 2),
    ):
        assert ran.every(f"{rule}: bytes").sum() == 2 * (ran.ranks - 1) * 15 * itemsize * exchanges
    share = 2 * (ran.ranks - 1) / ran.ranks * LARGE * 8
    np.testing.assert_allclose(ran.every("large bytes"), share, rtol=1e-3)


def test_gossip_sends_one_model_for_a_message(ran: Ran) -> None:
    draws = [np.random.default_rng((3, t)).random(ran.ranks) < 0.6 for t in range(STEPS)]
    np.testing.assert_array_equal(ran.every("gossip: bytes"), np.sum(draws, axis=0) * 15 * 8)


def test_mean_of_many_messages_and_of_fewer_numbers_than_ranks(ran: Ran) -> None:
    slope = (ran.ranks + 1) / 2
    for found in ran.found:
        np.testing.assert_array_equal(found["slope"], [slope])
        np.testing.assert_array_equal(found["large"], [0, slope, slope * (LARGE - 1)])
        assert found["short"] == (ran.ranks - 1) / 2


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (0, "local_sgd(): 'w' is float32 (4,) on rank 0, but float32 (3,) on rank {last}."),
        (1, "local_sgd(): 'w' is float32 (4,) on rank 0, but float64 (4,) on rank {last}."),
        (2, "local_sgd(): 'extra' is not among the parameters on rank 0, but float32 () on rank {last}."),
        (3, "local_sgd(): rank {last} has 'params' in another order than rank 0"),
        (4, "local_sgd(): every is 3 on rank 0, but 2 on rank {last}."),
        (5, "easgd(): rule is 'easgd' on rank 0, but 'gossip' on rank {last}."),
        (6, "local_sgd(): the step averages over the devices of all ranks in every call"),
        (7, "mean_over_ranks(): 'w' is float32 (4,) on rank 0, but float32 (2, 2) on rank {last}."),
    ],
)
def test_a_rank_that_differs_is_named_on_every_rank(ran: Ran, place: int, message: str) -> None:
    for refusals in ran.refusals:
        assert refusals[place].startswith(message.format(last=ran.ranks - 1))
