"""Many draws, and how far two samples may be apart by chance."""

import math

import numpy as np

from selfsight.views.sample import Table, sample
from selfsight.views.spec import View

OURS, THEIRS = 20_000, 4_000
# Kolmogorov and Smirnov's two-sample bound at about one false alarm in a thousand.
BOUND = 1.95 * math.sqrt(1 / OURS + 1 / THEIRS)


def draw(view: View, height: int = 48, width: int = 64, n: int = OURS, **address: int) -> Table:
    seed, index = address.get("seed", 0), address.get("index", 0)
    return sample(
        view, np.full((n, 2), (height, width)), seed=seed, position=np.arange(n), index=index
    )


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """The largest gap between two empirical distribution functions."""
    at = np.union1d(a, b)
    below = [np.searchsorted(np.sort(x), at, side="right") / len(x) for x in (a, b)]
    return float(np.abs(below[0] - below[1]).max())
