"""``ParameterStore``: creates, names and owns the shared variables of a model; the host's truth about them."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import pytensor
import safetensors
import safetensors.numpy
from pytensor.compile.sharedvalue import SharedVariable
from pytensor.graph.basic import Variable, equal_computations
from pytensor.tensor.sharedvar import TensorSharedVariable

__all__ = ["Initialiser", "ParameterStore"]

#: How a parameter gets its first value: ``init(rng, shape)`` returning an array, a number, or an array of that shape.
Initialiser = Callable[[np.random.Generator, tuple[int, ...]], Any] | Real | float | np.ndarray

# What a safetensors file can hold and PyTensor can compute with.
_DTYPES = ("float16", "float32", "float64", "bool", *(f"{s}int{b}" for s in ("", "u") for b in (8, 16, 32, 64)))
_BIT_GENERATORS = ("PCG64", "PCG64DXSM", "Philox", "SFC64", "MT19937")


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
    ) -> TensorSharedVariable:
        """The parameter called ``name``: made on the first call, the same variable on every later one.

        ``shape`` is a sequence of integers and becomes the variable's static shape. ``init`` is ``init(rng, shape)``
        returning an array, a number, or an array; it is copied, and not looked at when the parameter exists.
        ``trainable`` says whether ``store.trainable()`` lists it, ``decay`` whether weight decay applies; both are kept
        on ``variable.tag``.

        Raises ValueError, naming the parameter, for a second call with another shape, dtype, trainable or decay, and
        for initial values of another shape or of a dtype that does not fit.
        """
        _check_name("param", name)
        shape = _checked_shape(name, shape)
        dtype = np.dtype(dtype).name
        if dtype not in _DTYPES:
            raise ValueError(f"param('{name}'): dtype {dtype} cannot be stored; use one of {', '.join(_DTYPES)}.")
        if name in self._parameters:
            existing = self._parameters[name]
            was = _description(existing.type.shape, existing.type.dtype, existing.tag.trainable, existing.tag.decay)
            asked = _description(shape, dtype, trainable, decay)
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
        return _checksum(self._borrowed(), self._generator_states())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all parameters to a safetensors file, and the generators' states as JSON into its metadata.

        The file appears under ``path`` whole or not at all: it is written beside it, flushed to the disk, and renamed.
        """
        path = Path(path)
        states = self._generator_states()
        arrays = {name: np.asarray(value, order="C") for name, value in self._borrowed().items()}
        metadata = {"theano_mgpu": "1", "generators": states, "checksum": _checksum(arrays, states)}
        partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
        try:
            with open(partial, "xb") as file:
                file.write(safetensors.numpy.save(arrays, metadata=metadata))
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
        _flush_directory(path.parent)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Set all parameters and generators to what ``save`` wrote into ``path``.

        Raises FileNotFoundError where there is no file, and ValueError that names the path and what is wrong: a file
        cut short or changed, not a safetensors file, entries that are missing, unknown, or of another shape or dtype.
        Nothing is changed then.
        """
        values, metadata = _read(Path(path))
        problems = [f"'{name}' is missing" for name in self._parameters if name not in values]
        checked = self._checked_values(values, problems)
        generators = _generators_from(metadata.get("generators", "{}"), problems)
        problems += [f"generator '{name}' is missing" for name in self._generators if name not in generators]
        problems += [f"generator '{name}' is not in the store" for name in generators if name not in self._generators]
        if "checksum" in metadata and metadata["checksum"] != _checksum(values, metadata.get("generators", "{}")):
            problems.append("the values are not those that were saved (another checksum): the file was changed")
        _raise_if_any(f"load('{os.fspath(path)}')", problems)
        self._assign(checked)
        for name, generator in generators.items():
            self._generators[name].set_value(generator, borrow=True)

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
        states = {n: v.get_value(borrow=True).bit_generator.state for n, v in self._generators.items()}
        return json.dumps(states, sort_keys=True, default=lambda array: array.tolist())

    def _checked_values(self, values: Mapping[str, Any], problems: list[str]) -> dict[str, np.ndarray]:
        checked = {}
        for name, value in values.items():
            if name not in self._parameters:
                problems.append(f"'{name}' is not in the store{self._nearest(str(name))}")
                continue
            variable = self._parameters[name]
            converted, problem = _converted(value, variable.type.shape, variable.type.dtype)
            if converted is None:
                problems.append(f"'{name}' {problem}")
            else:
                checked[name] = converted
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


def _description(shape: Sequence[int | None], dtype: str, trainable: bool, decay: bool) -> str:
    return f"shape {tuple(shape)}, dtype {dtype}, trainable={bool(trainable)}, decay={bool(decay)}"


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


def _checksum(values: Mapping[str, np.ndarray], generators: str) -> str:
    digest = hashlib.sha256()
    for name in sorted(values):
        value = np.asarray(values[name])
        digest.update(json.dumps([name, value.dtype.name, value.shape]).encode())
        little_endian = np.asarray(value, dtype=value.dtype.newbyteorder("<"), order="C")
        digest.update(little_endian.reshape(-1).view("uint8").data)
    digest.update(generators.encode())
    return digest.hexdigest()


def _raise_if_any(where: str, problems: Sequence[str]) -> None:
    if problems:
        raise ValueError(f"{where}: nothing was changed, because " + "; ".join(problems) + ".")


def _flush_directory(directory: Path) -> None:
    # A rename is on the disk only when its directory is.
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """All arrays and the metadata of a safetensors file."""
    try:
        with safetensors.safe_open(path, framework="np") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (safetensors.SafetensorError, TypeError, ValueError, KeyError, AttributeError) as error:
        raise ValueError(
            f"load('{path}'): not a whole safetensors file ({error}); it was cut short, or something else wrote it. "
            "Nothing was changed."
        ) from error


def _generators_from(text: str, problems: list[str]) -> dict[str, np.random.Generator]:
    """Generators from the JSON that ``save`` wrote."""
    generators = {}
    try:
        for name, state in json.loads(text).items():
            if state["bit_generator"] not in _BIT_GENERATORS:
                raise ValueError(f"no bit generator {state['bit_generator']}")
            bit_generator = getattr(np.random, state["bit_generator"])()
            bit_generator.state = _with_arrays(state)
            generators[name] = np.random.Generator(bit_generator)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        problems.append(f"the generators' states cannot be read ({error})")
    return generators


def _with_arrays(state: Any) -> Any:
    if isinstance(state, dict):
        return {key: _with_arrays(value) for key, value in state.items()}
    return np.array(state, dtype="uint64") if isinstance(state, list) else state
