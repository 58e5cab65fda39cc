"""What an evaluation says: scores with their intervals, as a table or as JSON."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

__all__ = ["Report", "Score"]


@dataclass(frozen=True)
class Score:
    """One protocol's accuracy on the test images.

    name: to show, with the settings that matter
    protocol: what `evaluate` was asked for
    accuracy, low, high: fractions; the interval is of 95%
    n: test images
    details: settings and findings, for JSON
    correct: (n,) right or wrong, for paired comparisons
    """

    name: str
    protocol: str
    accuracy: float
    low: float
    high: float
    n: int
    details: dict[str, Any] = field(default_factory=dict)
    correct: np.ndarray | None = field(default=None, repr=False, compare=False)

    def json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "protocol": self.protocol,
            "accuracy": self.accuracy,
            "low": self.low,
            "high": self.high,
            "n": self.n,
            "details": dict(self.details),
        }


@dataclass(frozen=True)
class Report:
    """Scores in the order in which they were asked for."""

    scores: tuple[Score, ...]

    def __init__(self, scores: Iterable[Score]) -> None:
        object.__setattr__(self, "scores", tuple(scores))

    def table(self) -> list[tuple[str, str, str, str]]:
        """Rows of (name, accuracy, interval, n), ready to show."""
        return [
            (
                score.name,
                f"{100 * score.accuracy:.1f}%",
                f"[{100 * score.low:.1f}, {100 * score.high:.1f}]",
                f"n={score.n:,}",
            )
            for score in self.scores
        ]

    def json(self) -> dict[str, Any]:
        return {"level": 0.95, "scores": [score.json() for score in self.scores]}

    def __getitem__(self, protocol: str) -> Score:
        return next(score for score in self.scores if score.protocol == protocol)

    def __str__(self) -> str:
        rows = self.table()
        widths = [max((len(row[i]) for row in rows), default=0) for i in range(4)]
        return "\n".join(
            f"{name:<{widths[0]}}  {accuracy:>{widths[1]}}  {span:<{widths[2]}}  {n:>{widths[3]}}"
            for name, accuracy, span, n in rows
        )
