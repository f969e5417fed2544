"""The peer in PyTorch: ResNet-50's training step in one process, channels last, momentum and weight decay.

python benchmarks/peers/torch_resnet50.py --batch 8 --threads 2

Needs only torch.
"""

from __future__ import annotations

import argparse
import json
import resource
import time

import torch
from torch_network import Training, resnet50

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--batch", type=int, default=8)
parser.add_argument("--threads", type=int, default=2, help="of the processor")
parser.add_argument("--steps", type=int, default=5)
parser.add_argument("--image-size", type=int, default=224)
parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32", help="bfloat16: by autocast")
parser.add_argument("--compile", action="store_true", help="torch.compile")
parser.add_argument("--cuda", action="store_true", help="a GPU instead of the processor")
parser.add_argument("--smoke", action="store_true", help="small and quick: does it run at all?")
arguments = parser.parse_args()
if arguments.smoke:
    arguments.batch, arguments.image_size, arguments.steps = 4, 32, 2

torch.set_num_threads(arguments.threads)
torch.backends.cudnn.benchmark = True
device = "cuda" if arguments.cuda else "cpu"
started = time.perf_counter()
model = resnet50((1, 1, 1, 1) if arguments.smoke else (3, 4, 6, 3)).to(device, memory_format=torch.channels_last)
if arguments.compile:
    model = torch.compile(model)
training = Training(model, arguments.batch, arguments.image_size, device, arguments.precision)
training()
first = time.perf_counter()
seconds = []
for _ in range(arguments.steps):
    begun = time.perf_counter()
    training()
    seconds.append(time.perf_counter() - begun)
figures = {
    "images_per_s": round(arguments.batch / min(seconds), 3),
    "step_s": [round(s, 4) for s in seconds],
    "to_first_step_s": round(first - started, 2),
    "max_rss_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 3),
}
if arguments.cuda:
    figures["device_peak_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 3)
print(json.dumps({"benchmark": "peer_torch", **vars(arguments), **figures, "torch": torch.__version__}))
