"""Which images share BatchNorm statistics: those of all ranks, or those of one group.

One rank's batch is a fact of the machine, not of the method, so no statistics here are over
it: what a paper computes per GPU becomes groups of the global batch.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from selfsight import philox
from selfsight.distributed import all_sum, gather, rank, world
from selfsight.errors import ConfigError
from selfsight.philox import Purpose

__all__ = ["GroupedBatchNorm", "SynchronisedBatchNorm", "grouped", "shuffled", "synchronise"]


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


class GroupedBatchNorm(nn.Module):
    """BatchNorm within each of `groups` consecutive parts of the global batch.

    The running statistics follow the mean over the groups. Parameters and buffers have the
    names of the layer it replaces.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, layer: _BatchNorm, groups: int) -> None:
        super().__init__()
        self.eps, self.momentum, self.groups = layer.eps, layer.momentum or 0.1, groups
        self.weight, self.bias = layer.weight, layer.bias
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            self.register_buffer(name, getattr(layer, name))
        self.training = layer.training
        self.after = nn.Sequential(*layer.children())

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            y = F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
            return self.after(y)  # type: ignore[no-any-return]
        here = self.groups // world()
        if self.groups % world() or len(x) % here or len(x) < 2 * here:
            raise ConfigError(
                f"{len(x) * world()} images on {world()} ranks do not divide into {self.groups} "
                "BatchNorm groups of 2 or more; change --batch or --method.groups"
            )
        parts, means, variances = [], [], []
        for part in x.chunk(here):
            # With momentum 1 the layer leaves the group's own statistics in its buffers.
            mean, var = torch.zeros_like(self.running_mean), torch.ones_like(self.running_var)
            parts.append(F.batch_norm(part, mean, var, self.weight, self.bias, True, 1.0, self.eps))
            means.append(mean)
            variances.append(var)
        with torch.no_grad():
            self.num_batches_tracked += 1
            for running, own in ((self.running_mean, means), (self.running_var, variances)):
                running.lerp_(all_sum(torch.stack(own).sum(0)) / self.groups, self.momentum)
        return self.after(torch.cat(parts))  # type: ignore[no-any-return]


def synchronise(module: nn.Module) -> nn.Module:
    """Let every BatchNorm inside see the samples of all ranks, unless it has groups."""
    return module if world() == 1 else _replaced(module, SynchronisedBatchNorm)


def grouped(module: nn.Module, groups: int) -> nn.Module:
    """Let every BatchNorm inside see one group of the global batch at a time."""
    return module if groups == 1 else _replaced(module, lambda x: GroupedBatchNorm(x, groups))


def _replaced(module: nn.Module, layer: Callable[[_BatchNorm], nn.Module]) -> nn.Module:
    if isinstance(module, _BatchNorm):
        return layer(module)
    for name, child in module.named_children():
        setattr(module, name, _replaced(child, layer))
    return module


@torch.no_grad()
def shuffled(network: Callable[[Tensor], Tensor], x: Tensor, seed: int, step: int) -> Tensor:
    """network(x) with the global batch dealt to the groups in a new order.

    A network that sees two views of an image in the same group could tell the pair by the
    statistics that they share (MoCo, section 3.3).
    """
    n, first = len(x), rank() * len(x)
    order = torch.from_numpy(philox.permutation(seed, step, Purpose.SHUFFLE, n * world()))
    order = order.to(x.device)
    y = gather(network(gather(x)[order[first : first + n]]))
    return y[order.argsort()[first : first + n]]
