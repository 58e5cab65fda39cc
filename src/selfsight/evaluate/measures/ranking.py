"""How well scores put what is there before what is not: average precision."""

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Points", "Ranking"]

Points = Literal["all", "11"]


class Ranking:
    """Images by falling score, sorted once; equal scores share a place, so that their order
    in the data says nothing."""

    def __init__(self, scores: ArrayLike, truth: ArrayLike) -> None:
        """scores: (N,); truth: (N,) whether it is there."""
        scores = np.asarray(scores)
        self._order = np.argsort(-scores, kind="stable")
        ordered = scores[self._order]
        self._ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))
        self._truth = np.asarray(truth, np.float64)[self._order]

    def average_precision(
        self, times: NDArray[np.integer] | None = None, points: Points = "all"
    ) -> float:
        """Area under precision over recall; nan where there is nothing to find.

        Precision at a recall is the best at that recall or any higher one, as in Pascal VOC.

        times: (N,) how often each image counts; none means once
        points: the area itself, as VOC has it since 2010, or the mean at recalls 0, 0.1, …, 1
            as until 2009
        """
        weight = np.ones(len(self._order)) if times is None else times[self._order].astype(float)
        found = np.cumsum(weight * self._truth)[self._ends]
        taken = np.cumsum(weight)[self._ends]
        if found[-1] == 0:
            return float("nan")
        precision = np.divide(found, taken, out=np.zeros_like(taken), where=taken > 0)
        best = np.maximum.accumulate(precision[::-1])[::-1]
        if points == "11":
            # In whole numbers: 3 of 10 found is a recall of 0.3, which no float is.
            at = np.searchsorted(10 * found, np.arange(11) * found[-1])
            return float(best[at].mean())
        return float((np.diff(found, prepend=0.0) * best).sum() / found[-1])
