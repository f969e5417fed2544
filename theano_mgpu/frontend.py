"""``tm.function``: what it is given is checked, cut, and made into a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pytensor.graph.basic import Variable

from theano_mgpu import devices
from theano_mgpu.arguments import parse_inputs, without_implicit
from theano_mgpu.cut import cut
from theano_mgpu.devices import Context, Contexts
from theano_mgpu.lowering.precision import named_precision
from theano_mgpu.same_start import start_alike
from theano_mgpu.slices import look_ups_first, with_slices_looked_up
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
from theano_mgpu.step import Step

__all__ = ["function"]


def function(
    inputs: Sequence[Any],
    outputs: Any = None,
    *,
    updates: Any = None,
    givens: Any = None,
    contexts: Contexts | Context | str | None = None,
    shards: int | str | None = None,
    split_over: str = "devices",
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
        may be larger than their memory. "auto": the smallest power of two with which every device's memory suffices
        (``step.plan``). For a power of two the result is the same to the bit on any power of two of devices of one
        kind. Where a device runs out of memory all the same, the step goes on with twice as many.
    split_over: under mpirun, "devices": all ranks give the same batch, of which each computes its part; or "ranks":
        each gives its own part (``step.part`` says which that is), and gets its own rows of outputs that keep the batch
        axis. Parts may have different sizes, or none. Without mpirun both are the same.
    update_on: "host", or "device" where the averages are taken between the devices and each applies the update.
    precision: in which the part below the averages computes what the graph declares float32. "float32": so.
        "bfloat16": products and convolutions take bfloat16 operands, add up in float32, and activations and their
        gradients stay bfloat16; parameters, statistics, losses and averages are float32, and so is the update.
        "float16": the same in float16, with a dynamic loss scale, ``step.loss_scale``. "float64": all of it in double
        precision, its averages rounded. See docs/precision.md.
    nonfinite: a step with a non-finite update changes nothing and raises ``NonFiniteError`` ("raise"), changes nothing
        and goes on ("skip", counted in ``step.skipped`` and, where outputs are a dict, in its "skipped"), or is
        applied ("ignore").
    on_unused_input: "raise", "warn" or "ignore"; allow_input_downcast: as in ``pytensor.function``.
    name: stands in the errors of a call.

    Under mpirun all ranks make the same step at the same time, else RanksDifferError says what differs; shared
    variables take rank 0's values.

    Raises TypeError or ValueError naming the argument, CutError for a graph without an average where one is needed,
    UnsupportedGraphError for what cannot run on a device.
    """
    reject_unknown(unknown)
    computed_in = named_precision(precision)
    require_one_of("update_on", update_on, ("host", "device"))
    require_one_of("split_over", split_over, ("devices", "ranks"))
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
    graph = [*form.variables, *new_values.values()]
    givens, slices = with_slices_looked_up(givens, graph, variables)
    graph = look_ups_first(with_givens(graph, givens, variables))
    count = len(form.variables)
    new_values = dict(zip(new_values, graph[count:], strict=True))
    new_values = with_default_updates(graph[:count], new_values, givens, variables)
    check_used(arguments, [*graph[:count], *new_values.values(), *slices.bounds], on_unused_input, slices.rows)
    parts = cut([*variables, *slices.rows], graph[:count], new_values, broadcast)
    step = Step(
        parts,
        arguments,
        form,
        contexts,
        slices=slices,
        shards=_shard_count(shards, contexts),
        split_over=split_over,
        update_on=update_on,
        precision=computed_in,
        nonfinite=nonfinite,
        name=name or "step",
    )
    start_alike(step)
    return step


def _shard_count(shards: int | str | None, contexts: Contexts) -> int | None:
    """None where the step finds it."""
    if shards is None:
        return sum(contexts.counts)
    return None if shards == "auto" else positive("shards", shards, otherwise=' or "auto"')
