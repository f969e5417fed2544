"""Training: a loop that can be copied, over checkpoints, metrics, evaluation and signals that stand alone."""

from __future__ import annotations

from theano_mgpu.data.batches import Batch, Batches, BatchSource
from theano_mgpu.training.checkpoint_file import read_checkpoint
from theano_mgpu.training.checkpoints import Checkpoints
from theano_mgpu.training.evaluation import OnceOver, evaluate, examine
from theano_mgpu.training.examination import Examination
from theano_mgpu.training.learning_rate_finder import RatesTried, find_learning_rate
from theano_mgpu.training.live_display import LiveDisplay
from theano_mgpu.training.loop import Fitted, begin, fit, interrupted
from theano_mgpu.training.metrics import Means, MetricsFile, Stopwatch
from theano_mgpu.training.prediction import Prediction, predictions
from theano_mgpu.training.prefetch import Prefetch, Prefetched
from theano_mgpu.training.run_folder import RunFolder
from theano_mgpu.training.signals import Interrupted, StopSignals
from theano_mgpu.training.state import Checkpoint, Progress, TrainingState
from theano_mgpu.training.tensorboard import TensorBoard
from theano_mgpu.training.time_parts import time_split, verdict

__all__ = [
    "Batch",
    "BatchSource",
    "Batches",
    "Checkpoint",
    "Checkpoints",
    "Examination",
    "Fitted",
    "Interrupted",
    "LiveDisplay",
    "Means",
    "MetricsFile",
    "OnceOver",
    "Prediction",
    "Prefetch",
    "Prefetched",
    "Progress",
    "RatesTried",
    "RunFolder",
    "StopSignals",
    "Stopwatch",
    "TensorBoard",
    "TrainingState",
    "begin",
    "evaluate",
    "examine",
    "find_learning_rate",
    "fit",
    "interrupted",
    "predictions",
    "read_checkpoint",
    "time_split",
    "verdict",
]
