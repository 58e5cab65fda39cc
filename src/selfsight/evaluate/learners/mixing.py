"""Mixed images with mixed labels, and images of which a part is erased; a pure function of the
step, as everything drawn."""

import numpy as np
import torch
from torch import Tensor

from selfsight import philox
from selfsight.philox import Purpose

__all__ = ["cut", "erased", "mix", "mixed", "smooth"]

# Zhong et al. 2020, https://arxiv.org/abs/1708.04896, as timm draws it: shares of the area, and
# height / width.
_AREA, _RATIO = (0.02, 1 / 3), (0.3, 1 / 0.3)


def smooth(label: Tensor, classes: int, smoothing: float = 0.0) -> Tensor:
    """label: (N,) class numbers. (N, classes) targets that sum to 1, a part `smoothing` of which
    is spread over all classes."""
    rest = smoothing / classes
    target = torch.full((len(label), classes), rest, device=label.device)
    return target.scatter_(1, label[:, None], 1 - smoothing + rest)


def mixed(
    x: Tensor, target: Tensor, *, mixup: float, cutmix: float, seed: int, step: int
) -> tuple[Tensor, Tensor]:
    """Images (N, 3, H, W) and targets (N, classes), each mixed with those of the batch read
    backwards, all by one share, as timm does by batch.

    mixup: α of the law Beta(α, α) from which that share is drawn; 0 for none
    cutmix: the same; with both, each batch takes one of them at even odds
    """
    if not (mixup or cutmix):
        return x, target
    draw = np.random.default_rng(philox.seed_for(seed, step, Purpose.MIX))
    chosen, down, right = draw.random(3).tolist()
    cutting = cutmix > 0 and (mixup == 0 or chosen < 0.5)
    alpha = cutmix if cutting else mixup
    share = float(draw.beta(alpha, alpha))
    return cut(x, target, share, (down, right)) if cutting else mix(x, target, share)


def mix(x: Tensor, target: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """`share` of each image and the rest of its partner. Zhang et al. 2018,
    https://arxiv.org/abs/1710.09412"""
    return share * x + (1 - share) * x.flip(0), share * target + (1 - share) * target.flip(0)


def cut(
    x: Tensor, target: Tensor, share: float, centre: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """A box of the partner in each image, 1 − share of it where no edge cuts the box off; the
    targets go by the area that remains. Yun et al. 2019, https://arxiv.org/abs/1905.04899

    centre: of the box, down and to the right, in [0, 1)
    """
    ranges = []
    for side, place in zip(x.shape[2:], centre, strict=True):
        length = int(side * (1 - share) ** 0.5)
        start = int(side * place) - length // 2
        ranges.append(slice(max(start, 0), min(start + length, side)))
    rows, columns = ranges
    area = (rows.stop - rows.start) * (columns.stop - columns.start)
    share = 1 - area / (x.shape[2] * x.shape[3])
    y = x.clone()
    y[:, :, rows, columns] = x.flip(0)[:, :, rows, columns]
    return y, share * target + (1 - share) * target.flip(0)


def erased(x: Tensor, position: Tensor, probability: float, seed: int) -> Tensor:
    """Images (N, 3, H, W) with a box of some set to 0, the mean colour.

    position: (N,), where the draws of each sample are
    """
    if not probability:
        return x
    height, width = x.shape[2:]
    draw = philox.uniform(seed, position, Purpose.MIX, 5, view=1)
    area = height * width * (_AREA[0] + (_AREA[1] - _AREA[0]) * draw[:, 1])
    low, high = np.log(_RATIO)
    ratio = (low + (high - low) * draw[:, 2]).exp()
    rows = _stretch(height, (area * ratio).sqrt(), draw[:, 3])
    columns = _stretch(width, (area / ratio).sqrt(), draw[:, 4])
    taken = (draw[:, 0] < probability)[:, None, None]
    return x.masked_fill((taken & rows[:, :, None] & columns[:, None])[:, None], 0.0)


def _stretch(side: int, length: Tensor, place: Tensor) -> Tensor:
    """(N, side), true on `length` neighbours; place: in [0, 1), from the first to the last."""
    length = length.round().clamp(max=side)
    start = (place * (side - length + 1)).floor()
    at = torch.arange(side, device=length.device)
    return (at >= start[:, None]) & (at < (start + length)[:, None])
