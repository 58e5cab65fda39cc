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
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = [
    "SynchronisedBatchNorm",
    "agree",
    "all_sum",
    "any_rank",
    "barrier",
    "broadcast",
    "gather",
    "local",
    "process_group",
    "rank",
    "ranks_here",
    "synchronise",
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


class SynchronisedBatchNorm(nn.Module):
    """BatchNorm over the samples of all ranks. torch's own refuses CPU tensors.

    Parameters and buffers have the names of the layer it replaces.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, layer: _BatchNorm) -> None:
        super().__init__()
        self.eps, self.momentum = layer.eps, layer.momentum
        self.weight, self.bias = layer.weight, layer.bias
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            self.register_buffer(name, getattr(layer, name))
        self.training, self.tracks = layer.training, layer.running_mean is not None
        # timm's fused layers carry their drop-out and activation as children.
        self.after = nn.Sequential(*layer.children())

    def forward(self, x: Tensor) -> Tensor:
        if self.training or not self.tracks:
            mean, var = self._statistics(x)
        else:
            mean, var = self.running_mean, self.running_var
        shape = (1, -1) + (1,) * (x.ndim - 2)
        weight = torch.ones_like(mean) if self.weight is None else self.weight
        bias = torch.zeros_like(mean) if self.bias is None else self.bias
        scale = weight * torch.rsqrt(var + self.eps)
        y = x * scale.view(shape) + (bias - mean * scale).view(shape)
        return self.after(y.to(x.dtype))  # type: ignore[no-any-return]

    def _statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        rows = x.transpose(0, 1).flatten(1)
        rows = rows if rows.dtype == torch.float64 else rows.float()
        # An evaluation may run on one rank alone.
        total = all_sum if self.training else torch.clone
        count = total(torch.tensor(float(rows.shape[1]), device=x.device, dtype=rows.dtype))
        mean = total(rows.sum(1)) / count
        var = total((rows - mean[:, None]).square().sum(1)) / count
        if self.tracks:
            self._follow(mean, var, count)
        return mean, var

    @torch.no_grad()
    def _follow(self, mean: Tensor, var: Tensor, count: Tensor) -> None:
        self.num_batches_tracked += 1
        unbiased = var * count / (count - 1)
        momentum = self.momentum
        if momentum is None:  # asks for a plain average over all batches
            momentum = 1 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), momentum)


def synchronise(module: nn.Module) -> nn.Module:
    """Let every BatchNorm inside see the samples of all ranks."""
    if world() == 1:
        return module
    if isinstance(module, _BatchNorm):
        return SynchronisedBatchNorm(module)
    for name, child in module.named_children():
        setattr(module, name, synchronise(child))
    return module
