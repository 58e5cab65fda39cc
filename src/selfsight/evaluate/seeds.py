"""One number of several trainings that differ in nothing but their seed."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from selfsight.evaluate.report import Score
from selfsight.evaluate.statistics import spread, student_interval

__all__ = ["over_seeds"]


def over_seeds(trained: Sequence[list[Score]]) -> list[Score]:
    """The scores of each training as their means, with intervals over the test images; then the
    first one's interval over the trainings. One training's scores stay as they are.

    trained: scores of fractions with draws, the same for each training, on the same test images
    """
    if len(trained) == 1:
        return trained[0]
    scores = [_mean(same) for same in zip(*trained, strict=True)]
    values = [one[0].value for one in trained]
    low, high = student_interval(values)
    details = {"interval": "Student's, over seeds", "values": values}
    over = replace(
        scores[0], low=max(0.0, low), high=min(1.0, high), n=len(values),
        metric=f"{scores[0].metric} over seeds", details=details, draws=None,
    )  # fmt: skip
    return [*scores, over]


def _mean(same: Sequence[Score]) -> Score:
    """One metric of all trainings; its details are those of the first, and the values."""
    draws = np.mean([score.draws for score in same if score.draws is not None], axis=0)
    low, high = spread(draws)
    details = dict(same[0].details)
    if details:
        details |= {"seeds": [score.value for score in same]}
    return replace(
        same[0], value=float(np.mean([score.value for score in same])), low=max(0.0, low),
        high=min(1.0, high), details=details, draws=draws,
    )  # fmt: skip
