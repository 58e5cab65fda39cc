"""Scores know their intervals."""

import math

import numpy as np
import pytest

from selfsight.evaluate.report import Score
from selfsight.evaluate.statistics import interval, student_interval


def test_the_mean_of_verdicts_has_wilsons_interval() -> None:
    for right in (np.arange(20) % 3 > 0, np.array([True])):
        score = Score.mean("a", "knn", right, details={"found": 1})
        assert (score.value, score.n) == (right.mean(), len(right))
        assert (score.low, score.high) == interval(right)
        assert (score.metric, score.details, score.each is right) == (
            "accuracy",
            {"found": 1},
            True,
        )


def test_the_mean_of_numbers_has_students_interval_as_far_as_they_go() -> None:
    each = np.array([0.4, 0.5, 0.6, 0.5])
    score = Score.mean("a", "few", each)
    assert (score.low, score.high) == student_interval(each)
    wide = Score.mean("a", "dense", np.array([0.0, 0.9]), "RMSE", most=math.inf)
    assert wide.low == 0
    assert wide.high > 1
    assert Score.mean("a", "few", np.array([0.0, 0.9])).high == 1


def test_one_image_says_nothing_of_others() -> None:
    alone = Score.mean("a", "retrieval", np.array([0.5]), "mAP")
    assert (alone.low, alone.high) == (-math.inf, math.inf)
    alone = Score.resampled("a", "detection", lambda rows: 0.5, 1, "AP")
    assert (alone.low, alone.high) == (-math.inf, math.inf)


def test_what_is_no_mean_is_counted_again() -> None:
    x = np.linspace(-1, 1, 50)

    def middle(rows: np.ndarray) -> float:
        return float(np.median(x[rows]))

    low = Score.resampled("a", "b", middle, 50, "median", least=-1.0)
    assert low.value == pytest.approx(0)
    assert -1 < low.low < 0 < low.high < 1
    assert low.draws is not None
    assert low.draws.mean() == pytest.approx(low.value)
    cut = Score.resampled("a", "b", middle, 50, "median")
    assert (cut.low, cut.high) == (0, low.high)
    other = Score.resampled("a", "b", middle, 50, "median", seed=1)
    assert not np.array_equal(other.draws, cut.draws)
