"""How sure a number is, and the difference of two on the same images.

Accuracies have closed forms, so nothing is drawn for them. Resampling test images would,
for a mean of zeros and ones, only repeat the binomial distribution about the estimate: it
gives [100%, 100%] for 20 right answers of 20. Wilson's interval keeps its level there, and
Newcombe's does for differences. The mean of other numbers has Student's interval, and what
is no mean (mAP, mIoU, mutual information) is counted again on resampled images.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from selfsight import philox
from selfsight.errors import ConfigError, DataError
from selfsight.philox import Purpose

__all__ = [
    "Difference",
    "around",
    "bootstrap",
    "drawn_p_value",
    "holm",
    "interval",
    "mean_interval",
    "p_value",
    "paired",
    "spread",
    "student",
    "student_interval",
    "welch",
]


@dataclass(frozen=True)
class Difference:
    """The number of a minus that of b, and its interval; n: images, or what else was counted."""

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


def bootstrap(
    statistic: Callable[[NDArray[np.int64]], float], n: int, draws: int = 1000, seed: int = 0
) -> NDArray[np.float64]:
    """(draws,) values of `statistic` on n test images resampled with replacement.

    statistic: takes (n,) numbers of test images, of which some repeat; nan where it has no
        value on them
    seed: the resamples depend on it and n alone, so that two encoders are paired

    One image cannot be resampled: all values are nan.
    """
    if n < 1 or draws < 1:
        raise DataError(f"nothing to resample: {n} images, {draws} draws")
    if n == 1:
        return np.full(draws, np.nan)
    # Of 32 bits n < 2³² makes numbers below n; none is more than n/2³² likelier than another.
    return np.array(
        [
            statistic((philox.integers(seed, draw, Purpose.BOOTSTRAP, n) * n) >> 32)
            for draw in range(draws)
        ],
        np.float64,
    )


def around(value: float, draws: NDArray[np.float64]) -> tuple[float, float, NDArray[np.float64]]:
    """The interval of a value, and the draws (B,) of `bootstrap` moved so that their mean is the
    value.

    An image that is drawn twice agrees with itself, which flatters rankings and partitions; what
    the draws tell is the width.
    """
    known = ~np.isnan(draws)
    if known.any():
        draws = draws + (value - draws[known].mean())
    return *spread(draws), draws


def spread(draws: ArrayLike, level: float = 0.95) -> tuple[float, float]:
    """draws: (B,) of `bootstrap`. The percentile interval; all numbers if there is no value.

    Efron 1979. Draws without a value (nan) are left out.
    """
    values = np.asarray(draws, np.float64)
    values = values[~np.isnan(values)]
    tail = (1 - _level(level)) / 2
    if len(values) == 0:
        return -math.inf, math.inf
    low, high = np.quantile(values, (tail, 1 - tail))
    return float(low), float(high)


def mean_interval(each: ArrayLike, level: float = 0.95) -> tuple[float, float]:
    """each: (N,) finite numbers, one for each test image. An interval of their mean: Wilson's
    where all are 0 or 1, else Student's."""
    values = np.asarray(each, np.float64)
    if values.ndim == 1 and len(values) > 1 and np.isin(values, (0, 1)).all():
        return interval(values, level)
    return student_interval(values, level)


