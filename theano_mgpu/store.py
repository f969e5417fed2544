"""``ParameterStore``: creates, names and owns the shared variables of a model; the host's truth about them."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytensor
from pytensor.compile.sharedvalue import SharedVariable
from pytensor.graph.basic import Variable, equal_computations
from pytensor.tensor.sharedvar import TensorSharedVariable

from theano_mgpu import weights
from theano_mgpu.cluster import by_first, cluster
from theano_mgpu.weights import LoadReport

__all__ = ["Initialiser", "ParameterStore"]

_LISTED = 10  # of the problems with a file; of another network there are hundreds

#: How a parameter gets its first value: ``init(rng, shape)`` returning an array, a number, or an array of that shape.
Initialiser = Callable[[np.random.Generator, tuple[int, ...]], Any] | Real | float | np.ndarray

# What a safetensors file can hold and PyTensor can compute with.
_DTYPES = ("float16", "float32", "float64", "bool", *(f"{s}int{b}" for s in ("", "u") for b in (8, 16, 32, 64)))


class ParameterStore:
    """Named shared variables on the host: parameters (arrays) and random generators.

    ``seed`` (a non-negative integer) and a variable's name decide its initial value, whatever else was made before.
    The store is a mapping of the parameters' names, in order of creation, to ``pytensor.shared`` variables:
    ``store[name]``, ``name in store``, ``len(store)``, ``for name in store``. Generators are kept apart from it and
    reached by ``store.rng(name)``. ``print(store)`` shows a table.

    >>> store = ParameterStore(seed=0)
    >>> weight = store.param("fc.weight", (512, 10), init=0.0)
    >>> weight.type.shape, "fc.weight" in store
    ((512, 10), True)
    """

    def __init__(self, seed: int = 0) -> None:
        if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
            raise ValueError(f"ParameterStore(): 'seed' should be a non-negative integer, not {seed!r}.")
        self.seed = int(seed)
        self._parameters: dict[str, TensorSharedVariable] = {}
        self._generators: dict[str, SharedVariable] = {}
        self._updates: dict[SharedVariable, Variable] = {}
        self._taken: set[SharedVariable] = set()

    def param(
        self,
        name: str,
        shape: Sequence[int],
        init: Initialiser,
        trainable: bool = True,
        decay: bool = True,
        *,
        dtype: str = "float32",
        torch_axes: Sequence[int] | None = None,
    ) -> TensorSharedVariable:
        """The parameter called ``name``: made on the first call, the same variable on every later one.

        ``shape`` is a sequence of integers and becomes the variable's static shape. ``init`` is ``init(rng, shape)``
        returning an array, a number, or an array; it is copied, and not looked at when the parameter exists.
        ``trainable`` says whether ``store.trainable()`` lists it, ``decay`` whether weight decay applies. Where torch
        keeps this parameter with its axes in another order, ``torch_axes`` says which of ours each of its axes is:
        filters (height, width, channels, filters) are torch's (filters, channels, height, width) with (3, 2, 0, 1). All
        three are kept on ``variable.tag``.

        Raises ValueError, naming the parameter, for a second call that asks for something else, for initial values of
        another shape or of a dtype that does not fit, and for ``torch_axes`` that are no permutation.
        """
        _check_name("param", name)
        shape = _checked_shape(name, shape)
        dtype = np.dtype(dtype).name
        if dtype not in _DTYPES:
            raise ValueError(f"param('{name}'): dtype {dtype} cannot be stored; use one of {', '.join(_DTYPES)}.")
        axes = _checked_axes(name, torch_axes, len(shape))
        if name in self._parameters:
            existing = self._parameters[name]
            tag = existing.tag
            was = _description(existing.type.shape, existing.type.dtype, tag.trainable, tag.decay, tag.torch_axes)
            asked = _description(shape, dtype, trainable, decay, axes)
            if was != asked:
                raise ValueError(
                    f"param('{name}'): the store has this parameter with {was}, asked for was {asked}. "
                    "Ask for the same, or give the new parameter a name of its own."
                )
            return existing
        value = self._initial_value(name, shape, init, dtype)
        variable = pytensor.shared(value, name=name, shape=shape, borrow=True)
        variable.tag.trainable = bool(trainable)
        variable.tag.decay = bool(decay)
        variable.tag.torch_axes = axes
        self._parameters[name] = variable
        return variable

    def rng(self, name: str) -> SharedVariable:
        """The shared random generator called ``name``, made on the first call from the store's seed and the name.

        For PyTensor's idiom ``next_rng, draw = store.rng(name).normal(...)``; hand ``next_rng`` to ``register_update``.
        """
        _check_name("rng", name)
        if name not in self._generators:
            generator = np.random.Generator(np.random.PCG64(self._seed_sequence(1, name)))
            self._generators[name] = pytensor.shared(generator, name=name, borrow=True)
        return self._generators[name]

    def generators(self) -> dict[str, SharedVariable]:
        """The random generators that ``rng`` made, by name, in order of creation; a new dict."""
        return dict(self._generators)

    def trainable(self) -> list[TensorSharedVariable]:
        """The parameters that an update rule should change, in order of creation."""
        return [variable for variable in self._parameters.values() if variable.tag.trainable]

    def register_update(self, variable: SharedVariable, new_value: Variable) -> None:
        """Let a layer say what one of the store's variables becomes at every training step.

        One set of updates belongs to one training graph. Once ``updates()`` has handed a set out, the next training
        graph that registers for one of its variables starts a new set. Until then a second, different value for the
        same variable raises ValueError, for one of the two would be lost: another graph was begun too early, or one
        layer stands in the graph twice. Registering the same expression again is no error.

        Also raises ValueError where the variable is not the store's, or the value's type is not the variable's.
        """
        name = variable.name
        if not any(variable is owned.get(name) for owned in (self._parameters, self._generators)):
            raise ValueError(
                f"register_update(): '{variable}' is not a variable of this store; make it with param or rng."
            )
        if not isinstance(new_value, Variable) or not _same_kind(variable, new_value):
            raise ValueError(
                f"register_update(): the new value of '{name}' should be a {variable.type}, not "
                f"{getattr(new_value, 'type', repr(new_value))}; cast or reshape it."
            )
        if variable in self._taken:
            for old in self._taken:
                del self._updates[old]
            self._taken.clear()
        elif variable in self._updates and not equal_computations([self._updates[variable]], [new_value]):
            raise ValueError(
                f"register_update(): '{name}' has an update already, registered by another training graph or by the "
                "same layer earlier in this one. Call store.updates() when a graph is complete and before the next is "
                "built; give each layer its own name, or apply a shared one once, to its inputs joined along axis 0."
            )
        self._updates[variable] = new_value

    def updates(self) -> dict[SharedVariable, Variable]:
        """What the layers registered (moving averages, random generators): shared variable to new value, a new dict.

        Call it when the training graph is complete; see ``register_update`` for several graphs on one store.
        """
        self._taken = set(self._updates)
        return dict(self._updates)

    def get_values(self) -> dict[str, np.ndarray]:
        """A copy of every parameter's value, by name; generators are in ``save`` and ``checksum`` only."""
        return {name: np.array(value) for name, value in self._borrowed().items()}

    def set_values(self, values: Mapping[str, Any]) -> None:
        """Give parameters new values: ``values`` maps names (all or some of them) to arrays, which are copied.

        A value has the parameter's shape and a dtype that converts without loss, or a longer float: float64 arrays go
        into float32 parameters, int64, complex and text do not. Raises ValueError that lists everything wrong with
        ``values``; nothing is changed then.
        """
        problems: list[str] = []
        checked = self._checked_values(values, problems)
        _raise_if_any("set_values()", problems)
        self._assign(checked)

    def checksum(self) -> str:
        """SHA-256, in hexadecimal, of all names, dtypes, shapes and bytes, and of the generators' states.

        Equal exactly when two stores hold the same; the order in which parameters were made does not matter.
        """
        return weights.checksum(self._borrowed(), self._generator_states())

    def save(self, path: str | os.PathLike[str], *, layout: Literal["store", "torch"] = "store") -> None:
        """Write all parameters to a file, which appears under ``path`` whole or not at all.

        layout="store": safetensors, with the generators' states and a checksum in the metadata.
        layout="torch": what torchvision's and timm's networks load, ``.safetensors`` or ``.pth`` by the path's end:
            axes in torch's order, a count of batches (0) next to each ``running_mean``, no generators.

        Under mpirun rank 0 writes; on the others the call returns at once.

        Raises ValueError for another layout, a path that does not end so, and a dtype that the format does not hold.
        """
        path = Path(path)
        weights.checked_layout("save", path, layout)
        ranks = cluster()
        if ranks is not None and ranks.rank > 0:
            return
        arrays = self._borrowed()
        if layout == "torch":
            axes = {name: variable.tag.torch_axes for name, variable in self._parameters.items()}
            arrays = {
                name: array if axes[name] is None else array.transpose(axes[name]) for name, array in arrays.items()
            }
        weights.write(path, layout, arrays, self._generator_states())

    def load(
        self,
        path: str | os.PathLike[str],
        *,
        layout: Literal["store", "torch"] = "store",
        skip: Sequence[str] = (),
    ) -> LoadReport:
        """Set the parameters to what a file holds; what was done comes back and can be printed.

        layout="store": what ``save`` wrote, and the generators too.
        layout="torch": a ``.safetensors`` or ``.pth`` file with torchvision's or timm's names; generators stay as they
            are. Of a checkpoint, what is under "state_dict" or "model". Torch is not needed, and nothing that a
            ``.pth`` asks for is executed.
        skip: patterns of names to leave as they are: ``skip=("fc.*",)`` for a head of another size.

        Under mpirun all ranks call it. Rank 0 reads the file, and all get what it holds.

        Raises FileNotFoundError where there is no file, and ValueError that names the path and all that is wrong: a
        file cut short or changed, not of its format, or asking for anything but tensors; entries that are missing,
        unknown, no arrays, or of another shape or dtype, and that ``skip`` does not cover; a pattern that matches
        nothing. Nothing is changed then.
        """
        path = Path(path)
        weights.checked_layout("load", path, layout)
        content = by_first(cluster(), f"while it read '{path}'", lambda: weights.read(path, layout, self._parameters))
        owned = self._generators if layout == "store" else {}
        found = [*content.arrays, *content.foreign, *content.generators]
        skipped = weights.matching(f"load('{path}')", skip, [*self._parameters, *owned, *found])

        problems = list(content.problems)
        taken = {name: array for name, array in content.arrays.items() if name not in skipped}
        generators = {name: rng for name, rng in content.generators.items() if name not in skipped}
        missing = [name for name in (*self._parameters, *owned) if name not in found]
        words = {name: f"generator '{name}'" for name in owned}
        problems += [f"{words.get(name, repr(name))} is missing" for name in missing if name not in skipped]
        problems += [f"'{name}' {what}" for name, what in content.foreign.items() if name not in skipped]
        checked = self._checked_values(taken, problems, in_torch_axes=layout == "torch")
        problems += [f"generator '{name}' is not in the store" for name in generators if name not in owned]
        _raise_if_any(f"load('{path}')", problems, " Entries that skip=('fc.*', ...) matches are left as they are.")

        self._assign(checked)
        for name, generator in generators.items():
            self._generators[name].set_value(generator, borrow=True)
        return LoadReport(
            loaded=tuple(name for name in (*self._parameters, *owned) if name in checked or name in generators),
            skipped=tuple(name for name in found if name in skipped),
            missing=tuple(missing),
            ignored=content.ignored,
        )

    def __getitem__(self, name: str) -> TensorSharedVariable:
        if name in self._parameters:
            return self._parameters[name]
        if name in self._generators:
            raise KeyError(f"'{name}' is a random generator, not a parameter: store.rng('{name}').")
        raise KeyError(f"The store has no parameter '{name}'{self._nearest(name)}.")

    def __contains__(self, name: object) -> bool:
        return name in self._parameters

    def __len__(self) -> int:
        return len(self._parameters)

    def __iter__(self) -> Iterator[str]:
        return iter(self._parameters)

    def __repr__(self) -> str:
        numbers = sum(value.size for value in self._borrowed().values())
        return (
            f"<ParameterStore seed={self.seed}: {len(self)} parameters, {numbers:,} numbers, "
            f"{len(self._generators)} generators>"
        )

    def __str__(self) -> str:
        rows = [("name", "shape", "dtype", "parameters", "trainable")]
        counts = {name: value.size for name, value in self._borrowed().items()}
        for name, variable in self._parameters.items():
            shape = " x ".join(map(str, variable.type.shape)) or "scalar"
            rows.append(
                (name, shape, variable.type.dtype, f"{counts[name]:,}", "yes" if variable.tag.trainable else "no")
            )
        rows += [(name, "", "generator", "", "no") for name in self._generators]
        trained = sum(counts[name] for name, variable in self._parameters.items() if variable.tag.trainable)
        rows.append(("total", "", "", f"{sum(counts.values()):,}", f"{trained:,}"))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(_aligned(row, widths)) for row in rows]
        rule = "-" * len(lines[0])
        return "\n".join(line.rstrip() for line in [lines[0], rule, *lines[1:-1], rule, lines[-1]])

    def _initial_value(self, name: str, shape: tuple[int, ...], init: Initialiser, dtype: str) -> np.ndarray:
        if callable(init):
            rng = np.random.Generator(np.random.PCG64(self._seed_sequence(0, name)))
            try:
                init = init(rng, shape)
            except TypeError as error:
                raise ValueError(
                    f"param('{name}'): 'init' could not be called as init(rng, shape): {error}. Functions of tm.init "
                    "are called first, as in init=tm.init.zeros()."
                ) from error
        if isinstance(init, Real):
            init = np.full(shape, init, dtype="float64" if dtype.startswith("float") else dtype)
        value, problem = _converted(init, shape, dtype)
        if value is None:
            raise ValueError(f"param('{name}'): the initial value {problem}.")
        return value

    def _seed_sequence(self, kind: int, name: str) -> np.random.SeedSequence:
        return np.random.SeedSequence(self.seed, spawn_key=(kind, *name.encode()))

    def _borrowed(self) -> dict[str, np.ndarray]:
        return {name: np.asarray(variable.get_value(borrow=True)) for name, variable in self._parameters.items()}

    def _generator_states(self) -> str:
        return weights.generator_states({name: v.get_value(borrow=True) for name, v in self._generators.items()})

    def _checked_values(
        self, values: Mapping[str, Any], problems: list[str], in_torch_axes: bool = False
    ) -> dict[str, np.ndarray]:
        checked = {}
        for name, value in values.items():
            if name not in self._parameters:
                problems.append(f"'{name}' is not in the store{self._nearest(str(name))}")
                continue
            variable = self._parameters[name]
            shape, axes = variable.type.shape, variable.tag.torch_axes if in_torch_axes else None
            if axes is not None:
                shape = tuple(shape[axis] for axis in axes)
            converted, problem = _converted(value, shape, variable.type.dtype)
            if converted is None:
                problems.append(f"'{name}' {problem}")
            else:
                checked[name] = (
                    converted if axes is None else np.array(converted.transpose(np.argsort(axes)), order="C")
                )
        return checked

    def _assign(self, values: Mapping[str, np.ndarray]) -> None:
        for name, value in values.items():
            self._parameters[name].set_value(value, borrow=True)

    def _nearest(self, name: str) -> str:
        nearest = difflib.get_close_matches(name, self._parameters, n=3)
        return f" (nearest: {', '.join(map(repr, nearest))})" if nearest else ""


