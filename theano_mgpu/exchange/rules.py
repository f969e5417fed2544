"""The rules. Each is its paper's algorithm with ``yield`` where the step runs; see ``theano_mgpu.exchange``.

In the equations x_i are the parameters of rank i of R, g_i the gradient of its batch, and the step is plain gradient
descent; with another update rule its change stands in the place of ``- rate * g_i``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import ml_dtypes
import numpy as np
import pytensor
from pytensor.compile.sharedvalue import SharedVariable

from theano_mgpu.cluster import cluster
from theano_mgpu.exchange.parameters import Parameters, parameters_of
from theano_mgpu.exchange.ranks import Combine, Ranks, mean
from theano_mgpu.exchange.stepping import Elastic, Exchange
from theano_mgpu.specification import positive

__all__ = ["compressed", "easgd", "gossip", "local_sgd", "mean_over_ranks"]

Step = Callable[..., Any]
Params = Iterable[SharedVariable] | None

_DTYPES = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype(np.float16)}


def local_sgd(step: Step, params: Params = None, *, every: int = 8) -> Exchange:
    """Local SGD: each rank steps alone, and after every ``every`` steps all take the mean of their parameters.

    x_i := x_i - rate * g_i(x_i)
    x_i := 1/R sum_j x_j                  after steps every, 2 every, ...

    With ``every=1`` and a rule that is linear in the gradients (sgd, momentum, nesterov) this is averaging gradients.
    ``mean_over_ranks`` at the end has steps after the last exchange count as well.

    McMahan et al., "Communication-efficient learning of deep networks from decentralized data", AISTATS 2017; Stich,
    "Local SGD converges fast and communicates little", ICLR 2019, algorithm 1.
    """
    every = positive("local_sgd(): every", every)
    ranks, parameters = _started("local_sgd", step, params, every=every)

    def rule(t: int) -> Iterator[None]:
        yield
        if (t + 1) % every == 0 and ranks.size > 1:
            parameters.set([ranks.mean(x) for x in parameters.get()])

    return Exchange(step, ranks, rule)


def easgd(step: Step, params: Params = None, *, every: int = 10, beta: float = 0.9) -> Elastic:
    """Elastic averaging: a spring between each rank's parameters and a centre c that follows their mean.

    x_i := x_i - rate * g_i(x_i) - alpha (x_i - c)         alpha = beta / R
    c   := (1 - beta) c + beta * 1/R sum_j x_j             both from the x_i before the step

    in step 0, every, 2 every, ...; in the others the x_i step alone, and c stays. Every rank has the same centre;
    ``.centre`` is what to evaluate with. ``beta`` is in (0, 1].

    Zhang, Choromanska and LeCun, "Deep learning with elastic averaging SGD", NeurIPS 2015: synchronous EASGD of
    section 3 with a communication period. With momentum in the step it is their EAMSGD.
    """
    every = positive("easgd(): every", every)
    beta = _fraction("easgd(): beta", beta)
    ranks, parameters = _started("easgd", step, params, every=every, beta=beta)
    centre = parameters.copies("centre")
    alpha = beta / ranks.size

    def rule(t: int) -> Iterator[None]:
        if t % every != 0:
            yield
            return
        xs, cs = parameters.get(), centre.get()
        means = [ranks.mean(x) for x in xs]
        yield
        pairs = zip(parameters.get(), xs, cs, strict=True)
        parameters.set([stepped - alpha * (x - c) for stepped, x, c in pairs])
        centre.set([(1 - beta) * c + beta * m for c, m in zip(cs, means, strict=True)])

    return Elastic(step, ranks, rule, parameters, centre)


def gossip(step: Step, params: Params = None, *, probability: float = 0.1, seed: int = 0) -> Exchange:
    """GoSGD: after a step a rank may send its parameters, with half of its weight, to one other, which mixes them in.

    x_i := x_i - rate * g_i(x_i)
    with the given probability, sender s:      w_s := w_s / 2, and (x_s, w_s) goes to r, any other rank
    who received:                              x_r := (w_r x_r + w_s x_s) / (w_r + w_s),  w_r := w_r + w_s

    Weights begin at 1/R. Their sum stays 1, and mixing leaves sum_i w_i x_i as it was. ``mean_over_ranks`` at the end
    makes one model of all.

    In the paper ranks run freely, and messages wait in a queue until the receiver looks. Here senders and receivers are
    drawn from (seed, step), alike on every rank; what is sent in a step is mixed in at its end, all halvings first,
    then the messages by sender; so a run can be repeated, and ranks that send or receive wait for each other alone.

    Blot et al., "Gossip training for deep learning", arXiv 1611.09726 (2016): GoSGD.
    """
    probability = _fraction("gossip(): probability", probability)
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise ValueError(f"gossip(): seed: expected a whole number of at least 0, got {seed!r}.")
    ranks, parameters = _started("gossip", step, params, probability=probability, seed=seed)
    # (ranks,): every rank knows all, for it knows who sends to whom.
    weights = pytensor.shared(np.full(ranks.size, 1 / ranks.size), name="exchange.weights")

    def rule(t: int) -> Iterator[None]:
        yield
        messages = _messages(seed, t, ranks.size, probability)
        w = weights.get_value()
        w[list(messages)] /= 2
        sent = w.copy()
        mixed = ranks.rank in messages.values()
        xs = parameters.get() if mixed or ranks.rank in messages else []
        arrived = {
            source: [np.empty_like(x) for x in xs] for source, receiver in messages.items() if receiver == ranks.rank
        }
        requests = [ranks.receive(x, source) for source, theirs in arrived.items() for x in theirs]
        if ranks.rank in messages:
            requests += [ranks.send(x, messages[ranks.rank]) for x in xs]
        ranks.wait(requests)
        for source, receiver in messages.items():
            total = w[receiver] + sent[source]
            if receiver == ranks.rank:
                own, others = float(w[receiver] / total), float(sent[source] / total)
                xs = [own * x + others * theirs for x, theirs in zip(xs, arrived[source], strict=True)]
            w[receiver] = total
        if mixed:
            parameters.set(xs)
        weights.set_value(w)

    return Exchange(step, ranks, rule, weights)


def compressed(
    step: Step, params: Params = None, *, every: int = 1, dtype: Literal["bfloat16", "float16"] = "bfloat16"
) -> Exchange:
    """Local SGD that sends 16 bits of each number, and sends later what they could not hold: error feedback.

    d_i := x_i - x + e_i              x: the parameters after the last exchange, the same on every rank
    e_i := d_i - C(d_i)               C rounds to ``dtype``; what is too large for it becomes its largest number
    m   := 1/R sum_j C(d_j) + f
    f   := m - C(m)                   the mean travels in 16 bits too, with an error of its own
    x   := x + C(m),  x_i := x

    after every ``every`` steps. With ``every=1`` d_i is ``- rate * g_i + e_i``, error-feedback SGD. Half the bytes of
    ``local_sgd``, and three copies of the parameters more in memory: x, e_i, f.

    Seide et al., "1-bit stochastic gradient descent and its application to data-parallel distributed training of speech
    DNNs", Interspeech 2014; Karimireddy et al., "Error feedback fixes SignSGD and other gradient compression schemes",
    ICML 2019, algorithm 2; of both ways, Tang et al., "DoubleSqueeze", ICML 2019, algorithm 1.
    """
    every = positive("compressed(): every", every)
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise ValueError(f'compressed(): dtype: expected "bfloat16" or "float16", got {dtype!r}.')
    ranks, parameters = _started("compressed", step, params, every=every, dtype=dtype)
    for name, variable in parameters.variables.items():
        if np.dtype(variable.type.dtype).itemsize <= 2:
            raise ValueError(
                f"compressed(): '{name}' is {variable.type.dtype}, which {dtype} makes no smaller; exchange it with "
                f"local_sgd."
            )
    common = parameters.copies("common")
    errors = parameters.zeros("error")
    # Zero but in the piece whose mean this rank makes.
    mean_errors = parameters.zeros("mean_error")

    def rule(t: int) -> Iterator[None]:
        yield
        if (t + 1) % every != 0 or ranks.size == 1:
            return
        xs, es, fs = common.get(), errors.get(), mean_errors.get()
        for stepped, x, e, f in zip(parameters.get(), xs, es, fs, strict=True):
            d = stepped - x + e
            sent = _rounded(d, dtype)
            e[:] = d - sent.astype(d.dtype)
            x += ranks.combined(sent, _rounded_mean(f, dtype)).astype(x.dtype)
        for variables, vectors in ((parameters, xs), (common, xs), (errors, es), (mean_errors, fs)):
            variables.set(vectors)

    return Exchange(step, ranks, rule, common, errors, mean_errors)


def mean_over_ranks(params: Iterable[SharedVariable]) -> None:
    """All ranks take the mean of their parameters, once: at the end of training, or to evaluate one model.

    ``params`` are the same on every rank; all call it. Without mpirun nothing happens.
    """
    ranks = Ranks(cluster())
    parameters = parameters_of("mean_over_ranks", None, params, ranks)
    if ranks.size > 1:
        parameters.set([ranks.mean(x) for x in parameters.get()])


def _started(rule: str, step: Step, params: Params, **settings: Any) -> tuple[Ranks, Parameters]:
    """The ranks, and what they exchange: the same on all of them, and with rank 0's values."""
    if not callable(step):
        raise TypeError(f"{rule}(): step: expected a step, as tm.function makes it, got {step!r}.")
    if getattr(getattr(step, "contexts", None), "cluster", None) is not None:
        raise ValueError(
            f"{rule}(): the step averages over the devices of all ranks in every call, so that nothing is left to "
            f"exchange. Make it over this rank's own: tm.function(..., contexts=contexts.local)."
        )
    ranks = Ranks(cluster())
    _check_settings({"rule": rule} | settings, ranks)
    parameters = parameters_of(rule, step, params, ranks)
    ranks.take_over_from_first(list(parameters.variables.values()))
    return ranks, parameters


