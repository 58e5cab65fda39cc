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


class _Replacement(nn.Module):
    """Parameters and buffers under the names of the layer that it replaces."""

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

    @torch.no_grad()
    def follow(self, mean: Tensor, var: Tensor) -> None:
        """Move the running statistics; var is unbiased."""
        if not self.tracks:
            return
        self.num_batches_tracked += 1
        momentum = self.momentum
        if momentum is None:  # asks for a plain average over all batches
            momentum = 1 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_(var.to(self.running_var.dtype), momentum)


class SynchronisedBatchNorm(_Replacement):
    """BatchNorm over the samples of all ranks. torch's own refuses CPU tensors."""

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
        self.follow(mean.detach(), (var * count / (count - 1)).detach())
        return mean, var


class GroupedBatchNorm(_Replacement):
    """BatchNorm within each of `groups` consecutive parts of the global batch.

    The running statistics follow the mean over the groups.
    """

    def __init__(self, layer: _BatchNorm, groups: int) -> None:
        super().__init__(layer)
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        if not self.training and self.tracks:
            y = F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
            return self.after(y)  # type: ignore[no-any-return]
        here = self._here(len(x))
        parts, means, variances = [], [], []
        for part in x.chunk(here):
            # With momentum 1 the layer leaves the group's own statistics in its buffers.
            mean = torch.zeros(
                x.shape[1], device=x.device, dtype=torch.promote_types(x.dtype, torch.float32)
            )
            var = torch.ones_like(mean)
            parts.append(F.batch_norm(part, mean, var, self.weight, self.bias, True, 1.0, self.eps))
            means.append(mean)
            variances.append(var)
        mean, var = (all_sum(torch.stack(own).sum(0)) / self.groups for own in (means, variances))
        self.follow(mean, var)
        return self.after(torch.cat(parts))  # type: ignore[no-any-return]

    def _here(self, n: int) -> int:
        """How many groups are this rank's."""
        if self.groups % world():
            raise ConfigError(
                f"{self.groups} BatchNorm groups do not divide among {world()} ranks; make "
                f"--method.norm_groups a multiple of {world()}"
            )
        here = self.groups // world()
        if n % here or n < 2 * here:
            raise ConfigError(
                f"{n * world()} images, the batch or a part of it, do not divide into "
                f"{self.groups} BatchNorm groups of 2 or more; change --batch, --accumulate or "
                "--method.norm_groups"
            )
        return here


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
