"""What an evaluation says: scores with their intervals, as a table or as JSON."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from selfsight import __version__
from selfsight.errors import ConfigError
from selfsight.evaluate.statistics import around, bootstrap, interval, mean_interval

__all__ = ["Judged", "Report", "Score", "shown", "within"]

# Metrics that are no fractions, and how they are written.
_NUMBERS = {"RMSE": ",.4g", "images/s": ",.1f"}


@dataclass(frozen=True)
class Score:
    """One number on the test images; `mean` and `resampled` know its interval.

    name: to show, with the settings that matter
    protocol: what `evaluate` was asked for
    value, low, high: the interval is of 95%
    n: test images, or what else was counted
    metric: of what the value is; fractions are shown in percent
    details: what else was found, for JSON
    each: (n,) what each test image adds to the mean that `value` is, right or wrong for
        accuracies
    draws: (B,) where `value` is no mean, its values on resampled test images; those of two
        encoders on the same images are resampled alike, so that their differences are paired
    options: those of the protocol, which `evaluate` tells
    images: stands for the training and test images and their labels; empty if not known
    """

    name: str
    protocol: str
    value: float
    low: float
    high: float
    n: int
    metric: str = "accuracy"
    details: dict[str, Any] = field(default_factory=dict)
    each: np.ndarray | None = field(default=None, repr=False, compare=False)
    draws: np.ndarray | None = field(default=None, repr=False, compare=False)
    options: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)
    images: str = field(default="", repr=False, compare=False)

    @classmethod
    def mean(
        cls,
        name: str,
        protocol: str,
        each: NDArray[Any],
        metric: str = "accuracy",
        details: Mapping[str, Any] | None = None,
        *,
        most: float = 1.0,
    ) -> Self:
        """The mean of what each test image adds, which lies between 0 and `most`.

        each: (N,) right or wrong, which have Wilson's interval; or numbers, which have Student's
        """
        span = interval(each) if each.dtype == bool else mean_interval(each)
        low, high = within(span, 0.0, most)
        return cls(
            name, protocol, float(each.mean()), low, high, len(each), metric, dict(details or {}),
            each=each,
        )  # fmt: skip

    @classmethod
    def resampled(
        cls,
        name: str,
        protocol: str,
        statistic: Callable[[NDArray[np.int64]], float],
        n: int,
        metric: str,
        details: Mapping[str, Any] | None = None,
        *,
        least: float = 0.0,
        seed: int = 0,
    ) -> Self:
        """What is no mean: it is counted again on n test images resampled with replacement.

        statistic: takes (n,) numbers of test images, all of them for the value; see `bootstrap`
        least: the value lies between it and 1
        """
        value = statistic(np.arange(n))
        draws = bootstrap(statistic, n, seed=seed)
        *span, draws = around(value, draws)
        low, high = within(span, least, 1.0)
        return cls(name, protocol, value, low, high, n, metric, dict(details or {}), draws=draws)

    def shown(self) -> tuple[str, str]:
        """The value and its interval."""
        return shown(self.metric, self.value, self.low, self.high)

    def json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "protocol": self.protocol,
            "metric": self.metric,
            "value": self.value,
            "low": self.low,
            "high": self.high,
            "n": self.n,
            "options": dict(self.options),
            "details": dict(self.details),
        }


def within(span: Iterable[float], least: float, most: float) -> tuple[float, float]:
    """The interval as far as values go; an unknown one stays so."""
    low, high = span
    if math.isinf(low) and math.isinf(high):
        return low, high
    return max(low, least), min(high, most)


def shown(
    metric: str, value: float, low: float, high: float, *, signed: bool = False
) -> tuple[str, str]:
    """A number and its interval, fractions in percent; signed for differences."""
    sign = "+" * signed
    plain = _NUMBERS.get(metric)
    scale, form, unit = (1, sign + plain, "") if plain else (100, f"{sign}.1f", "%")
    ends = [format(scale * end, form) for end in (low, high)]
    span = f"[{ends[0]}, {ends[1]}]" if math.isfinite(low) and math.isfinite(high) else "unknown"
    return f"{format(scale * value, form)}{unit}", span


@dataclass(frozen=True)
class Judged:
    """Which encoder was judged, and how; None and empty where it is not known, or no encoder.

    size: side of the images that it saw
    weights: stands for its weights and what its images are normalised by
    version: of selfsight
    """

    size: int | None = None
    precision: str = ""
    weights: str = ""
    version: str = __version__


@dataclass(frozen=True)
class Report:
    """Scores in the order in which they were asked for."""

    scores: tuple[Score, ...]
    judged: Judged

    def __init__(self, scores: Iterable[Score], judged: Judged | None = None) -> None:
        object.__setattr__(self, "scores", tuple(scores))
        object.__setattr__(self, "judged", judged or Judged())

    def table(self) -> list[tuple[str, str, str, str, str]]:
        """Rows of (name, metric, value, interval, n), ready to show."""
        return [
            (score.name, score.metric, *score.shown(), f"n={score.n:,}") for score in self.scores
        ]

    def json(self) -> dict[str, Any]:
        return {"level": 0.95, "scores": [score.json() for score in self.scores]}

    def __getitem__(self, protocol: str) -> Score:
        """The score that counts of this protocol."""
        for score in self.scores:
            if score.protocol == protocol:
                return score
        there = ", ".join(dict.fromkeys(score.protocol for score in self.scores)) or "none"
        raise ConfigError(f"the report has no {protocol}; it has: {there}")

    def __str__(self) -> str:
        rows = self.table()
        widths = [max((len(row[i]) for row in rows), default=0) for i in range(5)]
        return "\n".join(
            f"{name:<{widths[0]}}  {metric:<{widths[1]}}  {value:>{widths[2]}}  "
            f"{span:<{widths[3]}}  {n:>{widths[4]}}"
            for name, metric, value, span, n in rows
        )
