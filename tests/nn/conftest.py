"""How an op is run here: by numpy, by its lowering, and against what PyTorch computed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytensor
import pytest
from pytensor.compile.mode import Mode
from pytensor.gradient import verify_grad

from theano_mgpu.lowering import convolution, losses, normalisation, pooling  # noqa: F401  (they register lowerings)
from theano_mgpu.lowering.dispatch import collect_checks, jax_funcify

PYTHON = Mode(linker="py", optimizer="fast_compile")
_REFERENCE = Path(__file__).parents[1] / "reference" / "ops_torch.npz"


class Ops:
    """Ways of running a graph of one op."""

    mode = PYTHON

    def evaluate(self, outputs: Any, values: dict[Any, np.ndarray]) -> Any:
        """The outputs by each op's ``perform``."""
        return pytensor.function(list(values), outputs, mode=PYTHON, on_unused_input="ignore")(*values.values())

    def lower(self, op: Any, *values: np.ndarray) -> list[np.ndarray]:
        """The outputs of an op by its lowering, compiled; a failed check raises as in a step."""
        node = op.make_node(*[pytensor.tensor.type.TensorType(v.dtype, shape=(None,) * v.ndim)() for v in values])
        function = jax_funcify(op, node=node)

        def traced(*arrays: jax.Array) -> Any:
            with collect_checks() as checks:
                outputs = function(*arrays)
            messages[:] = [(check.error, check.message) for check in checks]
            return outputs, [(check.ok, check.details) for check in checks]

        messages: list[tuple[type[Exception], str]] = []
        with jax.enable_x64(True):
            outputs, results = jax.jit(traced)(*values)
        for (error, message), (ok, details) in zip(messages, results, strict=True):
            if not ok:
                raise error(message.format(**details))
        return [np.asarray(output) for output in (outputs if isinstance(outputs, tuple) else (outputs,))]

    def perform(self, op: Any, *values: np.ndarray) -> list[np.ndarray]:
        """The outputs of an op by numpy, held to the types that its node declares."""
        node = op.make_node(*map(pytensor.tensor.as_tensor_variable, values))
        storage: list[list[Any]] = [[None] for _ in node.outputs]
        op.perform(node, list(values), storage)
        for (value,), variable in zip(storage, node.outputs, strict=True):
            assert value.dtype == variable.type.dtype
            assert all(s in (None, n) for s, n in zip(variable.type.shape, value.shape, strict=True))
        return [cell[0] for cell in storage]

    def compare_lowering(self, op: Any, *values: np.ndarray, rounding: float = 100) -> None:
        """Perform and lowering agree in shape, dtype and to ``rounding`` units in the last place of the largest."""
        for performed, lowered in zip(self.perform(op, *values), self.lower(op, *values), strict=True):
            assert lowered.dtype == performed.dtype
            scale = np.nanmax(np.abs(performed), initial=1, where=np.isfinite(performed))
            tolerance = rounding * np.finfo(performed.dtype).eps * float(scale)
            np.testing.assert_allclose(lowered, performed, rtol=0, atol=tolerance)

    def verify_gradient(self, function: Callable[..., Any], *values: np.ndarray) -> None:
        """The symbolic gradient agrees with finite differences."""
        verify_grad(function, list(values), n_tests=1, rng=np.random.default_rng(1), mode=PYTHON)

    def verify_second_gradient(self, function: Callable[..., Any], *values: np.ndarray) -> None:
        """So does the gradient of a function of the gradient."""

        def gradients(*variables: Any) -> Any:
            # Means, as differences of large curved sums have few digits.
            squared = pytensor.tensor.sqr(function(*variables)).mean()
            return sum(pytensor.tensor.sin(g).mean() for g in pytensor.grad(squared, list(variables)))

        self.verify_gradient(gradients, *values)


@pytest.fixture(scope="session")
def ops() -> Ops:
    return Ops()


def _cases() -> dict[str, dict[str, Any]]:
    """PyTorch's values, by case: ``_cases()["conv2d/stem"]["x"]``; settings as a dictionary."""
    cases: dict[str, dict[str, Any]] = {}
    with np.load(_REFERENCE) as arrays:
        for key in arrays.files:
            case, name = key.rsplit("/", 1)
            value = arrays[key]
            cases.setdefault(case, {})[name] = json.loads(str(value)) if name == "settings" else value
    return cases


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes ``conv2d_case`` runs on each of PyTorch's cases of conv2d."""
    for argument in metafunc.fixturenames:
        if argument.endswith("_case"):
            function = argument.removesuffix("_case")
            cases = {name.split("/")[1]: case for name, case in _cases().items() if name.startswith(f"{function}/")}
            metafunc.parametrize(argument, cases.values(), ids=cases.keys())
