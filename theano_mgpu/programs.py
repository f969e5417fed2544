"""The two compiled programs of a step: one for every device's shard, one for the update."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec
from pytensor.graph.basic import Apply, Variable
from pytensor.tensor.random.type import RandomType

from theano_mgpu.bundles import Bundled
from theano_mgpu.cut import Cut
from theano_mgpu.devices import Contexts
from theano_mgpu.gather.combination import combination
from theano_mgpu.gather.device import all_reduce, swaps_halves
from theano_mgpu.gather.tree import tree_sum
from theano_mgpu.host_memory import map_in_huge_pages
from theano_mgpu.lending import peek
from theano_mgpu.lowering.dispatch import Check, collect_checks
from theano_mgpu.lowering.graph import Lowered, Shard, lower
from theano_mgpu.lowering.xla_options import device_program_options, update_program_options
from theano_mgpu.mirror import AXIS, mesh_of, on_each, on_every, placed, to_devices
from theano_mgpu.pieces import bytes_on_each
from theano_mgpu.resident_data import ResidentData
from theano_mgpu.split import Round
from theano_mgpu.vectors import Slot, Values, Vector, joined, variables_of

__all__ = ["DeviceProgram", "Flag", "ProgramMemory", "Report", "ShardResults", "UpdateProgram", "Updated"]

_MUCH_MEMORY = 64 * 2**20  # whose clearing takes longer than to ask for huge pages

_EACH, _SAME = PartitionSpec(AXIS), PartitionSpec()

Flag = tuple[jax.Array, dict[str, jax.Array]]  # whether a check passed, and the details of its message


@dataclass(frozen=True)
class Report:
    """What one round computed for the caller alone.

    ``per_example`` has a list for each of the round's parts; ``flags`` say what of ``checks`` passed.
    """

    per_example: list[list[jax.Array]]
    checks: list[Check]
    flags: list[Flag]


@dataclass(frozen=True)
class ShardResults:
    """What one round computed. ``values`` have a row for each device's shard, averages weighted."""

    values: list[jax.Array]
    report: Report


@dataclass(frozen=True)
class ProgramMemory:
    """What one call needs on each device, by XLA's account: bytes, and floating-point operations.

    ``inputs`` are all arguments but shared variables.
    """

    inputs: int
    results: int
    temporary: int
    operations: float


