"""What a pickled state dict names, and what stands for it here: values that say what was asked for, and do nothing.

Where Python's own ``Unpickler`` imports what a file names and calls it, ``made`` looks the name up in this file's lists
and returns a value of one of its classes. So a file's tensors are known before any number was read.

The functions and their arguments are those of ``torch/_utils.py`` and ``torch/_tensor.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = [
    "Dictionary",
    "Inert",
    "Name",
    "Parameter",
    "Storage",
    "Tensor",
    "build",
    "is_known",
    "kind",
    "made",
    "storage",
]

_STORAGES = {
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
}
#: Names that files may use, to the dtype they stand for; tensors that were on a GPU have torch.cuda's, in old files.
_DTYPES = {
    **{f"{module}.{name}": dtype for module in ("torch", "torch.cuda") for name, dtype in _STORAGES.items()},
    **{f"torch.storage.{name}": "uint8" for name in ("UntypedStorage", "_UntypedStorage")},
    **{f"torch.{dtype}": dtype for dtype in (*_STORAGES.values(), "uint16", "uint32", "uint64")},
}
#: Makers of tensors: how many arguments at least.
_TENSORS = {
    "torch._utils._rebuild_tensor": 4,
    "torch._utils._rebuild_tensor_v2": 6,
    "torch._utils._rebuild_tensor_v3": 7,
    "torch._utils._rebuild_parameter": 3,
    "torch._utils._rebuild_parameter_with_state": 4,
}
_FROM_TYPE = "torch._tensor._rebuild_from_type_v2"
_PARAMETER = "torch.nn.parameter.Parameter"
_DICTIONARIES = ("collections.OrderedDict", "collections.Counter", "collections.defaultdict")
#: What training scripts keep beside the weights: settings, devices, schedules. Accepted, and left as it is.
_INERT = ("argparse.Namespace", "torch.device", "torch.Tensor", "torch.serialization._get_layout", "builtins.set")
_KNOWN = {*_DTYPES, *_TENSORS, _FROM_TYPE, _PARAMETER, *_DICTIONARIES, *_INERT, "torch.Size"}


@dataclass(frozen=True, eq=False)
class Storage:
    """Numbers somewhere in the file: ``length`` of them, from number ``start`` of what is kept under ``key``."""

    dtype: str
    key: str
    length: int
    start: int = 0


@dataclass(frozen=True, eq=False)
class Tensor:
    """A view of a storage: offset, shape and strides counted in numbers, and not compared with the storage's yet."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str


@dataclass(eq=False)
class Parameter:
    """A parameter of torch 0.3 and older, which a later instruction gives its tensor."""

    tensor: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Dictionary:
    """Pairs in their order. No key is hashed: nested tuples can take for ever."""

    pairs: list[Any]

    def items(self) -> list[tuple[Any, Any]]:
        """The pairs; ValueError where one is none."""
        if not all(isinstance(pair, (tuple, list)) and len(pair) == 2 for pair in self.pairs):
            raise ValueError("a dictionary is made of something else than pairs")
        return [(key, value) for key, value in self.pairs]


@dataclass(frozen=True)
class Name:
    """A function or class, as the file names it."""

    name: str


@dataclass(frozen=True, eq=False)
class Inert:
    """An object that would have been made by what the file names."""

    name: str


def is_known(name: str) -> bool:
    """Whether state dicts and the checkpoints around them name this."""
    return name in _KNOWN


