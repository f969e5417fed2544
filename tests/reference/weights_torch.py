"""Makes ``weights_torch/``: small files of weights as PyTorch and safetensors write them, and what is in them.

Run in an environment with PyTorch and safetensors: ``python tests/reference/weights_torch.py``. All files are of one
network of a convolution (3 filters of 2 channels, 3 x 2), a batch norm and a linear layer of 3 x 4;
``expected.npz`` holds its state dict, in PyTorch's order of axes.
"""

from __future__ import annotations

import argparse
from collections import OrderedDict
from pathlib import Path

import numpy as np
import safetensors.torch
import torch

folder = Path(__file__).with_suffix("")
folder.mkdir(exist_ok=True)

torch.manual_seed(7)
network = torch.nn.Sequential(
    OrderedDict(conv=torch.nn.Conv2d(2, 3, (3, 2)), bn=torch.nn.BatchNorm2d(3), fc=torch.nn.Linear(3, 4))
)
# So that the moving averages are of something.
for _ in range(2):
    network.bn(network.conv(torch.randn(4, 2, 5, 6)))
state = network.state_dict()
np.savez_compressed(folder / "expected.npz", **{name: tensor.numpy() for name, tensor in state.items()})

torch.save(state, folder / "zip.pth")
torch.save(state, folder / "legacy.pth", _use_new_zipfile_serialization=False)
torch.save(state, folder / "protocol4.pth", pickle_protocol=4)
safetensors.torch.save_file(state, folder / "plain.safetensors", metadata={"format": "pt"})

# As a training script of torchvision's keeps it, of a network in DistributedDataParallel.
optimizer = torch.optim.SGD(network.parameters(), 0.0, momentum=0.9)
for parameter in network.parameters():
    parameter.grad = torch.ones_like(parameter)
optimizer.step()
checkpoint = {
    "model": OrderedDict((f"module.{name}", tensor) for name, tensor in state.items()),
    "optimizer": optimizer.state_dict(),
    "epoch": 3,
    "args": argparse.Namespace(model="resnet50", lr=0.1, device=torch.device("cpu")),
}
torch.save(checkpoint, folder / "checkpoint.pth")
# As timm keeps it.
torch.save({"epoch": 3, "arch": "tiny", "state_dict": state, "metric": 71.5}, folder / "timm.pth.tar")
# Parameters instead of tensors, one with an attribute.
parameters = {name: torch.nn.Parameter(t) if t.is_floating_point() else t for name, t in state.items()}
parameters["fc.weight"].note = "kept"
torch.save(parameters, folder / "parameters.pth")

# Views: all parameters in one storage, one transposed, one with a stride, one expanded.
flat = torch.cat([tensor.reshape(-1) for tensor in state.values() if tensor.is_floating_point()])
views, start = OrderedDict(), 0
for name, tensor in state.items():
    if tensor.is_floating_point():
        views[name] = flat[start : start + tensor.numel()].view(tensor.shape)
        start += tensor.numel()
views["fc.weight"] = state["fc.weight"].t().contiguous().t()
views["bn.bias"] = torch.zeros(1).expand(3)
views["bn.running_var"] = torch.stack([state["bn.running_var"], torch.zeros(3)], dim=1)[:, 0]
torch.save(views, folder / "views.pth")
torch.save(views, folder / "views_legacy.pth", _use_new_zipfile_serialization=False)

for dtype in (torch.bfloat16, torch.float16):
    half = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    word = str(dtype).removeprefix("torch.")
    torch.save(half, folder / f"{word}.pth")
    safetensors.torch.save_file(half, folder / f"{word}.safetensors")
# A dtype that has no storage class of its own.
torch.save({**state, "steps": torch.tensor([1, 65535], dtype=torch.uint16)}, folder / "uint16.pth")

sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
print(f"{len(sizes)} files, {sum(sizes.values()) / 1024:.0f} KiB: {sizes}")
