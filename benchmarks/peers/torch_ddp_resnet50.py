"""The peer in PyTorch: ResNet-50's training step under DistributedDataParallel, images/s over all processes.

python benchmarks/peers/torch_ddp_resnet50.py --batch 8 --devices 2

One process a device: on the processor one thread each and gloo, on GPUs NCCL. Needs only torch.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import time

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch_network import Training, free_port, resnet50


def worker(rank: int, arguments: argparse.Namespace) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(arguments.port))
    torch.set_num_threads(arguments.threads)
    torch.backends.cudnn.benchmark = True
    device = f"cuda:{rank}" if arguments.cuda else "cpu"
    dist.init_process_group("nccl" if arguments.cuda else "gloo", rank=rank, world_size=arguments.devices)
    model = resnet50((1, 1, 1, 1) if arguments.smoke else (3, 4, 6, 3)).to(device, memory_format=torch.channels_last)
    parallel = torch.nn.parallel.DistributedDataParallel(model, [rank] if arguments.cuda else None)
    if arguments.compile:
        parallel = torch.compile(parallel)
    own = arguments.batch // arguments.devices
    training = Training(parallel, own, arguments.image_size, device, arguments.precision)
    training()
    seconds = []
    for _ in range(arguments.steps):
        dist.barrier()
        begun = time.perf_counter()
        training()
        dist.barrier()
        seconds.append(time.perf_counter() - begun)
    if rank == 0:
        figures = {
            "images_per_s": round(arguments.batch / min(seconds), 3),
            "step_s": [round(s, 4) for s in seconds],
            "max_rss_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 3),
        }
        if arguments.cuda:
            figures["device_peak_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 3)
        line = {"benchmark": "peer_ddp", **vars(arguments), **figures, "torch": torch.__version__}
        print(json.dumps(line), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--devices", type=int, default=2, help="processes, each with one")
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32", help="bfloat16: by autocast")
    parser.add_argument("--compile", action="store_true", help="torch.compile")
    parser.add_argument("--cuda", action="store_true", help="GPUs instead of the processor")
    parser.add_argument("--smoke", action="store_true", help="small and quick: does it run at all?")
    parser.set_defaults(port=free_port())
    given = parser.parse_args()
    if given.smoke:
        given.batch, given.image_size, given.steps = 2 * given.devices, 32, 2
    mp.spawn(worker, (given,), nprocs=given.devices)
