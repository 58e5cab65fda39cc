"""How well regions agree: mean IoU over classes, and DAVIS's region and boundary measures."""

import math

import numpy as np
from numpy.typing import NDArray

from selfsight.data.masks import IGNORED

__all__ = ["areas", "boundary", "boundary_f", "confusion", "ious", "region_j"]

Bools = NDArray[np.bool_]

# Of the diagonal: how far apart DAVIS's boundaries may lie and still match.
_TOLERANCE = 0.008


def confusion(
    target: NDArray[np.int16], answer: NDArray[np.int16], classes: int
) -> NDArray[np.int64]:
    """(classes, classes) pixels: row by row the true class, column by column the answer.

    target, answer: (H, W); pixels that the target ignores are not counted
    """
    known = target != IGNORED
    cell = target[known].astype(np.int64) * classes + answer[known]
    return np.bincount(cell, minlength=classes**2).reshape(classes, classes)


def areas(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """counts: (C, C) of `confusion`. (3, C) pixels of each class: in both, in the target, in the
    answer."""
    return np.stack([counts.diagonal(), counts.sum(axis=1), counts.sum(axis=0)])


def ious(sizes: NDArray[np.floating] | NDArray[np.int64]) -> NDArray[np.float64]:
    """sizes: (3, C) of `areas`, summed over images. (C,) intersection over union, nan for a
    class that neither occurs nor is answered."""
    both, target, answer = sizes.astype(np.float64)
    union = target + answer - both
    found = np.full(union.shape, np.nan)
    np.divide(both, union, out=found, where=union > 0)
    return found


def region_j(target: Bools, answer: Bools) -> float:
    """(H, W) each. Intersection over union; 1 if both are empty."""
    union = int((target | answer).sum())
    return int((target & answer).sum()) / union if union else 1.0


def boundary_f(target: Bools, answer: Bools, tolerance: float = _TOLERANCE) -> float:
    """(H, W) each. F of the boundaries: the harmonic mean of the shares of each that lie near
    the other; 1 if there are none.

    Perazzi et al. 2016, as the official code of DAVIS: "near" is within a disc whose radius is
    `tolerance` of the image's diagonal, rounded up.
    """
    radius = math.ceil(tolerance * math.hypot(*target.shape))
    of_target, of_answer = boundary(target), boundary(answer)
    n_target, n_answer = int(of_target.sum()), int(of_answer.sum())
    if n_target == 0 or n_answer == 0:
        return float(n_target == n_answer)
    precision = int((of_answer & _widened(of_target, radius)).sum()) / n_answer
    recall = int((of_target & _widened(of_answer, radius)).sum()) / n_target
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def boundary(region: Bools) -> Bools:
    """(H, W): pixels that differ from their neighbour to the right, below, or both."""
    padded = np.pad(region, ((0, 1), (0, 1)), mode="edge")
    right, below, both = padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    return (region ^ right) | (region ^ below) | (region ^ both)


def _widened(points: Bools, radius: int) -> Bools:
    """Pixels within a disc of that radius about a point."""
    height, width = points.shape
    # counts[:, x + radius] are points left of x, so a run of them is one difference.
    padded = np.pad(points, ((0, 0), (radius + 1, radius)))
    counts = padded.cumsum(axis=1, dtype=np.int32)
    near = np.zeros_like(points)
    for dy in range(min(radius, height - 1) + 1):
        reach = math.isqrt(radius**2 - dy**2)
        first, last = radius - reach, radius + reach + 1
        run = counts[:, last : last + width] > counts[:, first : first + width]
        near[dy:] |= run[: height - dy]
        near[: height - dy] |= run[dy:]
    return near
