"""Neural-network operations on arrays: images are (examples, height, width, channels)."""

from __future__ import annotations

import warnings

from theano_mgpu.nn.activations import relu
from theano_mgpu.nn.convolution import conv2d
from theano_mgpu.nn.dropout import dropout
from theano_mgpu.nn.losses import softmax_cross_entropy
from theano_mgpu.nn.metrics import top_k_accuracy
from theano_mgpu.nn.normalisation import batch_norm
from theano_mgpu.nn.pooling import avg_pool2d, global_avg_pool2d, max_pool2d

__all__ = [
    "avg_pool2d",
    "batch_norm",
    "conv2d",
    "dropout",
    "global_avg_pool2d",
    "max_pool2d",
    "relu",
    "softmax_cross_entropy",
    "top_k_accuracy",
]

# In a plain pytensor.function our ops run by their numpy ``perform``, which is what PyTensor's Numba mode warns of.
warnings.filterwarnings(
    "ignore",
    "Numba will use object mode to run (Conv2d|BatchNorm|MaxPool2d|AveragePool2d|SoftmaxCrossEntropy|ShardWeight)",
)
