"""The peer in PyTorch: what DistributedDataParallel's exchange of ResNet-50's gradients and SGD with momentum take.

python benchmarks/peers/torch_ddp_exchange.py --ranks 2

A step of a trivial loss of all parameters over gloo, less the same forward and backward pass without exchange
(``no_sync``), the median of pairs; the slowest rank counts. ``--bucket-view`` spares DDP two copies of the gradients,
which is not its default. One process a rank; needs only torch.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch_network import free_port, resnet50

_WARM_UP = 12


class Sum(torch.nn.Module):
    """Of all parameters, times a scale."""

    def __init__(self, params: list[torch.nn.Parameter]) -> None:
        super().__init__()
        self.params = torch.nn.ParameterList(params)

    def forward(self, scale: torch.Tensor) -> torch.Tensor:
        return torch.stack([(param * scale).sum() for param in self.params]).sum()


def slowest(begun: float) -> float:
    taken = torch.tensor([time.perf_counter() - begun])
    dist.all_reduce(taken, dist.ReduceOp.MAX)
    return float(taken)


def worker(rank: int, arguments: argparse.Namespace) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(arguments.port))
    torch.set_num_threads(max((os.cpu_count() or 1) // arguments.ranks, 1))
    dist.init_process_group("gloo", rank=rank, world_size=arguments.ranks)
    params = [param for param in resnet50((3, 4, 6, 3)).parameters() if param.requires_grad]
    model = torch.nn.parallel.DistributedDataParallel(Sum(params), gradient_as_bucket_view=arguments.bucket_view)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9, foreach=True)
    scale = torch.ones(())
    seconds = []
    for _ in range(arguments.steps + _WARM_UP):
        dist.barrier()
        begun = time.perf_counter()
        with model.no_sync():
            model(scale).backward()
        alone = slowest(begun)
        optimizer.zero_grad(set_to_none=not arguments.bucket_view)
        dist.barrier()
        begun = time.perf_counter()
        model(scale).backward()
        optimizer.step()
        seconds.append(slowest(begun) - alone)
        optimizer.zero_grad(set_to_none=not arguments.bucket_view)
    if rank == 0:
        numbers = sum(param.numel() for param in params)
        line = {
            "benchmark": "peer_ddp_exchange",
            "seconds": statistics.median(seconds[_WARM_UP:]),
            "parameters": numbers,
        }
        print(json.dumps({**line, "torch": torch.__version__}), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--bucket-view", action="store_true", help="gradients lie in the buckets that are exchanged")
    parser.set_defaults(port=free_port())
    given = parser.parse_args()
    mp.spawn(worker, (given,), nprocs=given.ranks)
