"""What differs between the versions of PyTensor and JAX that we run on: 3.0 to 3.3, and 0.10 to 0.12."""

from __future__ import annotations

from typing import Any

import pytensor.tensor.subtensor as subtensor
from pytensor.graph.basic import Apply
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.op import Op

__all__ = ["WRITES_INTO_FIRST_INPUT", "OpWithShapes", "mutable_copy"]


class OpWithShapes(Op):
    """An op that tells its outputs' shapes: ``output_shapes(node, input_shapes)``.

    PyTensor asks by ``infer_shape(fgraph, node, input_shapes)`` up to 3.2, and without the first from 3.3 on.
    """

    def infer_shape(self, *arguments: Any) -> list[Any]:
        *_, node, input_shapes = arguments
        return self.output_shapes(node, input_shapes)

    def output_shapes(self, node: Apply, input_shapes: list[Any]) -> list[Any]:
        raise NotImplementedError(f"{type(self).__name__} needs output_shapes(node, input_shapes).")


def mutable_copy(graph: Any) -> FunctionGraph:
    """A copy, to be rewritten, of an op's inner graph, which is frozen from 3.3 on."""
    return graph.unfreeze() if hasattr(graph, "unfreeze") else graph.clone()


# AdvancedIncSubtensor1 became a case of AdvancedIncSubtensor in 3.3.
WRITES_INTO_FIRST_INPUT = tuple(
    getattr(subtensor, name)
    for name in ("IncSubtensor", "AdvancedIncSubtensor", "AdvancedIncSubtensor1")
    if hasattr(subtensor, name)
)
