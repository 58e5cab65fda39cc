"""The mean of several trainings, and how far they lie apart."""

import numpy as np
import pytest

from selfsight.evaluate.report import Score
from selfsight.evaluate.seeds import over_seeds
from selfsight.evaluate.statistics import spread, student_interval


def trained(seed: int, details: dict[str, int]) -> list[Score]:
    draws = np.random.default_rng(seed).uniform(0.3, 0.5, 400)
    value = float(draws.mean())
    return [
        Score("a", "detection", value, *spread(draws), 16, metric, details, draws=draws)
        for metric in ("AP", "AP50")
    ]


def test_the_mean_and_both_intervals() -> None:
    each = [trained(seed, {"iterations": 9}) for seed in range(4)]
    values = [scores[0].value for scores in each]
    ap, ap50, over = over_seeds(each)
    assert [ap.metric, ap50.metric, over.metric] == ["AP", "AP50", "AP over seeds"]
    assert ap.value == over.value == pytest.approx(np.mean(values))
    assert [one["value"] for one in ap.details["seeds"]] == values
    assert ap.details["seeds"][0]["iterations"] == 9
    assert ap.draws is not None
    np.testing.assert_allclose(ap.draws, np.mean([s[0].draws for s in each], axis=0))
    assert (ap.low, ap.high) == spread(ap.draws)
    assert (over.low, over.high) == student_interval(values)
    assert (ap.n, over.n, over.draws) == (16, 4, None)


def test_one_training_stays_as_it_is() -> None:
    scores = trained(0, {})
    assert over_seeds([scores]) is scores
