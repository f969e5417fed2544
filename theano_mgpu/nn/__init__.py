"""Neural-network operations on arrays: images are (examples, height, width, channels)."""

from __future__ import annotations

import warnings

from theano_mgpu.nn.activations import relu
from theano_mgpu.nn.convolution import conv2d
from theano_mgpu.nn.dropout import dropout
from theano_mgpu.nn.images import normalise_images
from theano_mgpu.nn.losses import softmax_cross_entropy
from theano_mgpu.nn.metrics import top_k_accuracy
from theano_mgpu.nn.mixing import Mixed, cutmix, mixed_cross_entropy, mixup, mixup_or_cutmix
from theano_mgpu.nn.normalisation import batch_norm
from theano_mgpu.nn.pooling import avg_pool2d, global_avg_pool2d, max_pool2d
from theano_mgpu.nn.targets import binary_cross_entropy, one_hot

__all__ = [
    "Mixed",
    "avg_pool2d",
    "batch_norm",
    "binary_cross_entropy",
    "conv2d",
    "cutmix",
    "dropout",
    "global_avg_pool2d",
    "max_pool2d",
    "mixed_cross_entropy",
    "mixup",
    "mixup_or_cutmix",
    "normalise_images",
    "one_hot",
    "relu",
    "softmax_cross_entropy",
    "top_k_accuracy",
]

# In a plain pytensor.function our ops run by their numpy ``perform``, which is what PyTensor's Numba mode warns of.
warnings.filterwarnings(
    "ignore",
    "Numba will use object mode to run (Conv2d|BatchNorm|MaxPool2d|AveragePool2d|SoftmaxCrossEntropy|ShardWeight)",
)
