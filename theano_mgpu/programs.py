"""The two compiled programs of a step: one for every device's shard, one for the update."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from pytensor.graph.basic import Variable
from pytensor.tensor.random.type import RandomType

from theano_mgpu.bundles import Bundled
from theano_mgpu.cut import Cut
from theano_mgpu.devices import Contexts
from theano_mgpu.gather.device import all_reduce
from theano_mgpu.gather.tree import tree_sum
from theano_mgpu.host_memory import map_in_huge_pages
from theano_mgpu.lowering.dispatch import Check, collect_checks
from theano_mgpu.lowering.graph import Lowered, Shard, lower
from theano_mgpu.lowering.xla_options import xla_options
from theano_mgpu.mirror import AXIS, mesh_of, on_each, on_every, placed, to_devices
from theano_mgpu.split import Round
from theano_mgpu.vectors import Slot, Values, Vector, joined

__all__ = ["DeviceProgram", "Report", "ShardResults", "UpdateProgram", "Updated"]

_MUCH_MEMORY = 64 * 2**20  # whose clearing takes longer than to ask for huge pages

_EACH, _SAME = PartitionSpec(AXIS), PartitionSpec()

Flag = tuple[jax.Array, dict[str, jax.Array]]  # whether a check passed, and the details of its message


@dataclass(frozen=True)
class Report:
    """What one round computed for the caller alone."""

    per_example: list[jax.Array]
    checks: list[Flag]


@dataclass(frozen=True)
class ShardResults:
    """What one round computed. ``values`` have a row for each device's shard, weighted, or one row, their sum."""

    values: list[jax.Array]
    report: Report


