"""Four float32 numbers in one register, inside Numba functions. LLVM's own way to find them (SLP) is off in Numba."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core.datamodel import models
from numba.extending import intrinsic, register_model

__all__ = ["load_four", "no_four", "store_four", "with_weighted"]

_VECTOR = ir.VectorType(ir.FloatType(), 4)


class _Four(types.Type):
    def __init__(self) -> None:
        super().__init__("FourFloats")


_four = _Four()


@register_model(_Four)
class _FourModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _VECTOR)


@intrinsic
def no_four(typing):  # type: ignore[no-untyped-def]
    """Four zeros."""
    return _four(), lambda context, builder, signature, arguments: ir.Constant(_VECTOR, [0.0] * 4)


@intrinsic
def load_four(typing, array, place):  # type: ignore[no-untyped-def]
    """``array[place : place + 4]``, a contiguous float32 array; nothing is checked."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.load(_pointer(context, builder, signature, arguments), align=4)

    return _four(array, place), generate


@intrinsic
def store_four(typing, array, place, four):  # type: ignore[no-untyped-def]
    """``array[place : place + 4] := four``."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        builder.store(arguments[2], _pointer(context, builder, signature, arguments), align=4)
        return context.get_dummy_value()

    return types.void(array, place, four), generate


@intrinsic
def with_weighted(typing, four, weight, other):  # type: ignore[no-untyped-def]
    """``four + weight * other``, rounded twice, as single numbers would be."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        four, weight, other = arguments
        all_alike = ir.Constant(_VECTOR, ir.Undefined)
        for lane in range(4):
            all_alike = builder.insert_element(all_alike, weight, ir.Constant(ir.IntType(32), lane))
        return builder.fadd(four, builder.fmul(all_alike, other))

    return _four(four, types.float32, other), generate


def _pointer(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    array = context.make_array(signature.args[0])(context, builder, arguments[0])
    return builder.bitcast(builder.gep(array.data, [arguments[1]]), _VECTOR.as_pointer())
