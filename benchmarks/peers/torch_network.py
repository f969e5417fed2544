"""ResNet-50 in plain PyTorch, as torchvision builds it, for the PyTorch peers. Needs only torch."""

from __future__ import annotations

import socket

import torch
from torch import nn
from torch.nn import functional as F

__all__ = ["Training", "free_port", "resnet50"]


class Bottleneck(nn.Module):
    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        filters = 4 * width
        self.conv1, self.bn1 = nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, filters, 1, bias=False), nn.BatchNorm2d(filters)
        self.shortcut = nn.Identity()
        if stride != 1 or channels != filters:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, filters, 1, stride, bias=False), nn.BatchNorm2d(filters))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + self.shortcut(x))


def resnet50(blocks: tuple[int, ...] = (3, 4, 6, 3)) -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    layers.append(nn.MaxPool2d(3, 2, 1))
    channels = 64
    for width, stride, count in zip((64, 128, 256, 512), (1, 2, 2, 2), blocks, strict=True):
        for index in range(count):
            layers.append(Bottleneck(channels, width, stride if index == 0 else 1))
            channels = 4 * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2048, 1000))


class Training:
    """One model and optimiser; a call is one step on random images, finished when it returns."""

    def __init__(self, model: nn.Module, batch: int, image_size: int, device: str, precision: str) -> None:
        self._model, self._device, self._precision = model, torch.device(device), precision
        images = torch.randn(batch, 3, image_size, image_size)
        self._images = images.to(device, memory_format=torch.channels_last)
        self._labels = torch.randint(0, 1000, (batch,)).to(device)
        self._optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)

    def __call__(self) -> None:
        self._optimizer.zero_grad()
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._precision == "bfloat16"):
            loss = F.cross_entropy(self._model(self._images), self._labels)
        loss.backward()
        self._optimizer.step()
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def free_port() -> int:
    """Where processes can meet."""
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return int(made.getsockname()[1])
