"""What a step gives: outputs in the batch's order, or the error that its data asks for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from pytensor.compile.sharedvalue import SharedVariable

from theano_mgpu import split
from theano_mgpu.cluster import Cluster
from theano_mgpu.cut import Cut
from theano_mgpu.errors import NonFiniteError
from theano_mgpu.lowering.dispatch import Check
from theano_mgpu.mirror import fetched
from theano_mgpu.programs import Flag, Report, ShardResults, Updated
from theano_mgpu.split import Round

__all__ = [
    "non_finite_error",
    "non_finite_shards",
    "of_all_ranks",
    "outputs_of",
    "per_example_outputs",
    "require_passed",
]


def require_passed(step: str, found: Iterable[tuple[Sequence[Check], Sequence[Flag]]]) -> None:
    """Raise what programs found wrong with the data: checks, each with its flag and details, a row a shard."""
    for checks, flags in found:
        for check, (ok, details) in zip(checks, flags, strict=True):
            passed = fetched([ok])[0]
            if not passed.all():
                shard = int(np.argmin(passed))
                values = fetched(list(details.values()))
                shown = {name: value[shard] for name, value in zip(details, values, strict=True)}
                raise check.error(f"{step}(): {check.message.format(**shown)}")


def per_example_outputs(turns: Sequence[Round], reports: Sequence[Report]) -> list[np.ndarray]:
    """Of this process's examples, in their order."""
    rounds = [fetched(part) for report in reports for part in report.per_example]
    return [split.in_order(turns, of_one) for of_one in zip(*rounds, strict=True)]


def of_all_ranks(cluster: Cluster, outputs: Sequence[np.ndarray], lengths: Sequence[int]) -> list[np.ndarray]:
    """Per-example outputs of the whole batch, of which each rank has so many examples."""
    found = []
    for output in outputs:
        padded = np.zeros((max(lengths), *output.shape[1:]), output.dtype)
        padded[: len(output)] = output
        everyone = cluster.all_gathered(padded)
        found.append(np.concatenate([rows[:length] for rows, length in zip(everyone, lengths, strict=True)]))
    return found


def outputs_of(cut: Cut, per_example: Sequence[np.ndarray], updated: Updated) -> list[np.ndarray]:
    """The caller's own arrays, in the order of the outputs."""
    single = [np.array(output) for output in fetched(updated.outputs)]
    return [(per_example if o.per_example else single)[o.index] for o in cut.outputs]


def non_finite_shards(turns: Sequence[Round], results: Iterable[ShardResults]) -> list[int]:
    """The numbers of the shards whose reductions are not finite."""
    found = []
    for turn, result in zip(turns, results, strict=True):
        rows = fetched([value for value in result.values if np.issubdtype(value.dtype, np.inexact)])
        found += [turn.shards[i] for i in turn.live if not all(np.isfinite(row[i]).all() for row in rows)]
    return sorted(found)


def non_finite_error(
    step: str, call: int, bad: Sequence[SharedVariable], shards: Sequence[int], loss_scale: float | None
) -> NonFiniteError:
    """For new values of ``bad`` that would be NaN or infinite; ``shards`` have non-finite averages."""
    names = [v.name or str(v) for v in bad]
    where = f"shards {list(shards)} gave non-finite averages" if shards else "every shard's averages are finite"
    if loss_scale is not None:
        where += f", and the loss scale has fallen to {loss_scale:g}, so that no smaller one would help"
    return NonFiniteError(
        f"{step}(): call {call} would write NaN or infinity to {', '.join(names[:8])}"
        f"{f' and {len(names) - 8} more' if len(names) > 8 else ''}; {where}. No parameter was changed. Look at "
        f'that part of the batch, lower the learning rate, or use nonfinite="skip".'
    )
