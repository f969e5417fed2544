"""Theano-style training over many GPUs: one symbolic graph, cut at its averages, one update on the host."""

from theano_mgpu import (
    data,
    exchange,
    init,
    layers,
    lowering,
    models,
    nn,
    recipes,
    report,
    schedules,
    training,
    updates,
)
from theano_mgpu.arguments import In
from theano_mgpu.averages import average, grad, maximum, minimum, total
from theano_mgpu.devices import Context, Contexts, Rank, contexts
from theano_mgpu.errors import (
    CutError,
    DamagedCheckpointError,
    DeviceMemoryError,
    DivergenceError,
    ImageError,
    NonFiniteError,
    RankError,
    RanksDifferError,
    RecipeError,
    RunInUseError,
    UnsupportedGraphError,
)
from theano_mgpu.frontend import function
from theano_mgpu.plan import Plan
from theano_mgpu.regions import recompute
from theano_mgpu.resident_data import resident
from theano_mgpu.step import Step
from theano_mgpu.store import ParameterStore
from theano_mgpu.verification import Verification, verify

__version__ = "0.1.0"

__all__ = [
    "Context",
    "Contexts",
    "CutError",
    "DamagedCheckpointError",
    "DeviceMemoryError",
    "DivergenceError",
    "ImageError",
    "In",
    "NonFiniteError",
    "ParameterStore",
    "Plan",
    "Rank",
    "RankError",
    "RanksDifferError",
    "RecipeError",
    "RunInUseError",
    "Step",
    "UnsupportedGraphError",
    "Verification",
    "average",
    "contexts",
    "data",
    "exchange",
    "function",
    "grad",
    "init",
    "layers",
    "lowering",
    "maximum",
    "minimum",
    "models",
    "nn",
    "recipes",
    "recompute",
    "report",
    "resident",
    "schedules",
    "total",
    "training",
    "updates",
    "verify",
]