def made(function: Any, arguments: Any) -> Any:
    """What calling ``function`` would have made."""
    if not isinstance(function, Name):
        raise ValueError(f"it calls {kind(function)}")
    name = function.name
    if name not in _KNOWN or name in _INERT:
        return Inert(name)
    if not isinstance(arguments, tuple):
        raise ValueError(f"it calls {name} with {kind(arguments)} instead of arguments")
    if name in _DICTIONARIES:
        return _dictionary(name, arguments)
    if name == "torch.Size" and len(arguments) == 1:
        return arguments[0]
    if name == _PARAMETER:
        return Parameter(arguments[0] if arguments and isinstance(arguments[0], Tensor) else None)
    if name == _FROM_TYPE and len(arguments) == 4:
        # A tensor with attributes: the function that makes it, its class, the function's arguments, the attributes.
        name, arguments = getattr(arguments[0], "name", ""), arguments[2]
    if name in _TENSORS and isinstance(arguments, tuple) and len(arguments) >= _TENSORS[name]:
        tensor = arguments[0] if "parameter" in name else _tensor(name, arguments)
        if isinstance(tensor, Tensor):
            return tensor
    raise ValueError(f"it calls {function.name} with arguments that do not fit")


def storage(persistent: Any) -> tuple[Storage, Storage]:
    """A storage and the part of it that is referred to, in torch's words for what lies outside of the pickle.

    ("storage", type, key, device, length), in the older format with None or a part's (key, start, length) behind.
    """
    if not isinstance(persistent, tuple) or len(persistent) not in (5, 6) or persistent[0] != "storage":
        raise ValueError("it refers to something outside of the pickle that is no storage")
    dtype, key, _, length = persistent[1:5]
    if not isinstance(dtype, Name) or dtype.name not in _DTYPES or not isinstance(key, str) or not _is_size(length):
        raise ValueError("it refers to a storage of an unknown kind, key or length")
    whole = Storage(_DTYPES[dtype.name], key, length)
    part = persistent[5] if len(persistent) == 6 else None
    if part is None:
        return whole, whole
    if not isinstance(part, tuple) or len(part) != 3 or not _is_size(part[1]) or not _is_size(part[2]):
        raise ValueError(f"it refers to a part of storage '{key}' that is no start and length")
    return whole, Storage(whole.dtype, key, part[2], part[1])


def _dictionary(name: str, arguments: tuple[Any, ...]) -> Dictionary:
    # A defaultdict's first argument makes its defaults.
    content = arguments[-1] if arguments and not isinstance(arguments[-1], Name) else []
    # Not copied: a thousand dictionaries of one long list take no more memory than the list.
    if isinstance(content, Dictionary):
        return Dictionary(content.pairs)
    if isinstance(content, list):
        return Dictionary(content)
    raise ValueError(f"it calls {name} with arguments that do not fit")


def _tensor(name: str, arguments: tuple[Any, ...]) -> Tensor | None:
    storage, offset, shape, strides = arguments[:4]
    if not isinstance(storage, Storage) or not _is_size(offset) or not _are_sizes(shape) or not _are_sizes(strides):
        return None
    if len(shape) != len(strides):
        return None
    dtype, optional = storage.dtype, arguments[6:]
    if name.endswith("_v3"):
        if getattr(arguments[6], "name", None) not in _DTYPES:
            return None
        dtype, optional = _DTYPES[arguments[6].name], arguments[7:]
    # Marks of a lazy negation or conjugation: without it the numbers would be others.
    if optional and optional[0] is not None and not (isinstance(optional[0], Dictionary) and not optional[0].pairs):
        return None
    return Tensor(storage, offset, tuple(shape), tuple(strides), dtype)


def build(target: Any, state: Any) -> None:
    """Attributes are left alone, such as a state dict's versions; only parameters of torch 0.3 keep something there."""
    if isinstance(target, Parameter):
        # (data, gradient or None, hooks, requires_grad, volatile)
        if isinstance(state, tuple) and len(state) == 5 and isinstance(state[0], Tensor):
            target.tensor = state[0]
    elif not isinstance(target, (Dictionary, Inert)):
        raise ValueError(f"it sets attributes of {kind(target)}")


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**62


def _are_sizes(values: Any) -> bool:
    return isinstance(values, Sequence) and not isinstance(values, (str, bytes)) and all(map(_is_size, values))


def kind(value: Any) -> str:
    """What ``value`` is, in words that do not grow with it."""
    if isinstance(value, (Name, Inert)):
        return value.name[:100]
    return f"a {type(value).__name__}"
