"""Shared variables whose value the devices have, until somebody asks for it on the host.

With the update on the devices nothing needs the new values on the host, so they stay where they are. The host's copy is
old then, and must never be seen: a lent variable's container gives the loan back as soon as its storage is asked for,
by ``get_value``, ``set_value``, or a plain function that is being compiled. A plain function that was compiled before
holds the storage itself, past the container: then the variable is not lent at all. No JAX here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from pytensor.compile.sharedvalue import SharedVariable
from pytensor.link.basic import Container
from pytensor.tensor.type import TensorType

from theano_mgpu.vectors import Slot, parts_of, variables_of

__all__ = ["Loan", "are_lendable", "lend", "loan_of", "peek"]


class Loan:
    """The value of a slot's variables as the devices have it: ``array``; ``to_host`` makes a numpy array of it."""

    def __init__(self, slot: Slot, array: Any, to_host: Callable[[Any], np.ndarray]) -> None:
        self.slot = slot
        self.array = array
        self._to_host = to_host

    def give_back(self) -> None:
        """The host has the value again."""
        parts = parts_of(self.slot, self._to_host(self.array))
        for variable, value in zip(variables_of(self.slot), parts, strict=True):
            _own(variable.container)[0] = value
            _release(variable.container)


class _LentContainer(Container):
    """A container while its value is lent."""

    loan: Loan

    @property
    def storage(self) -> list[Any]:  # instances have the list in their dictionary, behind this
        self.loan.give_back()
        return _own(self)

    def __reduce_ex__(self, protocol: Any) -> Any:  # copies go past the property
        self.loan.give_back()
        return self.__reduce_ex__(protocol)  # of the plain container that it is again


def are_lendable(variables: Iterable[SharedVariable]) -> bool:
    """Nobody but their containers holds the variables' storage."""
    return all(
        type(v.container) in (Container, _LentContainer) and sys.getrefcount(_own(v.container)) <= _ALONE
        for v in variables
    )


def lend(loan: Loan) -> None:
    for variable in variables_of(loan.slot):
        vars(variable.container)["loan"] = loan
        variable.container.__class__ = _LentContainer


def loan_of(slot: Slot) -> Loan | None:
    """The loan of exactly this slot, where there is one."""
    (loan, *others) = [vars(variable.container).get("loan") for variable in variables_of(slot)]
    return loan if loan is not None and loan.slot is slot and all(other is loan for other in others) else None


def peek(variable: SharedVariable) -> Any:
    """The host's value, an old one of the same shape where it is lent."""
    return _own(variable.container)[0]


def _own(container: Container) -> list[Any]:
    return vars(container)["storage"]


def _release(container: Container) -> None:
    vars(container).pop("loan", None)
    container.__class__ = Container


_ALONE_CONTAINER = Container(TensorType("float32", shape=()), [None])
# As many references as a storage has that only its container and the call that counts hold.
_ALONE = sys.getrefcount(_own(_ALONE_CONTAINER))
