"""A view's table rendered by whichever executor serves the device."""

from collections.abc import Sequence

import torch
from torch import Tensor

from selfsight.views import cpu, reference
from selfsight.views.reference import Images
from selfsight.views.sample import Table
from selfsight.views.spec import View

__all__ = ["render"]


def render(
    images: Images,
    table: Table,
    view: View,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    threads: int = 1,
) -> Tensor:
    """(N, 3, size, size) in channels_last order: row i of the table on image i.

    threads: of the CPU; the pixels do not depend on it
    """
    kind = torch.device(device).type
    if kind == "cpu":
        return cpu.render(images, table, view, mean=mean, std=std, dtype=dtype, threads=threads)
    if kind == "cuda":
        try:
            from selfsight.views import cuda
        except ImportError:  # a build of torch without Triton
            pass
        else:
            return cuda.render(images, table, view, mean=mean, std=std, dtype=dtype, device=device)
    return reference.render(images, table, view, mean=mean, std=std, device=device).to(dtype)