class DeviceProgram:
    """The part below the cut, compiled once for all devices: one call is one round.

    With ``reduced`` the reductions' values leave it summed over the devices, else as one row for each.
    """

    def __init__(
        self,
        cut: Cut,
        lowered: Lowered,
        averages: Sequence[Slot],
        contexts: Contexts,
        *,
        reduced: bool,
        loss_scale: Callable[[], float] | None = None,
    ) -> None:
        self._cut = cut
        self._averages = averages
        self._lowered = lowered
        self._contexts = contexts
        self._reduced = reduced
        self._loss_scale = loss_scale  # asked for at each call
        self._split = [v in cut.split for v in cut.device.inputs]
        self._random = [isinstance(v.type, RandomType) for v in cut.device.shared]
        self._constants = _constants_of(lowered, on_every(contexts))
        self._places: dict[tuple[Any, tuple[Any, ...]], jax.Array] = {}
        self._batch_axis_checked = False
        self._temporary_bytes = 0  # that a call takes on each device
        self.checks: list[Check] = []
        self.values_like: list[jax.ShapeDtypeStruct] = []  # the shapes of a round's values
        inputs = [_EACH if split else _SAME for split in self._split]
        mapped = jax.shard_map(
            self._part,
            mesh=mesh_of(contexts),
            in_specs=(_EACH, _EACH, inputs, [_SAME] * len(cut.device.shared), [_SAME] * len(self._constants), _EACH),
            out_specs=([_SAME if reduced else _EACH] * len(averages), _EACH, _EACH),
            check_vma=False,
        )
        self._run = jax.jit(mapped, compiler_options=xla_options(contexts.platform))

    def __call__(self, turn: Round, inputs: Sequence[Any], shared: Sequence[jax.Array]) -> ShardResults:
        arguments = self._checked_arguments(turn, inputs, shared)
        with to_devices():  # numpy inputs, where there is one device
            values, per_example, checks = self._run(*arguments)
        if self._temporary_bytes > _MUCH_MEMORY and self._contexts.platform == "cpu":
            map_in_huge_pages(len(self._contexts), self._temporary_bytes)
        return ShardResults(values, Report(per_example, checks))

    def lower(self, turn: Round, inputs: Sequence[Any], shared: Sequence[jax.Array]) -> Callable[[], None]:
        """All of a first call that needs Python, ``values_like`` with it; what is returned compiles the program."""
        with to_devices():
            lowered = self._run.lower(*self._checked_arguments(turn, inputs, shared))
        self.values_like, _, _ = lowered.out_info

        def compile_program() -> None:
            memory = lowered.compile().memory_analysis()
            self._temporary_bytes = max(self._temporary_bytes, memory.temp_size_in_bytes)

        return compile_program

    def _checked_arguments(self, turn: Round, inputs: Sequence[Any], shared: Sequence[jax.Array]) -> tuple[Any, ...]:
        weights = self._one_each(turn.weights, np.float64)
        numbers = self._one_each(turn.shards, np.int32)
        devices = len(self._contexts)
        scales = [self._one_each((self._loss_scale(),) * devices, np.float32)] if self._loss_scale else []
        arguments = (weights, numbers, list(inputs), list(shared), self._constants, scales)
        if self._cut.per_example and not self._batch_axis_checked:
            self._require_batch_axis(arguments, turn.size)
        return arguments

    def _require_batch_axis(self, arguments: tuple[Any, ...], size: int) -> None:
        """Outputs to be concatenated must grow with the batch: traced, not run, on one example more a shard."""
        weights, numbers, inputs, *rest = arguments
        devices, each = len(self._contexts), on_each(self._contexts)
        longer = [
            jax.ShapeDtypeStruct((devices * (size + 1), *v.shape[1:]), v.dtype, sharding=each) if split else v
            for v, split in zip(inputs, self._split, strict=True)
        ]
        rows: dict[Variable, tuple[int, ...]] = {}
        for examples, given in ((size, inputs), (size + 1, longer)):
            _, per_example, _ = jax.eval_shape(self._run, weights, numbers, given, *rest)
            for variable, value in zip(self._cut.per_example, per_example, strict=True):
                row = rows.setdefault(variable, value.shape[1:])
                if value.shape[0] != devices * examples or value.shape[1:] != row:
                    raise ValueError(
                        f"outputs: {variable} depends on the batch without passing an average, but has shape "
                        f"{(value.shape[0] // devices, *value.shape[1:])} for a shard of {examples} examples. Return "
                        f"one row of fixed shape an example, or wrap it in tm.average(...) or tm.total(...)."
                    )
        self._batch_axis_checked = True

    def _one_each(self, numbers: tuple[Any, ...], dtype: Any) -> jax.Array:
        if (dtype, numbers) not in self._places:
            self._places[dtype, numbers] = placed([np.asarray(numbers, dtype)], on_each(self._contexts))[0]
        return self._places[dtype, numbers]

    def _part(
        self, weights: Any, numbers: Any, inputs: list[Any], shared: list[Any], constants: list[Any], scales: list[Any]
    ) -> Any:
        """What one device traces: its own shard's part."""
        weight = weights[0]
        shard = Shard(weight, lambda x: self._sum(x, weight), *(scale[0] for scale in scales))
        keys = [jax.random.fold_in(v, numbers[0]) if r else v for v, r in zip(shared, self._random, strict=True)]
        with collect_checks() as checks:
            outputs = self._lowered.trace([*inputs, *keys, *constants], shard)
        self.checks = checks
        reductions = self._cut.reductions
        values = {
            reduction.placeholder: (
                value * shard.weight_in(reduction.of_gradient).astype(value.dtype) if reduction.weighted else value
            )
            for reduction, value in zip(reductions, map(jnp.asarray, outputs), strict=False)
        }
        arrays = joined(self._averages, values, jnp)
        arrays = [(self._sum(array, weight) if self._reduced else array)[None] for array in arrays]
        per_example = [jnp.asarray(value) for value in outputs[len(reductions) :]]
        return arrays, per_example, _flags(checks)

    def _sum(self, value: Any, weight: Any) -> Any:
        """The sum over the shards of a round; a device that only repeats one adds nothing."""
        own = jnp.where(weight > 0, value, jnp.zeros_like(value))
        return all_reduce(own, len(self._contexts), AXIS)


