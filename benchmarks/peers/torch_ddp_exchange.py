"""The peer in PyTorch: DistributedDataParallel's exchange of ResNet-50's gradients over gloo, and SGD with momentum.

python benchmarks/peers/torch_ddp_exchange.py --ranks 2

The gradients lie in DDP's buckets of 25 MB already (its ``gradient_as_bucket_view``); every bucket's all-reduce is
begun at once, as DDP's hooks do, then divided, then comes the optimizer. One process a rank; needs only torch.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import time

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch_network import resnet50

BUCKET = 25 * 2**20


def in_buckets(params: list[torch.nn.Parameter]) -> list[torch.Tensor]:
    """Gradients of ones, views of a few long vectors."""
    groups: list[list[torch.nn.Parameter]] = [[]]
    held = 0
    for param in reversed(params):
        if held and held + param.nbytes > BUCKET:
            groups.append([])
            held = 0
        groups[-1].append(param)
        held += param.nbytes
    buckets = []
    for group in groups:
        bucket = torch.ones(sum(param.numel() for param in group))
        start = 0
        for param in group:
            param.grad = bucket[start : start + param.numel()].view(param.shape)
            start += param.numel()
        buckets.append(bucket)
    return buckets


def worker(rank: int, arguments: argparse.Namespace) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(arguments.port))
    torch.set_num_threads(max((os.cpu_count() or 1) // arguments.ranks, 1))
    dist.init_process_group("gloo", rank=rank, world_size=arguments.ranks)
    params = [param for param in resnet50((3, 4, 6, 3)).parameters() if param.requires_grad]
    buckets = in_buckets(params)
    optimizer = torch.optim.SGD(params, lr=1e-6, momentum=0.9, foreach=True)
    seconds = []
    for _ in range(arguments.steps + 2):
        dist.barrier()
        begun = time.perf_counter()
        for work in [dist.all_reduce(bucket, async_op=True) for bucket in buckets]:
            work.wait()
        for bucket in buckets:
            bucket /= arguments.ranks
        optimizer.step()
        taken = torch.tensor([time.perf_counter() - begun])
        dist.all_reduce(taken, dist.ReduceOp.MAX)
        seconds.append(float(taken))
    if rank == 0:
        numbers = sum(param.numel() for param in params)
        line = {"benchmark": "peer_ddp_exchange", "seconds": statistics.median(seconds[2:]), "parameters": numbers}
        print(json.dumps({**line, "torch": torch.__version__}), flush=True)
    dist.destroy_process_group()


def free_port() -> int:
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return int(made.getsockname()[1])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=10)
    parser.set_defaults(port=free_port())
    given = parser.parse_args()
    mp.spawn(worker, (given,), nprocs=given.ranks)
