"""Makes ``resnet_torch.npz``: one step of torchvision's ResNet-18, 34, 50 and 101 in float64.

Run in an environment with torchvision: ``python tests/reference/resnet_torch.py``. Weights, images and labels
are those of ``resnet_weights.py``. An entry ``DEPTH/MODE/ARRAY`` holds, for MODE "train" and "eval", ``logits``,
``loss``, the Euclidean norm of each parameter's gradient (``norms``) and four entries of it (``entries``), and after
one step in training mode four entries of each running statistic (``statistics``); ``DEPTH/parameters`` and
``DEPTH/statistics`` are their names in order.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torchvision
from resnet_weights import CASES, CLASSES, LABELS, entries, images, value

MEAN, DEVIATION = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def one_step(depth: int, train: bool, dtype: torch.dtype = torch.float64) -> dict[str, np.ndarray]:
    """Forward, backward, and the running statistics afterwards."""
    inputs = torch.tensor((images(*CASES[depth]) / 255 - MEAN) / DEVIATION).permute(0, 3, 1, 2).contiguous()
    network = getattr(torchvision.models, f"resnet{depth}")(num_classes=CLASSES)
    state = {
        name: torch.tensor(value(name, tuple(tensor.shape), depth)) for name, tensor in network.state_dict().items()
    }
    network.load_state_dict(state, strict=True)
    network.to(dtype).train(train)
    logits = network(inputs.to(dtype))
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(LABELS))
    loss.backward()
    gradients = [parameter.grad.numpy() for parameter in network.parameters()]
    result = {
        "logits": logits.detach().numpy(),
        "loss": loss.detach().numpy(),
        "norms": np.array([np.linalg.norm(gradient) for gradient in gradients]),
        "entries": np.array([entries(gradient) for gradient in gradients]),
    }
    if train:
        statistics = [tensor.numpy() for name, tensor in network.named_buffers() if "running" in name]
        result["statistics"] = np.array([entries(statistic) for statistic in statistics])
    return result


if __name__ == "__main__":
    arrays: dict[str, np.ndarray] = {}
    for depth in CASES:
        network = getattr(torchvision.models, f"resnet{depth}")(num_classes=CLASSES)
        arrays[f"{depth}/parameters"] = np.array([name for name, _ in network.named_parameters()])
        arrays[f"{depth}/statistics"] = np.array([name for name, _ in network.named_buffers() if "running" in name])
        for mode in ("train", "eval"):
            for name, array in one_step(depth, mode == "train").items():
                arrays[f"{depth}/{mode}/{name}"] = array.astype("float32")
    path = Path(__file__).with_suffix(".npz")
    np.savez_compressed(path, **arrays)
    print(f"{path.name}: {len(arrays)} arrays, {path.stat().st_size / 1024:.0f} KiB; {torchvision.__version__}")