@dataclass(frozen=True)
class Updated:
    """What the update program gives: outputs of the host part, new values a slot, and flags of what was checked."""

    outputs: list[jax.Array]
    new_values: list[jax.Array]
    checks: list[Flag]


class UpdateProgram:
    """The part above the cut: sums the shards in the fixed tree and applies the update rule."""

    def __init__(self, bundled: Bundled, placement: Any) -> None:
        self._bundled = bundled
        self._rest = lower(bundled.rest)
        self._rules = [lower(bundle.rule) for bundle in bundled.bundles]
        self.checks: list[Check] = []
        self._scalars = [scalar for bundle in bundled.bundles for scalar in bundle.scalars]
        self._outputs = len(bundled.rest.outputs) - len(self._scalars) - len(bundled.single)
        self._constants = _constants_of(self._rest, placement)
        self._run = jax.jit(self._update, out_shardings=placement)

    def __call__(self, leaves: Sequence[Sequence[Any]], whole: Sequence[Any], shared: Sequence[jax.Array]) -> Updated:
        # Shards' rows are numpy views: the call takes them over in 5 us each, device_put in 45.
        with to_devices():
            updated = Updated(*self._run(list(leaves), list(whole), list(shared), self._constants))
        for slot, value in zip(self._bundled.updated, updated.new_values, strict=True):
            if not isinstance(slot, Vector):
                require_same_shape(slot, value.shape)
        return updated

    def compile(self, leaves: Sequence[Sequence[Any]], whole: Sequence[Any], shared: Sequence[jax.Array]) -> None:
        """For arguments of these shapes, so that a call finds the program ready."""
        with jax.enable_x64(True), to_devices():  # not inherited by threads
            self._run.lower(list(leaves), list(whole), list(shared), self._constants).compile()

    def _update(self, leaves: Any, whole: list[Any], shared: list[Any], constants: list[Any]) -> Any:
        bundled, rest = self._bundled, self._bundled.rest
        sums = [tree_sum([leaf.reshape(leaf.shape[1:]) for leaf in part], jnp.add) for part in leaves]
        averages, state = Values(bundled.averages, sums), Values(bundled.shared, shared)
        used = [averages[v] for v in rest.inputs if v in averages]
        with collect_checks() as checks:
            results = self._rest.trace([*used, *whole, *(state[v] for v in rest.shared), *constants])
        self.checks = checks
        results = [jnp.asarray(v) for v in results]
        scalars = dict(zip(self._scalars, results[self._outputs :], strict=False))
        arrays = dict(zip((*bundled.averages, *bundled.shared), (*sums, *shared), strict=True))
        new_values = []
        for bundle, rule in zip(bundled.bundles, self._rules, strict=True):
            for row in bundle.rows:
                operands = [*(arrays[row[role]] for role in bundle.reads), *(scalars[v] for v in bundle.scalars)]
                new_values += rule.trace(operands)
        return results[: self._outputs], [*new_values, *results[self._outputs + len(self._scalars) :]], _flags(checks)


def _flags(checks: Sequence[Check]) -> list[Flag]:
    """What of the checks leaves a program: a row for each shard, as of every other result."""
    return [(check.ok[None], {name: v[None] for name, v in check.details.items()}) for check in checks]


def _constants_of(lowered: Lowered, placement: Any) -> list[jax.Array]:
    with jax.enable_x64(True):  # else float64 constants would lose half their digits here
        return placed(lowered.constants, placement)


def require_same_shape(variable: Variable, new_shape: tuple[int, ...]) -> None:
    old_shape = variable.container.storage[0].shape
    if new_shape != old_shape:
        raise ValueError(
            f"updates: the new value of {variable.name or variable} has shape {new_shape}, but the variable has "
            f"{old_shape}. Reduce or reshape the expression to the variable's shape."
        )