def _check_settings(settings: dict[str, Any], ranks: Ranks) -> None:
    first, *others = ranks.gathered(settings)
    for rank, theirs in enumerate(others, start=1):
        for setting in [*first, *theirs]:
            if first.get(setting) != theirs.get(setting):
                raise ValueError(
                    f"{first['rule']}(): {setting} is {first.get(setting)!r} on rank 0, but {theirs.get(setting)!r} on "
                    f"rank {rank}. All ranks exchange by the same rule, with the same settings."
                )


def _fraction(option: str, given: Any) -> float:
    if isinstance(given, bool) or not isinstance(given, (int, float, np.number)) or not 0 < given <= 1:
        raise ValueError(f"{option}: expected a number above 0 and at most 1, got {given!r}.")
    return float(given)


def _messages(seed: int, t: int, ranks: int, probability: float) -> dict[int, int]:
    """Who sends to whom after step ``t``: sender to receiver, in the senders' order."""
    if ranks == 1:
        return {}
    rng = np.random.default_rng((seed, t))
    sends = rng.random(ranks) < probability
    others = rng.integers(ranks - 1, size=ranks)
    receivers = others + (others >= np.arange(ranks))
    return {int(sender): int(receivers[sender]) for sender in np.flatnonzero(sends)}


def _rounded(numbers: np.ndarray, dtype: str) -> np.ndarray:
    limit = float(ml_dtypes.finfo(_DTYPES[dtype]).max)
    return np.clip(numbers, -limit, limit).astype(_DTYPES[dtype])


def _rounded_mean(error: np.ndarray, dtype: str) -> Combine:
    """The mean in 16 bits; what they do not hold is left in ``error``, and added the next time."""

    def combine(rows: Sequence[np.ndarray], where: slice) -> np.ndarray:
        exact = mean(rows) + error[where]
        rounded = _rounded(exact, dtype)
        error[where] = exact - rounded.astype(exact.dtype)
        return rounded

    return combine
