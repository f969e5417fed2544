"""Makes ``ops_torch.npz``: the neural-network ops and their gradients, as PyTorch computes them in float64.

Run in an environment with PyTorch: ``python tests/reference/ops_torch.py``. An entry ``OP/NAME/ARRAY`` holds an array
of one case, images channels last and filters (height, width, channels, filters); ``g`` is the cotangent of the result
``y``, and ``x_gradient`` and its like are the gradients of ``sum(g * y)``. ``OP/NAME/settings`` is JSON.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

generator = np.random.default_rng(5)
arrays: dict[str, np.ndarray] = {}

# name: (images, filters, settings)
CONVOLUTIONS = {
    "pointwise": ((2, 5, 4, 3), (1, 1, 3, 4), {}),
    "pointwise_stride2": ((2, 5, 4, 3), (1, 1, 3, 4), {"stride": 2}),
    "pointwise_stride3_even": ((2, 6, 8, 2), (1, 1, 2, 3), {"stride": 3}),
    "pointwise_padded": ((2, 4, 4, 3), (1, 1, 3, 2), {"padding": 1}),
    "pointwise_groups": ((2, 4, 3, 4), (1, 1, 2, 6), {"groups": 2}),
    "three_valid": ((2, 6, 5, 3), (3, 3, 3, 4), {}),
    "three_padded": ((2, 6, 5, 3), (3, 3, 3, 4), {"padding": 1}),
    "three_stride2": ((2, 7, 6, 3), (3, 3, 3, 4), {"stride": 2, "padding": 1}),
    "three_stride2_leftover": ((2, 8, 8, 2), (3, 3, 2, 3), {"stride": 2}),
    "uneven_settings": ((1, 9, 7, 2), (3, 2, 2, 3), {"stride": [2, 1], "padding": [2, 1], "dilation": [1, 2]}),
    "dilated": ((2, 8, 9, 2), (3, 3, 2, 3), {"dilation": 2, "padding": 2}),
    "dilated_stride2": ((1, 10, 9, 2), (3, 3, 2, 2), {"dilation": 2, "stride": 2, "padding": 1}),
    "groups": ((2, 6, 5, 6), (3, 3, 2, 6), {"groups": 3, "padding": 1}),
    "depthwise": ((2, 6, 5, 4), (3, 3, 1, 8), {"groups": 4, "stride": 2, "padding": 1}),
    "stem": ((1, 13, 12, 3), (7, 7, 3, 4), {"stride": 2, "padding": 3}),
    "even_filter": ((2, 5, 5, 2), (2, 4, 2, 2), {"padding": 2}),
    "whole_image": ((2, 4, 3, 2), (4, 3, 2, 3), {}),
}
# name: (images, settings)
POOLS = {
    "two": ((2, 6, 4, 3), {"size": 2}),
    "two_leftover": ((2, 7, 5, 2), {"size": 2}),
    "three_stride2_padded": ((2, 8, 7, 3), {"size": 3, "stride": 2, "padding": 1}),
    "uneven": ((1, 7, 9, 2), {"size": [3, 2], "stride": [1, 2], "padding": [1, 0]}),
    "overlapping": ((1, 6, 6, 2), {"size": 3, "stride": 1}),
    "whole_image": ((2, 9, 9, 2), {"size": 9}),
}


def channels_first(array: np.ndarray) -> torch.Tensor:
    return torch.tensor(array).permute(0, 3, 1, 2).contiguous().requires_grad_()


def channels_last(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().permute(0, 2, 3, 1).numpy()


def keep(case: str, settings: dict, **named: np.ndarray) -> None:
    arrays[f"{case}/settings"] = np.array(json.dumps(settings))
    for name, array in named.items():
        arrays[f"{case}/{name}"] = np.ascontiguousarray(array)


for name, (image_shape, filter_shape, settings) in CONVOLUTIONS.items():
    x, w = generator.normal(size=image_shape), generator.normal(size=filter_shape)
    images = channels_first(x)
    filters = torch.tensor(w).permute(3, 2, 0, 1).contiguous().requires_grad_()
    y = functional.conv2d(images, filters, **settings)
    g = generator.normal(size=channels_last(y).shape)
    y.backward(channels_first(g))
    gradients = {
        "x_gradient": channels_last(images.grad),
        "w_gradient": filters.grad.permute(2, 3, 1, 0).numpy(),
    }
    keep(f"conv2d/{name}", settings, x=x, w=w, g=g, y=channels_last(y), **gradients)

for function, pool in {"max_pool2d": functional.max_pool2d, "avg_pool2d": functional.avg_pool2d}.items():
    for name, (shape, settings) in POOLS.items():
        # Few different values, so that windows have ties.
        x = generator.integers(-3, 3, size=shape) / 2
        images = channels_first(x)
        torch_settings = {"kernel_size": settings["size"], **{k: v for k, v in settings.items() if k != "size"}}
        y = pool(images, **torch_settings)
        g = generator.normal(size=channels_last(y).shape)
        y.backward(channels_first(g))
        keep(f"{function}/{name}", settings, x=x, g=g, y=channels_last(y), x_gradient=channels_last(images.grad))
        if function == "avg_pool2d":
            inside = pool(channels_first(x), **torch_settings, count_include_pad=False)
            keep(f"{function}/{name}", settings, y_inside=channels_last(inside))

for name, shape in {"images": (4, 3, 5, 6), "rows": (7, 3)}.items():
    x = generator.normal(2, 3, size=shape)
    gamma, beta = generator.normal(size=shape[-1]), generator.normal(size=shape[-1])
    tensors = [torch.tensor(array, requires_grad=True) for array in (x, gamma, beta)]
    running_mean, running_var = torch.zeros(shape[-1]).double(), torch.zeros(shape[-1]).double()
    # With momentum 1 the running statistics are the batch's, the variance unbiased.
    y = functional.batch_norm(tensors[0].movedim(-1, 1), running_mean, running_var, *tensors[1:], True, 1.0, 1e-3)
    y = y.movedim(1, -1)
    g = generator.normal(size=shape)
    y.backward(torch.tensor(g))
    gradients = {f"{k}_gradient": t.grad.numpy() for k, t in zip(("x", "gamma", "beta"), tensors, strict=True)}
    statistics = {"mean": running_mean.numpy(), "unbiased_var": running_var.numpy()}
    keep(
        f"batch_norm/{name}",
        {"eps": 1e-3},
        x=x,
        gamma=gamma,
        beta=beta,
        g=g,
        y=y.detach().numpy(),
        **statistics,
        **gradients,
    )

for name, scale, smoothing in [
    ("plain", 3, 0.0),
    ("smoothed", 3, 0.1),
    ("uniform", 3, 1.0),
    ("large", 1e4, 0.0),
    ("large_smoothed", 200, 0.1),
]:
    logits = generator.normal(0, scale, size=(6, 5))
    labels = generator.integers(0, 5, size=6)
    tensor = torch.tensor(logits, requires_grad=True)
    losses = functional.cross_entropy(tensor, torch.tensor(labels), reduction="none", label_smoothing=smoothing)
    g = generator.normal(size=6)
    losses.backward(torch.tensor(g))
    keep(
        f"softmax_cross_entropy/{name}",
        {"label_smoothing": smoothing},
        logits=logits,
        labels=labels,
        g=g,
        y=losses.detach().numpy(),
        logits_gradient=tensor.grad.numpy(),
    )

path = Path(__file__).with_suffix(".npz")
np.savez_compressed(path, **arrays)
print(f"{path.name}: {len(arrays)} arrays, {path.stat().st_size / 1024:.0f} KiB")
