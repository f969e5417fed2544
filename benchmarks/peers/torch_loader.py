"""The peer in PyTorch: torchvision's usual input pipeline for training on ImageNet, over a folder of CLASS/*.jpg.

python benchmarks/peers/torch_loader.py FOLDER --workers 2

Decode with Pillow, random resized crop, flip, to float tensor, normalise. One core: --workers 0, no DataLoader. Needs
torch and torchvision, of any build.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import torch
import torch.library

# torchvision declares detection operators when imported, which a torch of another build does not have.
_declare = torch.library.register_fake


def _declare_or_leave(name: str, *arguments: object, **options: object) -> Callable:
    if str(name).startswith("torchvision::"):
        return lambda function: function
    return _declare(name, *arguments, **options)


torch.library.register_fake = _declare_or_leave
import torchvision  # noqa: E402
from torchvision import transforms  # noqa: E402

torch.library.register_fake = _declare

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("folder")
parser.add_argument("--batch", type=int, default=64)
parser.add_argument("--workers", type=int, default=2)
parser.add_argument("--image-size", type=int, default=224)
parser.add_argument("--epochs", type=int, default=2, help="that are measured; one before is not")
arguments = parser.parse_args()

torch.set_num_threads(1)
steps = [transforms.RandomResizedCrop(arguments.image_size), transforms.RandomHorizontalFlip()]
steps += [transforms.ToTensor(), transforms.Normalize(MEAN, DEVIATION)]
data = torchvision.datasets.ImageFolder(arguments.folder, transforms.Compose(steps))
options = {"num_workers": arguments.workers, "persistent_workers": arguments.workers > 0}
loader = torch.utils.data.DataLoader(data, arguments.batch, shuffle=True, **options)


def epoch() -> int:
    """The number of images."""
    if arguments.workers:
        return sum(len(labels) for _, labels in loader)
    return sum(image.shape[0] // 3 for image, _ in (data[index] for index in torch.randperm(len(data)).tolist()))


epoch()
begun, processor = time.perf_counter(), time.process_time()
images = sum(epoch() for _ in range(arguments.epochs))
figures = {
    "images_per_s": round(images / (time.perf_counter() - begun), 1),
    "images_per_processor_s": round(images / (time.process_time() - processor), 1),
}
versions = {"torch": torch.__version__, "torchvision": torchvision.__version__}
print(json.dumps({"benchmark": "peer_torch_loader", **vars(arguments), **figures, **versions}))
