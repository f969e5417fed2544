"""Networks: functions from a store and images to logits."""

from __future__ import annotations

from theano_mgpu.models.resnet import resnet

__all__ = ["resnet"]
