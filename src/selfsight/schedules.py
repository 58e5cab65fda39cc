"""Schedules: pure functions of progress in [0, 1]."""

import math
from collections.abc import Sequence

__all__ = ["by_epoch", "cosine", "linear", "steps", "warmup_cosine"]


def linear(start: float, end: float, progress: float) -> float:
    return start + (end - start) * progress


def by_epoch(start: float, end: float, epochs: int, epoch: int) -> float:
    """From start to end in `epochs` epochs, both included; then the end."""
    return linear(start, end, epoch / max(1, epochs - 1)) if epoch < epochs else end


def cosine(start: float, end: float, progress: float) -> float:
    """Half a cosine from start to end; 1 − (1 − m₀)(1 + cos πk/K)/2 is cosine(m₀, 1, k/K)."""
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def steps(progress: float, drops: Sequence[float], factor: float = 0.1) -> float:
    """Factor on the base rate: `factor` for each of `drops` that has been passed."""
    return factor ** sum(progress >= drop for drop in drops)


def warmup_cosine(
    step: int, total: int, warmup: int, *, first: float = 0.0, last: float = 0.0
) -> float:
    """Factor on the base rate: from `first` to 1 over `warmup` steps, then to `last`.

    1 is reached at step == warmup and `last` just after the run's end, as in the official
    Barlow Twins, VICReg, MoCo v3, MAE and BYOL code.
    """
    if step < warmup:
        return linear(first, 1.0, step / warmup)
    return cosine(1.0, last, (step - warmup) / max(1, total - warmup))