class DeviceProgram:
    """The part below the cut, compiled once for all devices: one call is one round."""

    def __init__(
        self,
        cut: Cut,
        lowered: Lowered,
        bundled: Bundled,
        shared: Sequence[Slot],
        contexts: Contexts,
        loss_scale: Callable[[], float] | None = None,
    ) -> None:
        self._cut = cut
        self._shared = shared
        self._gathered, self._kinds = bundled.gathered, bundled.kinds
        self._lowered = lowered
        self._contexts = contexts
        self._loss_scale = loss_scale  # asked for at each call
        self._split = [v in cut.split for v in cut.device.inputs]
        self._constants = _constants_of(lowered, on_every(contexts))
        self._places: dict[tuple[Any, tuple[Any, ...]], jax.Array] = {}
        self._batch_axis_checked = False
        self._temporary_bytes = 0  # that a call takes on each device
        self._checks: dict[int, list[Check]] = {}  # of rounds of so many parts, each of which has its own
        self.values_like: list[jax.ShapeDtypeStruct] = []  # the shapes of a round's values
        inputs = [_EACH if split else _SAME for split in self._split]
        placed_as = [_EACH if isinstance(slot, ResidentData) else _SAME for slot in shared]
        mapped = jax.shard_map(
            self._part,
            mesh=mesh_of(contexts),
            in_specs=(_EACH, _EACH, inputs, placed_as, _SAME, _EACH),
            out_specs=_EACH,
            check_vma=False,
        )
        self._run = jax.jit(mapped, compiler_options=device_program_options(contexts.platform))

    def __call__(self, turn: Round, inputs: Sequence[Any], shared: Sequence[Any]) -> ShardResults:
        arguments = self._checked_arguments(turn, inputs, shared)
        with to_devices():  # numpy inputs, where there is one device
            values, per_example, flags = self._run(*arguments)
        if self._temporary_bytes > _MUCH_MEMORY and self._contexts.platform == "cpu":
            map_in_huge_pages(len(mesh_of(self._contexts).local_devices), self._temporary_bytes)
        return ShardResults(values, Report(per_example, self._checks[len(turn.parts)], flags))

    def lower(self, turn: Round, inputs: Sequence[Any], shared: Sequence[Any]) -> Callable[[], ProgramMemory]:
        """All of a first call that needs Python, ``values_like`` with it; what is returned compiles the program."""
        with jax.enable_x64(True), to_devices():
            lowered = self._run.lower(*self._checked_arguments(turn, inputs, shared))
        self.values_like, _, _ = lowered.out_info
        operations = (lowered.cost_analysis() or {}).get("flops", 0.0)

        def compile_program() -> ProgramMemory:
            memory = _memory_of(lowered, shared, operations)
            self._temporary_bytes = max(self._temporary_bytes, memory.temporary)
            return memory

        return compile_program

    def _checked_arguments(self, turn: Round, inputs: Sequence[Any], shared: Sequence[Any]) -> tuple[Any, ...]:
        weights = [self._one_each(part.weights, np.float64) for part in turn.parts]
        numbers = [self._one_each(part.shards, np.int32) for part in turn.parts]
        devices = len(self._contexts)
        scales = [self._one_each((self._loss_scale(),) * devices, np.float32)] if self._loss_scale else []
        arguments = (weights, numbers, list(inputs), list(shared), self._constants, scales)
        if self._cut.per_example and not self._batch_axis_checked:
            self._require_batch_axis(arguments, turn.size)
        return arguments

    def _require_batch_axis(self, arguments: tuple[Any, ...], size: int) -> None:
        """Outputs to be concatenated must grow with the batch: traced, not run, on one example more a shard."""
        (weights, *_), (numbers, *_), inputs, *rest = arguments
        devices, each = len(self._contexts), on_each(self._contexts)
        inputs = [parts[:1] for parts in inputs]
        longer = [
            [jax.ShapeDtypeStruct((devices * (size + 1), *v.shape[1:]), v.dtype, sharding=each) if split else v]
            for (v,), split in zip(inputs, self._split, strict=True)
        ]
        rows: dict[Variable, tuple[int, ...]] = {}
        for examples, given in ((size, inputs), (size + 1, longer)):
            _, (per_example,), _ = jax.eval_shape(self._run, [weights], [numbers], given, *rest)
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
        self,
        weights: list[Any],
        numbers: list[Any],
        inputs: list[list[Any]],
        shared: list[Any],
        constants: list[Any],
        scales: list[Any],
    ) -> Any:
        """What one device traces: its own shards, one or, of a round with a rest, two."""
        shards = [Shard(weight[0], *(scale[0] for scale in scales)) for weight in weights]
        values = Values(self._shared, shared)
        arguments = [
            [*(parts[i] for parts in inputs), *self._keyed(values, number[0]), *constants]
            for i, number in enumerate(numbers)
        ]

        def reduce(node: Apply, parts: Sequence[Any]) -> Any:
            """Over all shards, for the devices themselves."""
            own = self._together(node.op.kind, parts, shards)
            combine, swaps = combination(node.op.kind).combine, swaps_halves(self._contexts)
            return all_reduce(own, len(self._contexts), AXIS, combine, swaps=swaps)

        with collect_checks() as checks:
            outputs = self._lowered.trace_shards(arguments, shards, reduce)
        self._checks[len(shards)] = checks
        of_shards = [self._gathered_arrays(own, shard) for own, shard in zip(outputs, shards, strict=True)]
        rows = [
            self._together(kind, parts, shards)[None]
            for kind, parts in zip(self._kinds, zip(*of_shards, strict=True), strict=True)
        ]
        per_example = [[jnp.asarray(value) for value in own[len(self._cut.reductions) :]] for own in outputs]
        return rows, per_example, _flags(checks)

    def _keyed(self, values: Values, number: Any) -> list[Any]:
        """Shared variables' values; of random generators the shard's own keys."""
        return [
            jax.random.fold_in(values[v], number) if isinstance(v.type, RandomType) else values[v]
            for v in self._cut.device.shared
        ]

    def _gathered_arrays(self, outputs: Sequence[Any], shard: Shard) -> list[Any]:
        """What leaves for the gather of one shard's outputs."""
        parts = {
            reduction.placeholder: shard.part(reduction.kind, jnp.asarray(value), reduction.of_gradient)
            for reduction, value in zip(self._cut.reductions, outputs, strict=False)
        }
        return joined(self._gathered, parts, jnp)

    def _together(self, kind: str, parts: Sequence[Any], shards: Sequence[Shard]) -> Any:
        """A device's shards' parts as one."""
        own = [_own(kind, part, shard.weight) for part, shard in zip(parts, shards, strict=True)]
        return functools.reduce(combination(kind).combine, own)


