"""What a step runs, for the shapes that shared variables have now: programs, mirrors, and who updates what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pytensor.graph.basic import Variable

from theano_mgpu import split
from theano_mgpu.bundles import bundled
from theano_mgpu.cut import Cut
from theano_mgpu.devices import Contexts
from theano_mgpu.loss_scale import LossScale
from theano_mgpu.lowering.graph import Lowered
from theano_mgpu.mirror import Mirrors, host_device, on_every, on_host, placed, shapes_of
from theano_mgpu.pieces import current
from theano_mgpu.preparation import Preparation
from theano_mgpu.programs import DeviceProgram, Updated, UpdateProgram
from theano_mgpu.shares import Alone, Shares
from theano_mgpu.split import Round
from theano_mgpu.vectors import Vector, slots_of, variables_of

__all__ = ["Assembly"]


class Assembly:
    """The two programs of a step over ``mesh``: ``contexts``, or where devices need each other's numbers, all ranks'.

    ``looks`` says whether it matters that new values are finite. Where a shared variable gets a value of another shape,
    ``fits`` is over, and a new assembly is needed: old mirrors hold vectors of other shapes.
    """

    def __init__(
        self,
        cut: Cut,
        device_part: Lowered,
        contexts: Contexts,
        mesh: Contexts,
        *,
        on_device: bool,
        looks: bool,
        loss_scale: LossScale | None,
    ) -> None:
        self._cut = cut
        self._mesh = mesh
        is_host = mesh.devices == [host_device()]
        self.mirrors = Mirrors(on_every(mesh))
        self.update_mirrors = self.mirrors if on_device or is_host else Mirrors(on_host())
        self.lends = on_device and not is_host
        self.bundled = bundled(cut, shapes_of((*cut.host.shared, *cut.updated)))
        # What is lent as a vector, the device program takes as one.
        vectors = [slot for slot in self.bundled.updated if isinstance(slot, Vector)] if self.lends else []
        self.mirrored = slots_of(cut.device.shared, vectors)
        scale = None if loss_scale is None else lambda: loss_scale.value
        self.program = DeviceProgram(cut, device_part, self.bundled, self.mirrored, mesh, scale)
        placement = self.update_mirrors.placement
        self.shares: Alone
        if contexts.cluster is None or on_device:
            self.shares = Alone(self.bundled, mesh, on_device=on_device, lending=self.lends)
        else:
            self.shares = Shares(contexts.cluster, self.bundled, contexts, placement, read=cut.device.shared)
        self.update = UpdateProgram(
            self.bundled, placement, mesh if on_device else None, self.shares.starts, looks=looks and self.lends
        )
        self.preparation = Preparation(
            cut,
            self.program,
            self.update,
            self.mirrored,
            (self.mirrors, self.update_mirrors),
            mesh,
            contexts,
            self.shares,
            on_device=on_device,
        )

    @property
    def fits(self) -> bool:
        """Whether shared variables have the shapes that this was made for."""
        return shapes_of(self.bundled.shapes) == self.bundled.shapes

    def shared_values(self) -> list[Any]:
        """What the devices have of shared variables now."""
        return current(self.mirrored, self.mirrors, self._mesh)

    def placed_inputs(self, turn: Round, batch: Mapping[Variable, np.ndarray]) -> list[list[Any]]:
        """The device part's inputs for a round, of each of its parts: split ones a shard each, the others whole."""
        inputs, is_split = self._cut.device.inputs, self._cut.split
        arrays = [batch[v] for v in inputs if v in is_split]
        parts = zip(*(split.place(arrays, part, self._mesh) for part in turn.parts), strict=True)
        whole = placed([batch[v] for v in inputs if v in self._cut.whole], self.mirrors.placement)
        of_whole = iter([value] * len(turn.parts) for value in whole)
        return [list(next(parts)) if v in is_split else next(of_whole) for v in inputs]

    def apply(self, rows: Sequence[Sequence[Any]], batch: Mapping[Variable, np.ndarray]) -> Updated:
        """The update program on what was gathered."""
        whole = placed([batch[v] for v in self.update.whole], self.update_mirrors.placement)
        shared = self.bundled.shared
        own = self.shares.own(shared, current(shared, self.update_mirrors))
        return self.update(rows, whole, own, self.shares.memory())

    def gradients(self, rows: list[list[Any]]) -> list[list[Any]]:
        """Of the gather's results those that ``tm.grad`` asked for."""
        gradients = {reduction.placeholder for reduction in self._cut.reductions if reduction.of_gradient}
        slots = zip(self.bundled.gathered, rows, strict=True)
        return [parts for slot, parts in slots if not gradients.isdisjoint(variables_of(slot))]
