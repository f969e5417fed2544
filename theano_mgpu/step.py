"""A step, which ``tm.function`` makes. A call of it: split, mirror, run, gather, update, commit."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
from pytensor.compile.sharedvalue import SharedVariable
from pytensor.graph.basic import Variable
from pytensor.printing import debugprint

from theano_mgpu.arguments import Argument, Signature
from theano_mgpu.assembly import Assembly
from theano_mgpu.cluster import Told, require_jax, together
from theano_mgpu.commit import NewValue, commit
from theano_mgpu.cut import Cut
from theano_mgpu.dealing import BoundBatch, Dealing
from theano_mgpu.devices import Contexts
from theano_mgpu.drawing import Running, diagram, draw
from theano_mgpu.errors import DeviceMemoryError, NonFiniteError, UnsupportedGraphError
from theano_mgpu.gather.combination import combined
from theano_mgpu.gather.tree import TreeSum
from theano_mgpu.laps import Laps
from theano_mgpu.launch import launched_ahead
from theano_mgpu.loss_scale import LossScale
from theano_mgpu.lowering.graph import lower
from theano_mgpu.lowering.precision import Precision
from theano_mgpu.mirror import (
    advanced,
    read,
    require_mirrorable,
    write,
)
from theano_mgpu.plan import DeviceMemory, Plan
from theano_mgpu.preparation import Shapes
from theano_mgpu.programs import Report, ShardResults, Updated
from theano_mgpu.resident_data import ResidentData
from theano_mgpu.results import (
    non_finite_error,
    non_finite_shards,
    of_all_ranks,
    outputs_of,
    per_example_outputs,
    require_passed,
)
from theano_mgpu.shards import ShardCount, is_out_of_memory
from theano_mgpu.slices import Slices
from theano_mgpu.specification import (
    Form,
    positive,
)
from theano_mgpu.split import Round
from theano_mgpu.vectors import Slot, variables_of

__all__ = ["Step"]

_MEMORY = {"is_out_of_memory": is_out_of_memory}


@dataclass(frozen=True)
class Attempt:
    """What a step computed, before it is committed; no new values where it is left out."""

    new_values: list[NewValue] | None
    outputs: list[np.ndarray]


class SentBatch(BoundBatch):
    """A batch that is on the devices already, the inputs of each round of ``step``; ``step.put`` makes it."""

    def __init__(self, step: Step, values: Mapping[Variable, np.ndarray]) -> None:
        super().__init__(values)
        self.step = step
        self.placed: dict[tuple[int, tuple[int, ...]], list[Any]] = {}  # by a round's size and starts


class Step:
    """A training step, or any function of a batch, over many devices. ``tm.function`` makes it."""

    def __init__(
        self,
        cut: Cut,
        arguments: list[Argument],
        form: Form,
        contexts: Contexts,
        *,
        slices: Slices,
        shards: int | None,
        split_over: str,
        update_on: str,
        precision: Precision,
        nonfinite: str,
        name: str,
    ) -> None:
        self.options: dict[str, Any] = {
            "split_over": split_over,
            "update_on": update_on,
            "precision": precision,
            "nonfinite": nonfinite,
            "name": name,
        }
        self._given = cut, arguments, form
        self.cut = cut
        self.name = name
        self.contexts = contexts
        self.update_on = update_on
        self.nonfinite = nonfinite
        self.skipped = 0  # steps left out, under nonfinite="skip" or for the loss scale
        self._calls = 0
        self._laps = Laps()
        self._rank_seconds: list[float] = []
        self._making = threading.Lock()
        self._shard_count = ShardCount(name, shards, sum(contexts.counts), self._largest_of_ranks)
        self._form = form
        self._slices = slices
        self._signature = Signature(name, tuple(arguments), cut.split)
        self._on_device = update_on == "device"
        for variable in self.get_shared():
            require_mirrorable(variable)
        self._device_part = lower(cut.device, precision)
        is_scaled = precision.is_scaled and any(reduction.of_gradient for reduction in cut.reductions)
        self._loss_scale = LossScale() if is_scaled else None
        # Where devices need each other's numbers, those of all ranks run one program.
        of_all = self._on_device or self.needs_one_round
        if of_all and contexts.cluster:
            require_jax(contexts.cluster, name)
        self._mesh = contexts.everywhere if of_all else contexts
        self._dealing = Dealing(name, cut, contexts, split_over=split_over, joint=self.needs_one_round, of_all=of_all)
        self._assembly = self._assembled()

    def _assembled(self) -> Assembly:
        return Assembly(
            self.cut,
            self._device_part,
            self.contexts,
            self._mesh,
            on_device=self._on_device,
            looks=self._looks,
            loss_scale=self._loss_scale,
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """One step; outputs come as numpy arrays."""
        self._laps.begin()
        self._calls += 1
        batch = self._bound(args, kwargs)
        while True:
            try:
                attempt = self._attempt(batch)
                break
            except Exception as error:
                if not is_out_of_memory(error) or not self.cut.split:
                    raise
                self._require_separate_shards(error)
                self._shard_count.halve(self._dealing.examples(batch), error)
                self._laps.end("compute")
        self._commit(attempt.new_values)
        self._at("done")
        self._shard_count.tell()
        outputs = self._form.filled(attempt.outputs)
        if self.nonfinite == "skip" and isinstance(outputs, dict):
            outputs.setdefault("skipped", self.skipped)
        self._laps.end("update")
        return outputs

    @property
    def seconds(self) -> dict[str, float]:
        """Where the time of the last call went, as the caller's thread saw it; the sum is the call's own time.

        "copy": checking the batch, sending it and the shared variables to the devices.
        "compute": the device program: compiling it, starting it, and waiting for it; attempts that ran out of memory.
        "gather": summing rounds, and gradients to the host.
        "update": the host program, looking at new values, commit and outputs.

        With ``update_on="device"`` all that is on the devices is waited for at once, after the update rule was started:
        "compute" has the sums between devices and the rule as well, and "gather" and "update" are what it takes to
        start them, and the commit. Where nothing is read, without outputs and with nonfinite="ignore", the call returns
        while the devices compute, and the next one's waiting has that time.

        A copy that a device makes behind the call goes to "compute"; a batch that was put takes no copy in the call.
        """
        return self._laps.seconds

    @property
    def rank_seconds(self) -> list[float]:
        """Of each rank, how long its own part of the last call took: until it had its sums, and waited for others'."""
        return list(self._rank_seconds)

    def attempt(self, *args: Any, **kwargs: Any) -> Attempt:
        """All of a step but its commit."""
        self._laps.begin()
        return self._attempt(self._bound(args, kwargs))

    def attempt_alone(self, *args: Any, **kwargs: Any) -> Attempt:
        """The same by this process's first device alone, of all ranks' batch, with this rank's rows of outputs.

        Raises ValueError where ranks gave parts that are not cut as one device cuts the batch.
        """
        whole, own = self._dealing.whole(self._values(args, kwargs), self.shards)
        alone = self.over(self.contexts.local[:1])
        alone._laps.begin()
        attempt = alone._attempt(whole)
        outputs = zip(attempt.outputs, self.cut.outputs, strict=True)
        return Attempt(attempt.new_values, [value[own] if output.per_example else value for value, output in outputs])

    def place_of(self, value: NewValue) -> slice | None:
        """Where of an attempt's new value this process has a piece; None where it has the whole."""
        return self._assembly.shares.place(value)

    def over(self, contexts: Contexts) -> Step:
        """The same step, in as many shards, over other contexts."""
        step = Step(*self._given, contexts, slices=self._slices, shards=self.shards, **self.options)
        step.loss_scale = self.loss_scale
        return step

    def mirrored(self) -> dict[Slot, jax.Array]:
        """What the devices have of shared variables now."""
        self._follow_shapes()
        slots = [slot for slot in self._assembly.mirrored if not isinstance(slot, ResidentData)]
        with jax.enable_x64(True):
            return dict(zip(slots, self._assembly.mirrors.arrays(slots), strict=True))

    def put(self, *args: Any, **kwargs: Any) -> SentBatch:
        """Split a batch and send it to the devices ahead of time: ``step(step.put(images, labels))``.

        Returns at once, while the devices may still compute the step before; so the next batch's transfer and this
        one's computation overlap. The arrays are copied, and are the caller's again. Another thread may do it while the
        step runs.
        """
        batch = SentBatch(self, {v: np.array(value) for v, value in self._values(args, kwargs).items()})
        if self._dealing.by_ranks:  # of one length, until the call knows better
            batch.lengths = (len(batch[self.cut.split[0]]),) * len(self.contexts.ranks)
        self._follow_shapes()
        # Where other ranks have other lengths, the call will know.
        with jax.enable_x64(True), suppress(ValueError) if self._dealing.by_ranks else nullcontext():
            batch.placed = {
                (turn.size, turn.starts): self._placed(turn, batch) for turn in self._split(batch, ahead=True)
            }
        return batch

    def part(self, batch_size: int) -> slice:
        """Which of a batch's examples this process computes: all of them, or under mpirun its rank's part.

        With split_over="ranks" they are what the step is to be called with.
        """
        part = self._dealing.part(positive("batch_size", batch_size), self.shards)
        return slice(part.start, part.stop)

    @property
    def takes_parts(self) -> bool:
        """Whether a call takes this rank's part of a batch alone: under mpirun, with split_over="ranks"."""
        return self._dealing.by_ranks

    @property
    def sends_ahead(self) -> bool:
        """Whether ``put`` can save time, and changes nothing: devices have a memory of their own.

        Simulated devices share the cores that would copy: ResNet-18's step is no faster (0.97 and 1.09 of its time in
        benchmarks/put.py, batches of 16 and 32 on two), and the copy is one more. Rows by numbers that a step may
        change (slices in givens) are not known ahead.
        """
        is_asked = self._shard_count.is_found and self.contexts.cluster is not None  # the other ranks, by one thread
        return self.contexts.platform != "cpu" and not self._slices.rows and not is_asked

    @property
    def needs_one_round(self) -> bool:
        """Whether shards need each other's averages on the devices, as in synchronised batch norm."""
        return self._device_part.has_collectives

    @property
    def shards(self) -> int:
        """The number of pieces that the last batch was cut into, or the next will be."""
        return self._shard_count.now

    def plan(self, batch_size: int, **shapes: Sequence[int]) -> Plan:
        """What a step on ``batch_size`` examples needs of memory and arithmetic; nothing runs, programs are compiled.

        ``shapes``: of one example of an input, by name, where the graph does not tell: ``images=(224, 224, 3)``.
        Raises ValueError or TypeError for a batch size or shapes that are not enough or do not fit, DeviceMemoryError
        with shards="auto" where not one example fits.
        """
        batch_size = positive("batch_size", batch_size)
        self._follow_shapes()
        inputs = self._signature.shapes(batch_size, shapes) | dict.fromkeys(self._slices.rows, (batch_size,))
        shards = self._shards_for(batch_size, inputs)
        return self._assembly.preparation.plan(batch_size, shards, self._dealing.turns(batch_size, shards), inputs)

    def _attempt(self, batch: BoundBatch) -> Attempt:
        """Nothing visible changes before the commit; under mpirun it is reached by all ranks or by none."""
        self._follow_shapes()
        with jax.enable_x64(True):
            with self._together("computing", "while it computed", **_MEMORY) as told:
                turns = self._split(batch)
                shared = self._assembly.shared_values()
                self._laps.end("copy")
                own, reports = self._gather(turns, self._run(turns, batch, shared))
                of_rank = self._dealing.own(turns)
                require_passed(
                    self.name, [(r.checks, r.flags) for t, r in zip(of_rank, reports, strict=True) if t.live]
                )
                told.own = self._assembly.shares.wanted_whole(), self._laps.total
            self._rank_seconds = [seconds for _, seconds in told.everyone]
            wanted_whole = [any(of_slot) for of_slot in zip(*(wanted for wanted, _ in told.everyone), strict=True)]
            self._at("exchanging sums")
            rows = self._assembly.shares.rows(own)
            self._laps.end("gather")
            with self._together("updating", "while it updated") as told, self._needing_others():
                updated = self._assembly.apply(rows, batch)
                require_passed(self.name, [(self._assembly.update.checks, updated.checks)])
                values = self._assembly.shares.new_values(updated.new_values, self.cut.host.shared, wanted_whole)
                told.own = self._verdict(values, rows, updated)
            attempt = Attempt(self._judged(values, told, turns, batch), self._outputs(batch, of_rank, reports, updated))
            self._laps.end("compute" if self._on_device else "update")
            return attempt

    def _together(self, phase: str, doing: str, **options: Any) -> AbstractContextManager[Told]:
        """What all ranks succeed in or none; ``doing`` is as in "rank 1 failed while it computed call 3 of step()"."""
        self._at(phase)
        return together(self.contexts.cluster, f"{doing} call {self._calls} of {self.name}()", **options)

    def _at(self, phase: str) -> None:
        """For what is said of this rank if it dies or hangs."""
        if self.contexts.cluster is not None:
            self.contexts.cluster.at(phase=f"{self.name}(): {phase}", call=self._calls)

    def _needing_others(self) -> AbstractContextManager[None]:
        """Inside, a program waits for other ranks' devices, if it runs on those too."""
        cluster = self.contexts.cluster
        return nullcontext() if cluster is None or self._mesh is self.contexts else cluster.waiting()

    def _bound(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> BoundBatch:
        with self._together("taking inputs", "with the inputs of") as told:
            batch = self._values(args, kwargs)
            told.own = len(batch[self.cut.split[0]]) if self.cut.split else 0
        if self._dealing.by_ranks:
            batch.lengths = tuple(told.everyone)
            if self.cut.split and not sum(batch.lengths):
                raise ValueError(f"{self.name}(): the batch is empty on every rank; at least one example is needed.")
            if not told.own:
                return BoundBatch(self._dealing.with_a_row(batch), batch.lengths)
        return batch

    def _values(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> BoundBatch:
        if not any(isinstance(argument, SentBatch) for argument in (*args, *kwargs.values())):
            batch = self._signature.bind(args, kwargs, may_be_empty=self._dealing.by_ranks)
            sliced = self._slices.values(self.name, self._signature.arguments, batch, self.cut.split)
            return BoundBatch(batch | sliced)
        if len(args) != 1 or kwargs or args[0].step is not self:
            raise TypeError(
                f"{self.name}(): a batch that was put is the step's only argument, and of the step that put it: "
                f"{self.name}({self.name}.put(...))."
            )
        return args[0]

    def _follow_shapes(self) -> None:
        with self._making:  # else a thread that puts a batch, and the step, could see half of it
            if not self._assembly.fits:
                self._assembly = self._assembled()

    def _split(self, batch: BoundBatch, *, ahead: bool = False) -> Sequence[Round]:
        examples = self._dealing.examples(batch)
        if not self.cut.split:
            return self._dealing.turns(examples, shards=1)
        shapes = {v: value.shape for v, value in batch.items()}
        return self._dealing.turns(examples, self._shards_for(examples, shapes, ahead=ahead), batch.lengths)

    def _require_separate_shards(self, error: Exception) -> None:
        if self.needs_one_round:
            raise DeviceMemoryError(
                f"{self.name}(): out of memory, and an average is needed again on the devices (synchronised batch "
                f"norm), so that shards cannot take turns: {error} No parameter was changed. Use a smaller batch or "
                f"more devices."
            ) from error

    def _shards_for(self, examples: int, shapes: Shapes, *, ahead: bool = False) -> int:
        preparation = self._assembly.preparation

        def need(shards: int) -> DeviceMemory:
            return preparation.device_memory(self._dealing.turns(examples, shards), shapes)

        count = self._shard_count.foreseen if ahead else self._shard_count.of
        return count(examples, need, preparation.limit)

    def _largest_of_ranks(self, find: Callable[[], int]) -> int:
        with self._together("choosing shards", "while it looked for a number of shards for") as told:
            told.own = find()
        return max(told.everyone)

    def _run(
        self, turns: Sequence[Round], batch: Mapping[Variable, np.ndarray], shared: list[Any]
    ) -> Iterator[ShardResults]:
        try:
            shapes = {v: value.shape for v, value in batch.items()}
            # A rank that then ran no program would leave the others' programs waiting for it.
            of_all = self._mesh is not self.contexts
            with self._together("compiling", "while it prepared", **_MEMORY) if of_all else nullcontext():
                self._assembly.preparation.prepare(turns, shapes)
                self._assembly.preparation.require_fit(turns, shapes)
            self._laps.end("compute")
            launches = [partial(self._launch, turn, batch, shared) for turn in turns]
            with self._needing_others():
                yield from launched_ahead(launches, self._mesh)
        except UnsupportedGraphError:
            raise
        except ValueError as error:  # shapes that do not fit are found while the graph is traced
            raise ValueError(f"{self.name}(): {error} The inputs were {self._signature.described(batch)}.") from error

    def _launch(self, turn: Round, batch: Mapping[Variable, np.ndarray], shared: list[Any]) -> ShardResults:
        inputs = self._placed(turn, batch)
        self._laps.end("copy")
        results = self._assembly.program(turn, inputs, shared)
        self._laps.end("compute")
        return results

    def _placed(self, turn: Round, batch: Mapping[Variable, np.ndarray]) -> list[list[Any]]:
        if isinstance(batch, SentBatch) and (turn.size, turn.starts) in batch.placed:
            return batch.placed[turn.size, turn.starts]
        return self._assembly.placed_inputs(turn, batch)

    def _gather(self, turns: Sequence[Round], results: Iterable[ShardResults]) -> tuple[list[list[Any]], list[Report]]:
        """This process's sums over its shards, and what else the rounds gave: no round's gradients stay."""
        sums = TreeSum(partial(combined, self._assembly.bundled.kinds))
        reports = []
        following = [turn.place for turn in turns[1:]] + [turns[-1].place + 1]
        for turn, result, next_place in zip(turns, results, following, strict=True):
            self._laps.end("compute")
            sums.push(turn.place, result.values, next_place)
            reports.append(result.report)
            self._laps.end("gather")
        values = sums.result()
        self._laps.end("gather")
        if not self._on_device:
            self._wait(values, reports)
        own = self._assembly.shares.own_sums(values)
        self._laps.end("gather")
        return own, reports

    def _wait(self, values: Sequence[jax.Array], reports: Sequence[Report]) -> None:
        """For what the next lines read: so the time counts as the devices', and nothing takes longer."""
        for array in itertools.chain(values, *(part for report in reports for part in report.per_example)):
            array.block_until_ready()  # sooner, by 10 us, than ``jax.block_until_ready`` of them all
        self._laps.end("compute")

    def _verdict(self, values: list[NewValue], rows: list[list[Any]], updated: Updated) -> tuple[list[int], bool]:
        """What this process sees: the numbers of new values that are not finite, and whether the loss scale is why."""
        bad = self._assembly.shares.non_finite(values, updated.finite) if self._looks else []
        scale = self._loss_scale
        return bad, scale is not None and scale.excuses(self._assembly.gradients(rows), values_are_finite=not bad)

    def _judged(
        self, values: list[NewValue], told: Told, turns: Sequence[Round], batch: Mapping[Variable, np.ndarray]
    ) -> list[NewValue] | None:
        """The new values, a slot each; None for a step that is skipped. All processes judge alike."""
        if any(excused for _, excused in told.everyone):
            return None
        bad = sorted({number for found, _ in told.everyone for number in found})
        if not bad or self.nonfinite == "ignore":
            return values
        if self.nonfinite == "raise":
            variables = [variable for slot in self._assembly.bundled.updated for variable in variables_of(slot)]
            raise self._non_finite_error(turns, [variables[number] for number in bad], batch)
        return None

    def _outputs(
        self, batch: BoundBatch, turns: Sequence[Round], reports: Sequence[Report], updated: Updated
    ) -> list[np.ndarray]:
        per_example = per_example_outputs(turns, reports)
        cluster = self.contexts.cluster
        if cluster is not None and per_example and not self._dealing.by_ranks:
            per_example = of_all_ranks(cluster, per_example, self._dealing.lengths(batch, self.shards))
        return outputs_of(self.cut, per_example, updated)

    @property
    def _looks(self) -> bool:
        """Whether new values are finite matters."""
        return self.nonfinite != "ignore" or self._loss_scale is not None

    def _non_finite_error(
        self, turns: Sequence[Round], bad: list[SharedVariable], batch: Mapping[Variable, np.ndarray]
    ) -> NonFiniteError:
        shared = self._assembly.shared_values()
        with self._together("looking at what is not finite", "while it looked for what is not finite in") as told:
            results = (self._launch(turn, batch, shared) for turn in turns)
            told.own = non_finite_shards(self._dealing.own(turns), results)
        shards = sorted(number for of_rank in told.everyone for number in of_rank)
        return non_finite_error(self.name, self._calls, bad, shards, self.loss_scale)

    def _commit(self, values: list[NewValue] | None) -> None:
        if self._loss_scale:
            self._loss_scale.follow(left_out=values is None)
        if values is None:
            self.skipped += 1
            return
        self._assembly.mirrors.drop((*self.cut.updated, *self._assembly.bundled.updated))
        commit(values, self._assembly.update_mirrors)
        self._assembly.shares.offer(values)
        for variable in self.cut.generators:
            write(variable, advanced(read(variable)))

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

    @property
    def counts(self) -> dict[str, Any]:
        """What a step keeps besides shared variables: "skipped", "loss_scale", "good_steps" in a row of that scale.

        It may be set, to what a checkpoint has kept.
        """
        scale = self._loss_scale
        return {
            "skipped": self.skipped,
            "loss_scale": scale.value if scale else None,
            "good_steps": scale.good_steps if scale else 0,
        }

    @counts.setter
    def counts(self, counts: Mapping[str, Any]) -> None:
        if self._loss_scale and counts["loss_scale"] is not None:
            self._loss_scale.go_on(counts["loss_scale"], counts["good_steps"])
        else:
            self.loss_scale = counts["loss_scale"]
        self.skipped = int(counts["skipped"])

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
