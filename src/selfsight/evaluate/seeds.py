"""One number of several trainings that differ in nothing but their seed."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from selfsight.evaluate.report import Score, within
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
    low, high = within(student_interval(values), 0.0, 1.0)
    details = {"interval": "Student's, over seeds", "values": values}
    over = replace(
        scores[0], low=low, high=high, n=len(values),
        metric=f"{scores[0].metric} over seeds", details=details, draws=None,
    )  # fmt: skip
    return [*scores, over]


def _mean(same: Sequence[Score]) -> Score:
    """One metric of all trainings, each of which keeps its own details."""
    draws = np.mean([score.draws for score in same if score.draws is not None], axis=0)
    low, high = within(spread(draws), 0.0, 1.0)
    value = float(np.mean([score.value for score in same]))
    details = {"seeds": [{"value": score.value, **score.details} for score in same]}
    return replace(same[0], value=value, low=low, high=high, details=details, draws=draws)
