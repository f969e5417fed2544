"""Files in torch's formats with any content, written instruction by instruction: also what torch would never write."""

from __future__ import annotations

import io
import pickle
import re
import struct
import zipfile
from dataclasses import dataclass

import numpy as np

MAGIC = 0x1950A86A20F9469CFC6C


@dataclass(frozen=True)
class Name:
    """``module.name``."""

    module: str
    name: str


@dataclass(frozen=True)
class Call:
    """``function(*arguments)``, and a state that is set on it where there is one."""

    function: object
    arguments: object
    state: object = None
    instruction: bytes = pickle.REDUCE


@dataclass(frozen=True)
class Outside:
    """What torch keeps outside of the pickle."""

    persistent: object


def encoded(value: object) -> bytes:
    """The instructions that make ``value``."""
    match value:
        case None | bool():
            return {None: pickle.NONE, True: pickle.NEWTRUE, False: pickle.NEWFALSE}[value]
        case int():
            return pickle.LONG1 + b"\x09" + value.to_bytes(9, "little", signed=True)
        case str():
            return pickle.BINUNICODE + struct.pack("<I", len(value.encode())) + value.encode()
        case tuple():
            return pickle.MARK + b"".join(map(encoded, value)) + pickle.TUPLE
        case list():
            return pickle.EMPTY_LIST + pickle.MARK + b"".join(map(encoded, value)) + pickle.APPENDS
        case dict():
            items = b"".join(encoded(key) + encoded(item) for key, item in value.items())
            return pickle.EMPTY_DICT + pickle.MARK + items + pickle.SETITEMS
        case Name():
            return pickle.GLOBAL + f"{value.module}\n{value.name}\n".encode()
        case Call():
            made = encoded(value.function) + encoded(value.arguments) + value.instruction
            return made if value.state is None else made + encoded(value.state) + pickle.BUILD
        case Outside():
            return encoded(value.persistent) + pickle.BINPERSID
        case bytes():
            return value
    raise TypeError(value)


def pickled(value: object) -> bytes:
    return pickle.PROTO + b"\x02" + encoded(value) + pickle.STOP


def storage(key="0", length=4, kind="FloatStorage", module="torch", **part) -> Outside:
    return Outside(("storage", Name(module, kind), key, "cpu", length, *part.values()))


def tensor(shape=(4,), strides=(1,), offset=0, of=None, extra=()) -> Call:
    arguments = (storage() if of is None else of, offset, shape, strides, False, Call(ORDERED, ()))
    return Call(Name("torch._utils", "_rebuild_tensor_v2"), (*arguments, *extra))


ORDERED = Name("collections", "OrderedDict")
FOUR = np.arange(4, dtype="float32").tobytes()


def zip_file(pickle: bytes, storages=None, compression=zipfile.ZIP_STORED, **entries) -> bytes:
    """A file as torch 1.6 and newer write it; storage "0" has four numbers."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickle)
        for key, content in ({"0": FOUR} if storages is None else storages).items():
            archive.writestr(f"archive/data/{key}", content)
        for name, content in entries.items():
            archive.writestr(f"archive/{name.replace('_pkl', '.pkl')}", content)
    return file.getvalue()


def legacy_file(pickle_: bytes, keys=None, storages=None, version=1001) -> bytes:
    """A file as older ones do: storages are (number of elements, bytes)."""
    if keys is None:
        keys = ("0",) if b"Storage" in pickle_ else ()
    # For each storage the older format says of which other it is a part: None.
    pickle_ = re.sub(rb"(?<!t)tQ", b"NtQ", pickle_)
    head = [pickle.dumps(value, 2) for value in (MAGIC, version, {"little_endian": True})]
    stored = [struct.pack("<q", count) + content for count, content in storages or [(4, FOUR)]]
    return b"".join([*head, pickle_, pickle.dumps(list(keys), 2), *stored])