def _own(kind: str, value: Any, weight: Any) -> Any:
    """What a shard contributes: nothing where a device only repeats it.

    For -0.0 it gives 0.0: XLA begins sums between devices with 0.0, so that of -0.0 alone they would be 0.0, on one
    device -0.0.
    """
    how = combination(kind)
    contributes = (weight > 0) & (value != 0) if how.combine is jnp.add else weight > 0
    return jnp.where(contributes, value, how.nothing_like(value))


@dataclass(frozen=True)
class Updated:
    """What the update program gives: outputs of the host part, new values a slot, and flags of what was checked.

    ``finite`` has a flag for each of the new values, where the devices look at them.
    """

    outputs: list[jax.Array]
    new_values: list[jax.Array]
    finite: list[jax.Array]
    checks: list[Flag]


class UpdateProgram:
    """The part above the cut: combines the devices' sums in the fixed tree and applies the update rule.

    With ``between`` contexts they are combined between those, else they are rows, all in one place. New values that
    begin at ``starts`` of a whole array are written into one that is given to the call, and donated.
    """

    def __init__(
        self,
        bundled: Bundled,
        placement: Any,
        between: Contexts | None,
        starts: Mapping[Slot, int],
        *,
        looks: bool,
    ) -> None:
        self._bundled = bundled
        self._looks = looks  # whether new values are finite
        self._kinds = bundled.kinds
        self._between = between
        self._starts = starts
        self._rest = lower(bundled.rest)
        self._rules = [lower(bundle.rule) for bundle in bundled.bundles]
        self.checks: list[Check] = []
        self.shared = bundled.shared
        gathered = {variable for slot in bundled.gathered for variable in variables_of(slot)}
        self.whole = [v for v in bundled.rest.inputs if v not in gathered]
        self._scalars = [scalar for bundle in bundled.bundles for scalar in bundle.scalars]
        self._outputs = len(bundled.rest.outputs) - len(self._scalars) - len(bundled.single)
        self._constants = _constants_of(self._rest, placement)
        options = update_program_options(between.platform) if between else None
        self._run = jax.jit(self._update, out_shardings=placement, compiler_options=options, donate_argnums=4)

    def __call__(
        self, rows: Sequence[Sequence[Any]], whole: Sequence[Any], shared: Sequence[Any], into: Sequence[jax.Array]
    ) -> Updated:
        # Shards' rows are numpy views: the call takes them over in 5 us each, device_put in 45.
        with to_devices():
            updated = Updated(*self._run(list(rows), list(whole), list(shared), self._constants, list(into)))
        for slot, value in zip(self._bundled.updated, updated.new_values, strict=True):
            if not isinstance(slot, Vector):
                require_same_shape(slot, value.shape)
        return updated

    def compile(
        self, rows: Sequence[Sequence[Any]], whole: Sequence[Any], shared: Sequence[Any], into: Sequence[Any]
    ) -> ProgramMemory:
        """For arguments of these shapes, so that a call finds the program ready."""
        with jax.enable_x64(True), to_devices():  # not inherited by threads
            lowered = self._run.lower(list(rows), list(whole), list(shared), self._constants, list(into))
            return _memory_of(lowered, shared, 0)

    def _update(
        self, rows: Any, whole: list[Any], shared: list[Any], constants: list[Any], into: list[jax.Array]
    ) -> Any:
        bundled, rest = self._bundled, self._bundled.rest
        sums = self._tree_sums(rows) if self._between is None else self._all_reduced(rows, self._between)
        averages, state = Values(bundled.gathered, sums), Values(bundled.shared, shared)
        used = [averages[v] for v in rest.inputs if v in averages]
        with collect_checks() as checks:
            results = self._rest.trace([*used, *whole, *(state[v] for v in rest.shared), *constants])
        self.checks = checks
        results = [jnp.asarray(v) for v in results]
        scalars = dict(zip(self._scalars, results[self._outputs :], strict=False))
        arrays = dict(zip((*bundled.gathered, *bundled.shared), (*sums, *shared), strict=True))
        new_values = []
        for bundle, rule in zip(bundled.bundles, self._rules, strict=True):
            for row in bundle.rows:
                operands = [*(arrays[row[role]] for role in bundle.reads), *(scalars[v] for v in bundle.scalars)]
                new_values += rule.trace(operands)
        new_values += results[self._outputs + len(self._scalars) :]
        finite = [jnp.isfinite(value).all() for value in new_values] if self._looks else []
        wholes = dict(zip(self._starts, into, strict=True))
        new_values = [
            lax.dynamic_update_slice(wholes[slot], value, (self._starts[slot],)) if slot in wholes else value
            for slot, value in zip(bundled.updated, new_values, strict=True)
        ]
        return results[: self._outputs], new_values, finite, _flags(checks)

    def _tree_sums(self, rows: list[list[Any]]) -> list[Any]:
        return [
            tree_sum([row.reshape(row.shape[1:]) for row in of_all], combination(kind).combine)
            for kind, of_all in zip(self._kinds, rows, strict=True)
        ]

    def _all_reduced(self, rows: list[list[Any]], contexts: Contexts) -> list[Any]:
        swaps = swaps_halves(contexts)

        def reduced(rows: list[Any]) -> list[Any]:
            return [
                all_reduce(row.reshape(row.shape[1:]), len(contexts), AXIS, combination(kind).combine, swaps=swaps)
                for kind, row in zip(self._kinds, rows, strict=True)
            ]

        between = jax.shard_map(reduced, mesh=mesh_of(contexts), in_specs=_EACH, out_specs=_SAME, check_vma=False)
        return between([row for (row,) in rows])


def _memory_of(lowered: jax.stages.Lowered, shared: Sequence[Any], operations: float) -> ProgramMemory:
    """Compile, and ask XLA."""
    memory = lowered.compile().memory_analysis()
    own = sum(map(bytes_on_each, shared))
    arguments, results = memory.argument_size_in_bytes, memory.output_size_in_bytes
    return ProgramMemory(arguments - own, results, memory.temp_size_in_bytes, operations)


def _flags(checks: Sequence[Check]) -> list[Flag]:
    """What of the checks leaves a program: a row for each shard, as of every other result."""
    return [(check.ok[None], {name: v[None] for name, v in check.details.items()}) for check in checks]


def _constants_of(lowered: Lowered, placement: Any) -> list[jax.Array]:
    with jax.enable_x64(True):  # else float64 constants would lose half their digits here
        return placed(lowered.constants, placement)


def require_same_shape(variable: Variable, new_shape: tuple[int, ...]) -> None:
    old_shape = peek(variable).shape
    if new_shape != old_shape:
        raise ValueError(
            f"updates: the new value of {variable.name or variable} has shape {new_shape}, but the variable has "
            f"{old_shape}. Reduce or reshape the expression to the variable's shape."
        )
