"""Pickled state dicts, carried out by hand: nothing that a file names is imported, and nothing of it is called.

A pickle is a program for a small stack machine. ``pickletools`` decodes it; ``carry_out`` interprets the instructions
that torch's pickler writes (protocols 2 to 5), with ``torch_objects`` for what they name. Python's own
``Unpickler`` with a stricter ``find_class`` would leave to the file how long its memo is and what is hashed: a few
bytes can ask for gigabytes, or for ever.

https://docs.pytorch.org/docs/stable/notes/serialization.html; the instructions are those of ``Lib/pickletools.py``.
"""

from __future__ import annotations

import pickletools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

from theano_mgpu.weights.torch_objects import Dictionary, Inert, Name, Storage, build, is_known, kind, made, storage

__all__ = ["Program", "carry_out"]

_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_LITERALS = {
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("SHORT_BINSTRING", "BINSTRING", "SHORT_BINBYTES", "BINBYTES"),
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_OTHERS = {
    *("PROTO", "FRAME", "MARK", "POP", "EMPTY_DICT", "EMPTY_LIST", "EMPTY_SET", "TUPLE", "STOP"),
    *("BINPUT", "LONG_BINPUT", "MEMOIZE", "BINGET", "LONG_BINGET"),
    *("APPEND", "APPENDS", "ADDITEMS", "SETITEM", "SETITEMS"),
    *("GLOBAL", "STACK_GLOBAL", "REDUCE", "NEWOBJ", "BUILD", "BINPERSID"),
}
_NEEDED = {*_CONSTANTS, *_LITERALS, *_TUPLES, *_OTHERS}
_INSTRUCTIONS = {instruction.code.encode("latin-1"): instruction for instruction in pickletools.opcodes}


@dataclass(frozen=True)
class Program:
    """What a pickle makes, and the storages it refers to, by key."""

    result: Any
    storages: dict[str, Storage]


def carry_out(pickle: IO[bytes]) -> Program:
    """Interpret one pickle, from where the file stands to right behind its end.

    Raises ValueError, saying all that was asked for and is not known, or what is wrong.
    """
    machine = _Machine()
    try:
        for instruction, argument, position in _instructions(pickle):
            try:
                machine.step(instruction, argument)
            except (IndexError, KeyError) as error:
                raise ValueError(f"it is damaged at byte {position} of its pickles") from error
        if not machine.stack:
            raise ValueError("the pickle is empty")
    except ValueError:
        # What was asked for says more than where it went wrong afterwards.
        if not machine.foreign:
            raise
    if machine.foreign:
        names = [_shortened(name) for name in machine.foreign]
        listed = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
        raise ValueError(
            f"it asks for {listed}, which is no part of a state dict; nothing of it was executed. Where the file can "
            "be trusted, save its tensors alone, with torch.save(model.state_dict(), path)"
        )
    return Program(machine.stack[-1], machine.storages)


def _instructions(pickle: IO[bytes]) -> Iterator[tuple[str, Any, int]]:
    """Name, argument and place of each instruction up to the last; ValueError for one that state dicts do not need."""
    while code := pickle.read(1):
        position = pickle.tell() - 1
        instruction = _INSTRUCTIONS.get(code)
        if instruction is None or instruction.name not in _NEEDED:
            name = instruction.name if instruction else f"0x{code.hex()}"
            raise ValueError(f"its pickle has an instruction that state dicts do not need, {name}")
        if instruction.name == "STOP":
            return
        argument = None
        if instruction.name == "GLOBAL":
            # Two lines, as they are: pickletools would undo escapes in them, and warn.
            argument = pickle.readline().decode().rstrip("\n"), pickle.readline().decode().rstrip("\n")
        elif instruction.arg is not None:
            argument = instruction.arg.reader(pickle)
        yield instruction.name, argument, position
    raise ValueError("its pickle is cut short")


class _Machine:
    """The stack, the marks on it, and the memo."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}
        # A dict for its order.
        self.foreign: dict[str, None] = {}

    def step(self, instruction: str, argument: Any) -> None:
        """Carry out one instruction; IndexError or KeyError where stack, marks or memo do not hold what it needs."""
        stack = self.stack
        if instruction in _LITERALS:
            stack.append(argument)
        elif instruction in _CONSTANTS:
            stack.append(_CONSTANTS[instruction])
        elif instruction in _TUPLES:
            stack.append(tuple(self._taken(_TUPLES[instruction])))
        else:
            match instruction:
                case "PROTO" | "FRAME":
                    pass
                case "MARK":
                    self.marks.append(len(stack))
                case "EMPTY_DICT":
                    stack.append(Dictionary([]))
                case "EMPTY_LIST":
                    stack.append([])
                case "EMPTY_SET":
                    stack.append(Inert("builtins.set"))
                case "TUPLE":
                    stack.append(tuple(self._behind_mark()))
                case "BINPUT" | "LONG_BINPUT":
                    self.memo[argument] = stack[-1]
                case "MEMOIZE":
                    self.memo[len(self.memo)] = stack[-1]
                case "BINGET" | "LONG_BINGET":
                    stack.append(self.memo[argument])
                case "POP":
                    stack.pop()
                case "APPEND":
                    self._extend(self._taken(1))
                case "APPENDS" | "ADDITEMS":
                    self._extend(self._behind_mark())
                case "SETITEM":
                    self._set_items(self._taken(2))
                case "SETITEMS":
                    self._set_items(self._behind_mark())
                case "GLOBAL":
                    self._push_name(*argument)
                case "STACK_GLOBAL":
                    self._push_name(*self._taken(2))
                case "REDUCE" | "NEWOBJ":
                    function, arguments = self._taken(2)
                    stack.append(made(function, arguments))
                case "BUILD":
                    (state,) = self._taken(1)
                    build(stack[-1], state)
                case "BINPERSID":
                    stack.append(self._storage(stack.pop()))

    def _taken(self, count: int) -> list[Any]:
        if count > len(self.stack):
            raise IndexError
        taken = self.stack[-count:]
        del self.stack[-count:]
        return taken

    def _behind_mark(self) -> list[Any]:
        mark = self.marks.pop()
        taken = self.stack[mark:]
        del self.stack[mark:]
        return taken

    def _extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, Inert):
            raise ValueError(f"it appends to {kind(target)}")

    def _set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if len(items) % 2:
            raise IndexError
        if isinstance(target, Dictionary):
            target.pairs.extend(zip(items[::2], items[1::2], strict=True))
        elif not isinstance(target, Inert):
            raise ValueError(f"it sets entries of {kind(target)}")

    def _push_name(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError(f"it asks for something by {kind(module)} and {kind(name)} instead of a name")
        full = f"{module}.{name}".replace("__builtin__.", "builtins.")
        if not is_known(full):
            self.foreign[full] = None
        self.stack.append(Name(full))

    def _storage(self, persistent: Any) -> Storage:
        whole, part = storage(persistent)
        known = self.storages.setdefault(whole.key, whole)
        if (known.dtype, known.length) != (whole.dtype, whole.length):
            raise ValueError(f"it refers to storage '{whole.key}' with two dtypes or lengths")
        return part


def _shortened(name: str) -> str:
    return name if len(name) < 100 else f"{name[:100]}..."
