"""Augmented views: a table of numbers is drawn for a batch, then rendered."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from selfsight.views import reference
from selfsight.views.reference import Images
from selfsight.views.sample import sample
from selfsight.views.spec import View

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "View", "apply", "expand"]

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
    device: torch.device | str = "cpu",
) -> list[Tensor]:
    """One (N, 3, size, size) tensor per crop, for a training loop of one's own.

    images: uint8 (H, W, 3) arrays of any sizes, or one (N, H, W, 3) array or tensor
    views: what `expand` accepts
    position: the step; the same seed, step and slot in the batch give the same pixels
    """
    sizes = reference.sizes(images)
    slots = position * len(sizes) + np.arange(len(sizes), dtype=np.int64)
    return [
        reference.render(
            images,
            sample(view, sizes, seed=seed, position=slots, index=index),
            view,
            mean=mean,
            std=std,
            device=device,
        )
        for index, view in enumerate(expand(views))
    ]


def expand(views: View | Sequence[View]) -> list[View]:
    """One view per crop: `count` copies of each, whose own count is 1."""
    views = [views] if isinstance(views, View) else views
    return [replace(view, count=1) for view in views for _ in range(view.count)]
