"""How sure an accuracy is, and the difference of two on the same images.

Both intervals are closed forms, so nothing is drawn. Resampling test images would, for a
mean of zeros and ones, only repeat the binomial distribution about the estimate: it gives
[100%, 100%] for 20 right answers of 20. Wilson's interval keeps its level there, and
Newcombe's does for differences.
"""

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from selfsight.errors import ConfigError, DataError

__all__ = ["Difference", "interval", "paired"]


@dataclass(frozen=True)
class Difference:
    """Accuracy of a minus accuracy of b on the same n images, and its interval."""

    value: float
    low: float
    high: float
    n: int

    @property
    def significant(self) -> bool:
        """The interval leaves out zero."""
        return self.low > 0 or self.high < 0


def interval(correct: ArrayLike, level: float = 0.95) -> tuple[float, float]:
    """correct: (N,) right or wrong. Wilson's score interval of the accuracy.

    Wilson 1927; recommended for its coverage by Brown, Cai and DasGupta 2001.
    """
    right = _verdicts(correct)
    return _wilson(int(right.sum()), len(right), _quantile(level))


def paired(correct_a: ArrayLike, correct_b: ArrayLike, level: float = 0.95) -> Difference:
    """correct_a, correct_b: (N,), the same images in the same order.

    Newcombe 1998, "Improved confidence intervals for the difference between binomial
    proportions based on paired data", method 10: Wilson's intervals joined by the
    correlation of the answers.
    """
    a, b = _verdicts(correct_a), _verdicts(correct_b)
    if len(a) != len(b):
        raise DataError(f"a paired comparison needs the same images, got {len(a)} and {len(b)}")
    n, z = len(a), _quantile(level)
    k, m = int(a.sum()), int(b.sum())
    p, q = k / n, m / n
    (p_low, p_high), (q_low, q_high) = _wilson(k, n, z), _wilson(m, n, z)
    both = int((a & b).sum())
    neither = n - k - m + both
    excess: float = both * neither - (k - both) * (m - both)
    if excess > 0:
        excess = max(excess - n / 2, 0)
    scale = (k * (n - k) * m * (n - m)) ** 0.5
    phi = excess / scale if scale else 0.0
    low = (p - p_low) ** 2 - 2 * phi * (p - p_low) * (q_high - q) + (q_high - q) ** 2
    high = (p_high - p) ** 2 - 2 * phi * (p_high - p) * (q - q_low) + (q - q_low) ** 2
    value = (k - m) / n
    return Difference(value, value - max(low, 0) ** 0.5, value + max(high, 0) ** 0.5, n)


def _verdicts(correct: ArrayLike) -> NDArray[np.bool_]:
    right = np.asarray(correct)
    if right.ndim != 1 or len(right) == 0:
        raise DataError(f"an interval needs a list of right or wrong, got shape {right.shape}")
    return right.astype(bool)


def _quantile(level: float) -> float:
    if not 0 < level < 1:
        raise ConfigError(f"level is between 0 and 1, got {level}; 0.95 is usual")
    return NormalDist().inv_cdf((1 + level) / 2)


def _wilson(k: int, n: int, z: float) -> tuple[float, float]:
    middle = (k + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * (k * (n - k) / n + z * z / 4) ** 0.5
    # The ends are exact there; rounding would miss them by 1e-17.
    return (0.0 if k == 0 else middle - half), (1.0 if k == n else middle + half)
