"""``tm.function``: check, cut, lower. A call of what it gives: split, mirror, run, gather, update, commit."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import numpy as np
from pytensor.compile.sharedvalue import SharedVariable
from pytensor.graph.basic import Variable
from pytensor.printing import debugprint

from theano_mgpu import devices, split
from theano_mgpu.arguments import Argument, Signature, parse_inputs, without_implicit
from theano_mgpu.bundles import bundled
from theano_mgpu.cut import Cut, cut
from theano_mgpu.devices import Context, Contexts
from theano_mgpu.drawing import Running, diagram, draw
from theano_mgpu.errors import NonFiniteError, UnsupportedGraphError
from theano_mgpu.finite import are_finite, is_finite
from theano_mgpu.gather.host import HostGather
from theano_mgpu.gather.mesh import MeshGather
from theano_mgpu.launch import launched_ahead
from theano_mgpu.loss_scale import LossScale
from theano_mgpu.lowering.graph import lower
from theano_mgpu.lowering.precision import Precision, named_precision
from theano_mgpu.mirror import (
    Mirrors,
    advanced,
    as_numpy,
    commit,
    fetched,
    host_device,
    on_every,
    on_host,
    placed,
    read,
    require_mirrorable,
    shapes_of,
)
from theano_mgpu.programs import DeviceProgram, Report, ShardResults, Updated, UpdateProgram
from theano_mgpu.specification import (
    Form,
    check_used,
    pairs,
    parse_updates,
    positive,
    reject_unknown,
    require_inputs,
    require_one_of,
    with_default_updates,
    with_givens,
)
from theano_mgpu.split import Round
from theano_mgpu.vectors import parts_of, variables_of

__all__ = ["Step", "function"]


def function(
    inputs: Sequence[Any],
    outputs: Any = None,
    *,
    updates: Any = None,
    givens: Any = None,
    contexts: Contexts | Context | str | None = None,
    shards: int | None = None,
    update_on: str = "host",
    precision: str = "float32",
    broadcast: Sequence[Variable] = (),
    nonfinite: str = "raise",
    on_unused_input: str = "raise",
    allow_input_downcast: bool | None = None,
    name: str | None = None,
    **unknown: Any,
) -> Step:
    """``pytensor.function`` over many devices.

    Everything below the averages (``tm.average``, ``tm.total``, ``tm.grad``) runs on every device at once, each on its
    own part of the batch; everything above runs once. On any number of devices the result is the one that
    ``pytensor.function`` gives on the whole batch.

    inputs: symbolic variables or ``In(variable, value=default)``. Inputs with an axis are split along axis 0; scalars
        and those in ``broadcast`` go whole to every device.
    outputs: one variable, a list, or a dict; a call returns numpy arrays in the same form. An output that depends on
        the batch without passing an average keeps the batch axis, and is concatenated in order.
    updates: dict or pairs of shared variable and new value; old values stand on every right-hand side.
    givens: dict or pairs of variables to replace, not inputs.
    contexts: ``tm.contexts(...)`` or its argument; every device of the machine by default.
    shards: the number of pieces a batch is cut into, one per device by default; devices take turns, so that a batch
        may be larger than their memory.
    update_on: "host", or "device" where the averages are taken between the devices and each applies the update.
    precision: in which the part below the averages computes what the graph declares float32. "float32": so.
        "bfloat16": products and convolutions take bfloat16 operands, add up in float32, and activations and their
        gradients stay bfloat16; parameters, statistics, losses and averages are float32, and so is the update.
        "float16": the same in float16, with a dynamic loss scale, ``step.loss_scale``. "float64": all of it in double
        precision, its averages rounded. See docs/precision.md.
    nonfinite: a step with a non-finite update changes nothing and raises ``NonFiniteError`` ("raise"), changes nothing
        and goes on ("skip", counted in ``step.skipped``), or is applied ("ignore").
    on_unused_input: "raise", "warn" or "ignore"; allow_input_downcast: as in ``pytensor.function``.
    name: stands in the errors of a call.

    Raises TypeError or ValueError naming the argument, CutError for a graph without an average where one is needed,
    UnsupportedGraphError for what cannot run on a device.
    """
    reject_unknown(unknown)
    computed_in = named_precision(precision)
    require_one_of("update_on", update_on, ("host", "device"))
    require_one_of("nonfinite", nonfinite, ("raise", "skip", "ignore"))
    require_one_of("on_unused_input", on_unused_input, ("raise", "warn", "ignore"))
    if contexts is None or isinstance(contexts, str):
        contexts = devices.contexts(contexts)
    if isinstance(contexts, Context):
        contexts = Contexts([contexts])
    if not isinstance(contexts, Contexts):
        raise TypeError(f"contexts: expected tm.contexts(...), a part of it, or its argument, got {contexts!r}.")

    inputs, implicit = without_implicit(inputs)
    givens = [*pairs(givens), *implicit]
    arguments = parse_inputs(inputs, allow_input_downcast)
    variables = [argument.variable for argument in arguments]
    require_inputs("broadcast", broadcast, variables)
    form = Form(outputs)
    new_values = parse_updates(updates)
    graph = with_givens([*form.variables, *new_values.values()], givens, variables)
    count = len(form.variables)
    new_values = dict(zip(new_values, graph[count:], strict=True))
    new_values = with_default_updates(graph[:count], new_values, givens, variables)
    check_used(arguments, [*graph[:count], *new_values.values()], on_unused_input)
    parts = cut(variables, graph[:count], new_values, broadcast)
    return Step(
        parts,
        arguments,
        form,
        contexts,
        shards=len(contexts) if shards is None else positive("shards", shards),
        update_on=update_on,
        precision=computed_in,
        nonfinite=nonfinite,
        name=name or "step",
    )


class Step:
    """A training step, or any function of a batch, over many devices. ``tm.function`` makes it."""

    def __init__(
        self,
        cut: Cut,
        arguments: list[Argument],
        form: Form,
        contexts: Contexts,
        *,
        shards: int,
        update_on: str,
        precision: Precision,
        nonfinite: str,
        name: str,
    ) -> None:
        self.cut = cut
        self.name = name
        self.contexts = contexts
        self.shards = shards
        self.update_on = update_on
        self.nonfinite = nonfinite
        self.skipped = 0  # steps left out, under nonfinite="skip" or for the loss scale
        self._calls = 0
        self._form = form
        self._signature = Signature(name, tuple(arguments), cut.split)
        self._on_device = update_on == "device"
        for variable in self.get_shared():
            require_mirrorable(variable)
        self._device_part = lower(cut.device, precision)
        is_scaled = precision.is_scaled and any(reduction.of_gradient for reduction in cut.reductions)
        self._loss_scale = LossScale() if is_scaled else None
        self._make_programs()

    def _make_programs(self) -> None:
        """For the shapes that shared variables have now. New mirrors too: old ones hold vectors of other shapes."""
        self._mirrors = Mirrors(on_every(self.contexts))
        is_one_place = self._on_device or self.contexts.devices == [host_device()]
        self._update_mirrors = self._mirrors if is_one_place else Mirrors(on_host())
        self._bundled = bundled(self.cut, shapes_of((*self.cut.host.shared, *self.cut.updated)))
        self._program = self._new_program(reduced=self._on_device)
        self._update = UpdateProgram(self._bundled, self._update_mirrors.placement)
        self._compiled_sizes: set[int] = set()  # of shards
        self._compiled_sums: set[int | None] = set()  # of so many shards of one round, or None: of several rounds

    def _new_program(self, *, reduced: bool) -> DeviceProgram:
        averages, scale = self._bundled.averages, self._loss_scale
        asked = None if scale is None else lambda: scale.value
        return DeviceProgram(self.cut, self._device_part, averages, self.contexts, reduced=reduced, loss_scale=asked)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """One step; outputs come as numpy arrays. Nothing visible changes before the commit."""
        batch = self._signature.bind(args, kwargs)
        if shapes_of(self._bundled.shapes) != self._bundled.shapes:  # a value of another shape was set
            self._make_programs()
        with jax.enable_x64(True):
            turns = self._split(batch)
            shared = self._mirrors.arrays(self.cut.device.shared)
            leaves, reports = self._gather(turns, self._run(turns, batch, shared))
            updated = self._apply(leaves, batch)
            self._check(reports, updated)
            self._calls += 1
            new_values = self._new_values(turns, leaves, updated, batch)
            outputs = self._outputs(turns, reports, updated)
            self._commit(updated, new_values)
        return self._form.filled(outputs)

    def _split(self, batch: Mapping[Variable, np.ndarray]) -> Sequence[Round]:
        if not self.cut.split:
            return [split.whole_batch_round(len(self.contexts))]
        turns = split.rounds(len(batch[self.cut.split[0]]), self.shards, len(self.contexts))
        if len(turns) > 1 and self._device_part.has_collectives:
            raise ValueError(
                f"{self.name}(): an average is needed again on the devices (synchronised batch norm), so all shards "
                f"must run at once, but {self.shards} shards of this batch take {len(turns)} rounds on "
                f"{len(self.contexts)} devices. Use as many shards as devices and a batch that they divide evenly."
            )
        return turns

    def _run(
        self, turns: Sequence[Round], batch: Mapping[Variable, np.ndarray], shared: list[Any]
    ) -> Iterator[ShardResults]:
        try:
            self._compile(turns, batch, shared)
            yield from launched_ahead([partial(self._launch, turn, batch, shared) for turn in turns], self.contexts)
        except UnsupportedGraphError:
            raise
        except ValueError as error:  # shapes that do not fit are found while the graph is traced
            raise ValueError(f"{self.name}(): {error} The inputs were {self._signature.described(batch)}.") from error

    def _launch(self, turn: Round, batch: Mapping[Variable, np.ndarray], shared: list[Any]) -> ShardResults:
        return self._program(turn, self._placed(turn, batch), shared)

    def _compile(self, turns: Sequence[Round], batch: Mapping[Variable, np.ndarray], shared: list[Any]) -> None:
        """Both programs at once, ahead of their first calls: compiled one by one, they leave cores idle."""
        new = {turn.size: turn for turn in turns if turn.size not in self._compiled_sizes}
        summed = None if len(turns) > 1 else turns[0].live
        if not new and summed in self._compiled_sums:
            return
        compilations = [self._program.lower(turn, self._placed(turn, batch), shared) for turn in new.values()]
        leaves_like = self._new_gather(turns).leaves_like(self._program.values_like, turns[0].live, self.contexts)
        with ThreadPoolExecutor(1) as pool:
            # What is wrong with the update rule, its call will say.
            pool.submit(self._update.compile, leaves_like, *self._update_arguments(batch))
            for compile_program in compilations:
                compile_program()
        self._compiled_sizes.update(new)
        self._compiled_sums.add(summed)

    def _placed(self, turn: Round, batch: Mapping[Variable, np.ndarray]) -> list[Any]:
        """The device part's inputs for a round: split ones a shard each, the others whole."""
        inputs = self.cut.device.inputs
        # One device takes numpy arrays over in the call itself, sooner than they could be placed.
        place = split.place if len(self.contexts) > 1 else split.parts
        parts = iter(place([batch[v] for v in inputs if v in self.cut.split], turn, self.contexts))
        whole = iter(placed([batch[v] for v in inputs if v in self.cut.whole], self._mirrors.placement))
        return [next(parts if v in self.cut.split else whole) for v in inputs]

    def _gather(self, turns: Sequence[Round], results: Iterable[ShardResults]) -> tuple[list[list[Any]], list[Report]]:
        """What is left to be summed by the update, and what else the rounds gave: no round's gradients stay."""
        gather = self._new_gather(turns)
        reports = []
        for turn, result in zip(turns, results, strict=True):
            gather.add(result.values, turn.live)
            reports.append(result.report)
        return gather.leaves(), reports

    def _new_gather(self, turns: Sequence[Round]) -> HostGather | MeshGather:
        return MeshGather() if self._on_device else HostGather(len(turns))

    def _apply(self, leaves: list[list[Any]], batch: Mapping[Variable, np.ndarray]) -> Updated:
        return self._update(leaves, *self._update_arguments(batch))

    def _update_arguments(self, batch: Mapping[Variable, np.ndarray]) -> tuple[list[Any], list[Any]]:
        inputs = [batch[v] for v in self._bundled.rest.inputs if v in self.cut.whole]
        whole = placed(inputs, self._update_mirrors.placement)
        return whole, self._update_mirrors.arrays(self._bundled.shared)

    def _check(self, reports: list[Report], updated: Updated) -> None:
        """Raise what the devices found wrong with the data; nothing has changed yet."""
        found = [(self._program.checks, report.checks) for report in reports]
        for checks, flags in [*found, (self._update.checks, updated.checks)]:
            for check, (ok, details) in zip(checks, flags, strict=True):
                passed = fetched([ok])[0]
                if not passed.all():
                    shard = int(np.argmin(passed))
                    values = fetched(list(details.values()))
                    shown = {name: value[shard] for name, value in zip(details, values, strict=True)}
                    raise check.error(f"{self.name}(): {check.message.format(**shown)}")

    def _new_values(
        self, turns: Sequence[Round], leaves: list[list[Any]], updated: Updated, batch: Mapping[Variable, np.ndarray]
    ) -> list[np.ndarray] | None:
        """The new values on the host, an array a slot; None for a step that is skipped."""
        taken = {read(v).ctypes.data for v in self.cut.host.shared if isinstance(read(v), np.ndarray)}
        new_values = [as_numpy(array, taken) for array in updated.new_values]
        if self._loss_scale and self._loss_scale.excuses(self._gradients(leaves), all(are_finite(new_values))):
            return None
        if self.nonfinite == "ignore":
            return new_values
        bad = [
            variable
            for slot, array, ok in zip(self._bundled.updated, new_values, are_finite(new_values), strict=True)
            if not ok
            for variable, value in zip(variables_of(slot), parts_of(slot, array), strict=True)
            if not is_finite(value)
        ]
        if bad and self.nonfinite == "raise":
            raise NonFiniteError(self._non_finite(turns, bad, batch))
        return None if bad else new_values

    def _gradients(self, leaves: list[list[Any]]) -> list[list[Any]]:
        """Of the gather's results those that ``tm.grad`` asked for."""
        gradients = {reduction.placeholder for reduction in self.cut.reductions if reduction.of_gradient}
        slots = zip(self._bundled.averages, leaves, strict=True)
        return [parts for slot, parts in slots if not gradients.isdisjoint(variables_of(slot))]

    def _non_finite(
        self, turns: Sequence[Round], bad: list[SharedVariable], batch: Mapping[Variable, np.ndarray]
    ) -> str:
        names = [v.name or str(v) for v in bad]
        shards = self._non_finite_shards(turns, batch)
        where = f"shards {shards} gave non-finite averages" if shards else "every shard's averages are finite"
        if self._loss_scale:
            where += f", and the loss scale has fallen to {self._loss_scale.value:g}, so that no smaller one would help"
        return (
            f"{self.name}(): call {self._calls} would write NaN or infinity to {', '.join(names[:8])}"
            f"{f' and {len(names) - 8} more' if len(names) > 8 else ''}; {where}. No parameter was changed. Look at "
            f'that part of the batch, lower the learning rate, or use nonfinite="skip".'
        )

    def _non_finite_shards(self, turns: Sequence[Round], batch: Mapping[Variable, np.ndarray]) -> list[int]:
        program = self._new_program(reduced=False)
        shared = self._mirrors.arrays(self.cut.device.shared)
        found = []
        for turn in turns:
            result = program(turn, self._placed(turn, batch), shared)
            rows = fetched([value for value in result.values if np.issubdtype(value.dtype, np.inexact)])
            found += [turn.shards[i] for i in range(turn.live) if not all(np.isfinite(row[i]).all() for row in rows)]
        return found

    def _outputs(self, turns: Sequence[Round], reports: list[Report], updated: Updated) -> list[np.ndarray]:
        live = [turn.live * turn.size for turn in turns]  # rows of devices that only repeat a shard come last
        rows = [[value[:n] for value in fetched(r.per_example)] for r, n in zip(reports, live, strict=True)]
        per_example = [np.concatenate(parts) for parts in zip(*rows, strict=True)]
        single = [np.array(output) for output in fetched(updated.outputs)]
        return [(per_example if o.per_example else single)[o.index] for o in self.cut.outputs]

    def _commit(self, updated: Updated, new_values: list[np.ndarray] | None) -> None:
        if self._loss_scale:
            self._loss_scale.follow(left_out=new_values is None)
        if new_values is None:
            self.skipped += 1
            return
        self._mirrors.drop((*self.cut.updated, *self._bundled.updated))
        for slot, new_value, array in zip(self._bundled.updated, new_values, updated.new_values, strict=True):
            parts = parts_of(slot, new_value)
            for variable, value in zip(variables_of(slot), parts, strict=True):
                commit(variable, value)
            self._update_mirrors.keep(slot, parts, new_value, array)
        for variable in self.cut.generators:
            commit(variable, advanced(read(variable)))

    @property
    def loss_scale(self) -> float | None:
        """What the loss is multiplied by in the backward pass; None in a step without float16 gradients.

        It may be set, to what a checkpoint has kept: a positive number where there is one, None where there is none.
        """
        return self._loss_scale.value if self._loss_scale else None

    @loss_scale.setter
    def loss_scale(self, value: float | None) -> None:
        if self._loss_scale:
            self._loss_scale.value = value
        elif value is not None:
            raise ValueError(
                f'{self.name}: loss_scale: only a step with precision="float16" and gradients by tm.grad has one; '
                f"expected None, got {value!r}."
            )

    def get_shared(self) -> list[SharedVariable]:
        """The shared variables that the step reads or writes."""
        both = (*self.cut.device.shared, *self.cut.host.shared, *self.cut.updated, *self.cut.generators)
        return list(dict.fromkeys(both))

    def dprint(self, **options: Any) -> Any:
        """``pytensor.dprint`` of the device part, then the host part."""
        return debugprint([*self.cut.device.outputs, *self.cut.host.outputs], **options)

    def draw(self, path: str | os.PathLike[str]) -> str | os.PathLike[str]:
        """Draw what runs where, and what travels between, as an SVG picture; returns ``path``, which ends in .svg."""
        return draw(self.cut, path, self._running())

    def _running(self) -> Running:
        labels = self._form.filled([np.empty(0)] * len(self.cut.outputs))
        names = tuple(map(str, labels)) if isinstance(labels, Mapping) else ()
        return Running(tuple(self.contexts.names), self.shards, self.update_on, names, self.name)

    def __str__(self) -> str:
        return diagram(self.cut, self._running())

    def __repr__(self) -> str:
        return f"<step {self.name!r} over {', '.join(self.contexts.names)}, {self.shards} shards>"