def _aligned(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
    cells[3] = row[3].rjust(widths[3])
    return cells


def _check_name(function: str, name: Any) -> None:
    if not isinstance(name, str) or not name or name == "__metadata__":
        raise ValueError(f"{function}(): 'name' should be a non-empty string (not '__metadata__'), not {name!r}.")


def _checked_shape(name: str, shape: Any) -> tuple[int, ...]:
    if isinstance(shape, (str, int, np.integer)) or not all(isinstance(n, (int, np.integer)) and n >= 0 for n in shape):
        raise ValueError(f"param('{name}'): 'shape' should be a tuple of non-negative integers, not {shape!r}.")
    return tuple(int(length) for length in shape)


def _checked_axes(name: str, axes: Any, ndim: int) -> tuple[int, ...] | None:
    if axes is None:
        return None
    if not isinstance(axes, Sequence) or len(axes) != ndim or {*axes} != {*range(ndim)}:
        raise ValueError(
            f"param('{name}'): 'torch_axes' should be None or the numbers 0 to {ndim - 1} in some order, not {axes!r}."
        )
    return tuple(axes)


def _description(shape: Sequence[int | None], dtype: str, trainable: bool, decay: bool, axes: Any) -> str:
    torch_axes = "" if axes is None else f", torch_axes={axes}"
    return f"shape {tuple(shape)}, dtype {dtype}, trainable={bool(trainable)}, decay={bool(decay)}{torch_axes}"


def _same_kind(variable: SharedVariable, new_value: Variable) -> bool:
    if not isinstance(variable, TensorSharedVariable):
        return new_value.type == variable.type
    wanted, given = variable.type, new_value.type
    if getattr(given, "dtype", None) != wanted.dtype or getattr(given, "ndim", None) != wanted.ndim:
        return False
    return all(n is None or n == length for n, length in zip(given.shape, wanted.shape, strict=True))


def _converted(value: Any, shape: Sequence[int | None], dtype: str) -> tuple[np.ndarray | None, str]:
    """A fresh array of that shape and dtype, or None and what is wrong with ``value``."""
    try:
        given = np.asarray(value)
    except ValueError as error:
        return None, f"is not an array ({error})"
    if given.shape != tuple(shape):
        return None, f"has shape {given.shape} instead of {tuple(shape)}"
    if not np.can_cast(given.dtype, dtype, "safe") and not (given.dtype.kind == "f" == np.dtype(dtype).kind):
        return None, f"has dtype {given.dtype}, which does not convert to {dtype} without loss; use .astype('{dtype}')"
    with np.errstate(over="ignore"):
        converted = np.array(given, dtype=dtype, order="C")
    if (
        converted.dtype != given.dtype
        and converted.dtype.kind == "f"
        and np.isinf(converted).sum() != np.isinf(given).sum()
    ):
        return None, f"has numbers too large for {dtype}"
    return converted, ""


def _raise_if_any(where: str, problems: Sequence[str], advice: str = "") -> None:
    if problems:
        more = f"; and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
        raise ValueError(f"{where}: nothing was changed, because {'; '.join(problems[:_LISTED])}{more}.{advice}")
