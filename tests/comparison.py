"""The yardstick: plain ``pytensor.function`` on the same graph and the whole batch."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
import pytensor
from pytensor.compile.mode import Mode

import theano_mgpu as tm

#: PyTensor without a compiler; stabilised, as by default.
PYTHON = Mode(linker="py", optimizer="fast_run")

# Sums of a few hundred float32 numbers in another order differ by less than this, relative to the largest.
TOLERANCE = 1e-5


@dataclass
class Graph:
    """What both ``pytensor.function`` and ``tm.function`` are given; ``watched`` are compared after every step."""

    inputs: list[Any]
    outputs: Any = None
    updates: Any = None
    givens: Any = None
    options: dict[str, Any] = field(default_factory=dict)  # for tm.function alone
    watched: Sequence[Any] = ()


@dataclass(frozen=True)
class Reference:
    """What plain PyTensor gave: for every batch the outputs, and the watched variables after it."""

    batches: list[Sequence[Any]]
    outputs: list[list[np.ndarray]]
    values: list[list[np.ndarray]]


def watched(graph: Graph) -> list[Any]:
    return list(graph.watched or dict(graph.updates or ()))


def plain(build: Callable[[], Graph], batches: list[Sequence[Any]], mode: Mode = PYTHON) -> Reference:
    """Plain PyTensor on a fresh graph."""
    graph = build()
    outputs = graph.outputs
    form = list(outputs.values()) if isinstance(outputs, dict) else outputs
    # A loop's body is compiled in the mode of the configuration; without C.
    with warnings.catch_warnings(), pytensor.config.change_flags(mode="FAST_COMPILE"):
        warnings.simplefilter("ignore")  # PyTensor's own, such as of a missing BLAS
        function = pytensor.function(
            graph.inputs,
            form,
            updates=graph.updates,
            givens=graph.givens,
            mode=mode,
            on_unused_input="ignore",
            allow_input_downcast=True,
        )
        results, values = [], []
        for batch in batches:
            results.append(as_list(function(*batch)))
            values.append([np.array(v.get_value()) for v in watched(graph)])
    return Reference(batches, results, values)


def compare_with_pytensor(
    build: Callable[[], Graph], batches: list[Sequence[Any]] | Reference, contexts: Any, **options: Any
) -> tm.Step:
    """Run a fresh graph over ``contexts`` and hold every output and shared value to plain PyTensor's.

    ``batches`` may be the reference that ``plain`` made of them. No hidden copy between host and devices is allowed.
    """
    reference = batches if isinstance(batches, Reference) else plain(build, batches)
    graph = build()
    step = tm.function(
        graph.inputs,
        graph.outputs,
        updates=graph.updates,
        givens=graph.givens,
        contexts=contexts,
        **{**graph.options, **options},
    )
    for batch, outputs, values in zip(reference.batches, reference.outputs, reference.values, strict=True):
        with jax.transfer_guard("disallow"):
            results = as_list(step(*batch))
        for got, expected in zip(results, outputs, strict=True):
            assert_close(got, expected)
        for variable, expected in zip(watched(graph), values, strict=True):
            assert_close(variable.get_value(), expected)
    return step


def as_list(outputs: Any) -> list[np.ndarray]:
    """The outputs of a call, whatever their form."""
    if isinstance(outputs, dict):
        return list(outputs.values())
    if outputs is None:
        return []
    return list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]


def assert_close(got: Any, expected: Any, tolerance: float = TOLERANCE) -> None:
    """A numpy array of the same shape and dtype, and within ``tolerance`` of the largest magnitude."""
    expected = np.asarray(expected)
    assert isinstance(got, np.ndarray)
    assert (got.shape, got.dtype) == (expected.shape, expected.dtype)
    scale = float(np.max(np.abs(expected), initial=0.0)) if expected.dtype.kind == "f" else 0.0
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * scale)


def states(*variables: Any) -> list[Any]:
    """The exact bits of shared variables: arrays as bytes, random generators as their state."""
    values = [v.get_value() for v in variables]
    return [v.tobytes() if isinstance(v, np.ndarray) else str(v.bit_generator.state) for v in values]
