"""Augmented views: a table of numbers is drawn for a batch, then rendered."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from selfsight.errors import ConfigError
from selfsight.machine import cores
from selfsight.views import cpu
from selfsight.views.executor import render
from selfsight.views.reference import Images, sizes
from selfsight.views.sample import sample
from selfsight.views.spec import View

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "View", "apply", "expand", "render"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def apply(
    images: Images,
    views: View | Sequence[View],
    *,
    seed: int = 0,
    position: int = 0,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    threads: int | None = None,
) -> list[Tensor]:
    """One (N, 3, size, size) tensor per crop, for a training loop of one's own.

    images: uint8 (H, W, 3) arrays of any sizes, or one (N, H, W, 3) array or tensor
    views: what `expand` accepts
    position: the step; the same seed, step and slot in the batch give the same pixels
    device: by default where the images are
    dtype: float32 or bfloat16
    threads: of the CPU, by default one per core
    """
    extents = sizes(images)
    if threads is not None and threads < 1:
        raise ConfigError(f"views need threads ≥ 1, got {threads}")
    if len(mean) != 3 or len(std) != 3 or not min(std) > 0:
        raise ConfigError(f"views need three means and three deviations > 0, got {mean} and {std}")
    if device is None:
        device = images.device if isinstance(images, torch.Tensor) else "cpu"
    slots = position * len(extents) + np.arange(len(extents), dtype=np.int64)
    crops = expand(views)
    if not crops:
        raise ConfigError("no view to make; give one View or several")
    if torch.device(device).type != "cpu":
        return [
            render(
                images,
                sample(view, extents, seed=seed, position=slots, index=index),
                view,
                mean=mean,
                std=std,
                device=device,
                dtype=dtype,
            )
            for index, view in enumerate(crops)
        ]
    out = [cpu.empty(len(extents), view, dtype) for view in crops]

    def task(part: slice) -> None:
        for index, (view, pixels) in enumerate(zip(crops, out, strict=True)):
            table = sample(view, extents[part], seed=seed, position=slots[part], index=index)
            cpu.paint(images[part], table, view, mean=mean, std=std, out=pixels[part])

    cpu.in_parts(task, len(extents), sum(view.size**2 for view in crops), threads or cores())
    return out


def expand(views: View | Sequence[View]) -> list[View]:
    """One view per crop: `count` copies of each, whose own count is 1."""
    views = [views] if isinstance(views, View) else views
    return [replace(view, count=1) for view in views for _ in range(view.count)]