def student_interval(values: ArrayLike, level: float = 0.95) -> tuple[float, float]:
    """values: (N,) finite numbers. Student's interval of their mean.

    One number, or equal ones, say nothing of how far others may lie: all numbers.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or len(values) == 0 or not np.isfinite(values).all():
        raise DataError(f"a mean needs a list of finite numbers, got shape {values.shape}")
    _level(level)
    n = len(values)
    if (values == values[0]).all():
        return -math.inf, math.inf
    half = student(n - 1, level) * float(values.std(ddof=1)) / n**0.5
    middle = float(values.mean())
    return middle - half, middle + half


def welch(a: ArrayLike, b: ArrayLike, level: float = 0.95) -> Difference:
    """a: (N,), b: (M,) numbers of independent runs. The difference of their means.

    Welch 1947: neither as many runs nor as wide a spread on both sides is asked for.
    """
    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if min(len(x), len(y)) < 1:
        raise DataError("a difference of means needs numbers on both sides")
    _level(level)
    value, n = float(x.mean() - y.mean()), len(x) + len(y)
    if min(len(x), len(y)) < 2 or (np.ptp(x) == 0 and np.ptp(y) == 0):
        return Difference(value, -math.inf, math.inf, n)
    u, v = float(x.var(ddof=1)) / len(x), float(y.var(ddof=1)) / len(y)
    freedom = (u + v) ** 2 / (u**2 / (len(x) - 1) + v**2 / (len(y) - 1))
    half = student(freedom, level) * (u + v) ** 0.5
    return Difference(value, value - half, value + half, n)


def p_value(apart: Callable[[float], bool]) -> float:
    """The smallest 1 - level whose interval holds zero; apart: whether that of a level does
    not."""
    low, high = 0.0, 1 - 1e-12
    if not apart(high):
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if apart(middle) else (low, middle)
    return 1 - high


def drawn_p_value(draws: ArrayLike, n: int) -> float:
    """draws: (B,) of a difference on n resampled images. Twice the share of draws beyond zero.

    The draws themselves tell nothing below 2 / (B + 1), which Holm's adjustment of 26 pairs and
    of 1,000 draws raises above 0.05 however large the difference is. So where no draw reaches
    zero, the distance from zero in deviations of the draws is looked up in Student's law of
    n - 1 degrees of freedom, which for a mean is the t test.
    """
    values = np.asarray(draws, np.float64)
    values = values[~np.isnan(values)]
    beyond = min((values <= 0).sum(), (values >= 0).sum())
    p = min(1.0, 2 * float(beyond + 1) / (len(values) + 1))
    if beyond or n < 2 or len(values) < 2:
        return p
    # Resampling divides the variance of the images by n, of which n - 1 are free.
    distance = abs(float(values.mean()))
    deviation = float(values.std()) * (n / (n - 1)) ** 0.5
    # Draws that are all equal, up to rounding, have no deviation to go by.
    return p if deviation < 1e-9 * distance else min(p, 1 - _within(distance / deviation, n - 1))


def holm(p: Sequence[float]) -> list[float]:
    """The p values of several comparisons, raised so that all that stay below a limit are
    right together with at least the certainty of one. Holm 1979."""
    raised, before = [0.0] * len(p), 0.0
    for rank, place in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        before = max(before, min(1.0, (len(p) - rank) * p[place]))
        raised[place] = before
    return raised


@functools.lru_cache
def student(freedom: float, level: float = 0.95) -> float:
    """t such that Student's law of `freedom` ≥ 1 degrees has `level` of its mass in [-t, t]."""
    low, high = 0.0, 1.0
    _level(level)
    while _within(high, freedom) < level:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if _within(middle, freedom) >= level else (middle, high)
    return (low + high) / 2


def _within(t: float, freedom: float) -> float:
    """The mass of Student's law in [-t, t]: the incomplete beta function at t² / (ν + t²)."""
    x = t * t / (freedom + t * t)
    a, b = 0.5, freedom / 2
    if x * (a + b + 2) < a + 1:
        return _beta(x, a, b)
    return 1 - _beta(freedom / (freedom + t * t), b, a)


def _beta(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function I_x(a, b) for x < (a + 1) / (a + b + 2), by its
    continued fraction from the back (NIST Handbook of Mathematical Functions, 8.17.22)."""
    if x <= 0:
        return 0.0
    fraction = 1.0
    for m in range(30 + 2 * math.isqrt(int(a + b)), 0, -1):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m - 1) * (a + b + m - 1) * x / ((a + 2 * m - 2) * (a + 2 * m - 1))
        fraction = 1 + odd / (1 + even / fraction)
    scale = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    return math.exp(scale + a * math.log(x) + b * math.log1p(-x)) / (a * fraction)


def _verdicts(correct: ArrayLike) -> NDArray[np.bool_]:
    right = np.asarray(correct)
    if right.ndim != 1 or len(right) == 0:
        raise DataError(f"an interval needs a list of right or wrong, got shape {right.shape}")
    return right.astype(bool)


def _quantile(level: float) -> float:
    return NormalDist().inv_cdf((1 + _level(level)) / 2)


def _level(level: float) -> float:
    if not 0 < level < 1:
        raise ConfigError(f"level is between 0 and 1, got {level}; 0.95 is usual")
    return level


def _wilson(k: int, n: int, z: float) -> tuple[float, float]:
    middle = (k + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * (k * (n - k) / n + z * z / 4) ** 0.5
    # The ends are exact there; rounding would miss them by 1e-17.
    return (0.0 if k == 0 else middle - half), (1.0 if k == n else middle + half)
