"""Everything that crosses ranks; with one process each function is the identity.

DDP averages the ranks' gradients, so a loss that every rank computes over its own anchors,
or over global statistics, has exactly the one-process gradient when what it reads from
other ranks comes through `gather` or `all_sum`: their backward adds the ranks' gradients.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = [
    "agree",
    "all_sum",
    "any_rank",
    "barrier",
    "broadcast",
    "gather",
    "local",
    "places",
    "process_group",
    "rank",
    "ranks_here",
    "world",
]


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def ranks_here() -> int:
    """Ranks that share this machine's cores."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def local(device: str) -> str:
    """This rank's device: one GPU each where a run asks for cuda."""
    if device != "cuda":
        return device
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Join the ranks that torchrun started; alone, do nothing."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(torch.device(local("cuda")))
    # Flags and counts travel as CPU tensors whatever the device.
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


class _AllSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = grads[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(world())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = grads[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total.chunk(world())[rank()]


def all_sum(x: Tensor) -> Tensor:
    """Σ over ranks."""
    total: Tensor = x if world() == 1 else _AllSum.apply(x)
    return total


def gather(x: Tensor) -> Tensor:
    """The ranks' rows, in the order of ranks. Every rank must hold equally many."""
    rows: Tensor = x if world() == 1 else _Gather.apply(x)
    return rows


def places(x: Tensor) -> Tensor:
    """(N,) the numbers of this rank's rows among those of `gather`. x: (N, ...)."""
    return len(x) * rank() + torch.arange(len(x), device=x.device)


def broadcast(x: Tensor) -> Tensor:
    """Rank 0's tensor, in place."""
    if world() > 1:
        dist.broadcast(x, 0)
    return x


def agree(flag: bool, device: torch.device | str = "cpu") -> bool:
    """True when it is true on all ranks."""
    return not any_rank(int(not flag), device)


def any_rank(code: int, device: torch.device | str = "cpu") -> int:
    """The largest code over ranks."""
    if world() == 1:
        return code
    largest = torch.tensor(code, device=device)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return int(largest)


def barrier() -> None:
    if world() > 1:
        dist.barrier()
