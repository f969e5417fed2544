"""What a caller hands to a step: by position or name, with defaults, checked before anything runs."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pytensor.compile import io
from pytensor.compile.sharedvalue import SharedVariable
from pytensor.graph.basic import Constant, Variable
from pytensor.tensor.type import TensorType

__all__ = ["Argument", "In", "Signature", "parse_inputs", "without_implicit"]


class In(io.In):
    """``pytensor.In`` whose default may be a plain value, a number or an array; PyTensor 3's takes none.

    Raises TypeError for a default that is not of the variable's type.
    """

    def __init__(self, variable: Variable, name: str | None = None, value: Any = None, **options: Any) -> None:
        implicit = isinstance(value, SharedVariable)
        super().__init__(variable, name=name, value=value if implicit else None, **options)
        if value is not None and not implicit:
            argument = Argument(variable, name or variable.name, None, self.allow_downcast)
            self.value = _converted(argument, value, 0, "In()")


@dataclass(frozen=True)
class Argument:
    """One input of a step: its variable, the name it is called by, and its default (None for none)."""

    variable: Variable
    name: str | None
    default: Any
    allow_downcast: bool | None

    def label(self, position: int) -> str:
        return f"'{self.name}'" if self.name else f"input {position}"

    def expected(self) -> str:
        kind = self.variable.type
        shape = ", ".join("any" if n is None else str(n) for n in kind.shape)
        return f"{kind.dtype} of shape ({shape})" if kind.ndim else f"a {kind.dtype} scalar"


def parse_inputs(inputs: Sequence[Any], allow_downcast: bool | None) -> list[Argument]:
    """Arguments from variables and ``In`` specifications; an error for what is neither or stands twice."""
    if not isinstance(inputs, (list, tuple)):
        raise TypeError(f"inputs: expected a list of variables, got {type(inputs).__name__}.")
    arguments = [_parse(given, position, allow_downcast) for position, given in enumerate(inputs)]
    variables = [a.variable for a in arguments]
    names = [a.name for a in arguments if a.name]
    for argument in arguments:
        if variables.count(argument.variable) > 1:
            raise ValueError(f"inputs: {argument.variable} stands {variables.count(argument.variable)} times.")
        if argument.name and names.count(argument.name) > 1:
            raise ValueError(
                f"inputs: {names.count(argument.name)} inputs are named {argument.name!r}; name them apart."
            )
    return arguments


def without_implicit(inputs: Any) -> tuple[Any, list[tuple[Variable, SharedVariable]]]:
    """The inputs less each ``In(x, value=shared)``, and pairs of those: there ``x`` stands for the shared variable."""
    if not isinstance(inputs, (list, tuple)):
        return inputs, []
    implicit = [given for given in inputs if isinstance(getattr(given, "value", None), SharedVariable)]
    return [given for given in inputs if given not in implicit], [(given.variable, given.value) for given in implicit]


def _parse(given: Any, position: int, allow_downcast: bool | None) -> Argument:
    specification = given if isinstance(given, io.In) else io.In(given) if isinstance(given, Variable) else None
    variable = getattr(specification, "variable", None)
    if specification is None or variable is None or isinstance(variable, Constant) or hasattr(variable, "container"):
        raise TypeError(
            f"inputs[{position}]: expected a symbolic variable such as pt.matrix('x') or In(variable, value=...), got "
            f"{given!r}. Shared variables and constants are found in the graph by themselves."
        )
    if not isinstance(variable.type, TensorType):
        raise TypeError(f"inputs[{position}]: expected a tensor, got {variable} of type {variable.type}.")
    if specification.update is not None:
        raise ValueError(
            f"inputs[{position}]: In(..., update=...) is not supported; use a shared variable in updates=."
        )
    name = specification.name or variable.name
    downcast = allow_downcast if specification.allow_downcast is None else specification.allow_downcast
    argument = Argument(variable, name, specification.value, downcast)
    if argument.default is None:
        return argument
    return Argument(variable, name, _converted(argument, argument.default, position, "inputs"), downcast)


@dataclass(frozen=True)
class Signature:
    """The arguments of a step, in order; ``split`` are those with a batch axis."""

    step: str
    arguments: tuple[Argument, ...]
    split: tuple[Variable, ...]

    def bind(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], *, may_be_empty: bool = False
    ) -> dict[Variable, np.ndarray]:
        """Values of the right dtypes and shapes for every input, or an error that names the one that is not."""
        given = self._by_variable(args, kwargs)
        values = {
            argument.variable: _converted(argument, given[argument.variable], position, f"{self.step}()")
            if argument.variable in given
            else argument.default
            for position, argument in enumerate(self.arguments)
        }
        self._check_lengths(values, may_be_empty)
        return values

    def shapes(self, examples: int, given: Mapping[str, Sequence[int]]) -> dict[Variable, tuple[int, ...]]:
        """The shape of every input for a batch of ``examples``.

        ``given`` has those that the graph does not tell: by name, of one example, or of a whole input that is not
        split.
        """
        unknown = [name for name in given if name not in {a.name for a in self.arguments}]
        if unknown:
            names = ", ".join(a.label(i) for i, a in enumerate(self.arguments))
            raise TypeError(f"plan(): no input is named {unknown[0]!r}; there are {names}.")
        return {a.variable: self._shape(a, i, examples, given) for i, a in enumerate(self.arguments)}

    def _shape(
        self, argument: Argument, position: int, examples: int, given: Mapping[str, Sequence[int]]
    ) -> tuple[int, ...]:
        is_split = argument.variable in self.split
        declared = argument.variable.type.shape[is_split:]
        own = given.get(argument.name) if argument.name else None
        if own is None:
            own = declared if argument.default is None else argument.default.shape[is_split:]
        rest = tuple(own)
        fits = len(rest) == len(declared) and all(b in (None, a) for a, b in zip(rest, declared, strict=True))
        if not fits or None in rest:
            shown = ", ".join("?" if n is None else str(n) for n in declared)
            what = "one example" if is_split else "the input"
            like = tuple(224 if n is None else n for n in declared)
            came = f"; {rest} was given" if argument.name in given else ""
            raise ValueError(
                f"plan(): the shape of {what} of {argument.label(position)} is ({shown}){came}. Give what is not "
                f"known, as in step.plan({examples}, {argument.name or 'name'}={like})."
            )
        return (examples, *rest) if is_split else rest

    def described(self, values: Mapping[Variable, np.ndarray]) -> str:
        return ", ".join(
            f"{a.label(i)} {values[a.variable].dtype}{values[a.variable].shape}" for i, a in enumerate(self.arguments)
        )

    def _by_variable(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[Variable, Any]:
        names = [a.label(i) for i, a in enumerate(self.arguments)]
        if len(args) > len(self.arguments):
            raise TypeError(
                f"{self.step}(): takes {len(self.arguments)} inputs ({', '.join(names) or 'none'}), "
                f"but {len(args)} were given."
            )
        given = {a.variable: value for a, value in zip(self.arguments, args, strict=False)}
        named = {a.name: a.variable for a in self.arguments if a.name}
        for name, value in kwargs.items():
            if name not in named:
                nearest = difflib.get_close_matches(name, named, n=1)
                hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
                raise TypeError(f"{self.step}(): no input is named {name!r}; there are {', '.join(names)}.{hint}")
            if named[name] in given:
                raise TypeError(f"{self.step}(): '{name}' was given by position and by name; give it once.")
            given[named[name]] = value
        missing = [a.label(i) for i, a in enumerate(self.arguments) if a.variable not in given and a.default is None]
        if missing:
            raise TypeError(f"{self.step}(): missing {', '.join(missing)}; it takes {', '.join(names)}.")
        return given

    def _check_lengths(self, values: Mapping[Variable, np.ndarray], may_be_empty: bool) -> None:
        first: tuple[str, int] | None = None
        for position, argument in enumerate(self.arguments):
            if argument.variable not in self.split:
                continue
            label, length = argument.label(position), len(values[argument.variable])
            if length == 0 and not may_be_empty:
                raise ValueError(f"{self.step}(): {label} is an empty batch; at least one example is needed.")
            if first is None:
                first = label, length
            elif length != first[1]:
                raise ValueError(
                    f"{self.step}(): {label} has {length} examples but {first[0]} has {first[1]}. Every split input "
                    f"needs the same length along axis 0; list an input in broadcast= to send it whole to every device."
                )


def _converted(argument: Argument, value: Any, position: int, where: str) -> np.ndarray:
    kind = argument.variable.type
    # A Python number has no dtype of its own; PyTensor takes it for floatX, we for the input's.
    if isinstance(value, (int, float)) and not isinstance(value, bool) and kind.ndim == 0 and kind.dtype[:5] == "float":
        return np.asarray(value, dtype=kind.dtype)
    try:
        return np.asarray(kind.filter(value, strict=False, allow_downcast=argument.allow_downcast))
    except (TypeError, ValueError) as error:
        kind_of_error = TypeError if isinstance(error, TypeError) else ValueError  # numpy's own take other arguments
        raise kind_of_error(
            f"{where}: {argument.label(position)} must be {argument.expected()}, got {_described(value)}."
            f"{_remedy(argument, value)}"
        ) from error


def _described(value: Any) -> str:
    try:
        array = np.asarray(value)
    except Exception:
        return f"a {type(value).__name__} that is no array"
    kind = "" if isinstance(value, np.ndarray) else f"a {type(value).__name__}, as an array "
    return f"{kind}{array.dtype} of shape {array.shape}"


def _remedy(argument: Argument, value: Any) -> str:
    try:
        array = np.asarray(value)
    except Exception:
        return " Give a numpy array."
    kind = argument.variable.type
    if array.ndim != kind.ndim:
        return f" It needs {kind.ndim} axes; use reshape or indexing, such as x[None] for a batch of one."
    if array.dtype == kind.dtype:
        return " Give it that shape."
    if array.dtype.kind in "biuf":
        return f" Use .astype('{kind.dtype}'), or allow_input_downcast=True."
    return f" Numbers that fit {kind.dtype} are needed."
