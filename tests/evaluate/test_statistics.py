"""Intervals: literals, symmetries, and whether they cover what they promise."""

import numpy as np
import pytest

from selfsight.errors import ConfigError, DataError
from selfsight.evaluate.statistics import interval, paired


def answers(right: int, n: int) -> np.ndarray:
    return np.arange(n) < right


def test_wilson_literals() -> None:
    # Newcombe 1998a, table I, method 3: 81/263, 15/148, 0/20, 1/29.
    for right, n, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        assert interval(answers(right, n)) == pytest.approx((low, high), abs=1e-4)


def test_ends_are_exact() -> None:
    assert interval(answers(0, 9))[0] == 0
    assert interval(answers(9, 9))[1] == 1
    assert interval(answers(9, 9))[0] < 0.8


def test_levels_nest() -> None:
    right = answers(30, 50)
    (a, d), (b, c) = interval(right, 0.99), interval(right, 0.9)
    assert a < b < 0.6 < c < d


@pytest.mark.parametrize("p", [0.1, 0.6, 0.97])
def test_interval_covers(p: float) -> None:
    draw = np.random.default_rng(0)
    spans = [interval(draw.random(100) < p) for _ in range(2000)]
    assert 0.93 < np.mean([low <= p <= high for low, high in spans]) < 0.985


def test_paired_is_antisymmetric_and_bounded() -> None:
    draw = np.random.default_rng(0)
    a, b = draw.random(200) < 0.8, draw.random(200) < 0.6
    there, back = paired(a, b), paired(b, a)
    assert there.value == pytest.approx(a.mean() - b.mean())
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low))
    assert -1 <= there.low < there.value < there.high <= 1
    assert there.significant
    assert not paired(a, a).significant
    assert paired(answers(5, 5), ~answers(5, 5)).high <= 1


def test_pairing_narrows_the_interval() -> None:
    draw = np.random.default_rng(1)
    hard = draw.random(1000)
    a, b = hard < 0.70, hard < 0.68
    together, apart = paired(a, b), paired(a, draw.permutation(b))
    assert together.significant
    assert not apart.significant
    assert together.high - together.low < 0.5 * (apart.high - apart.low)


def test_paired_covers() -> None:
    draw = np.random.default_rng(2)
    hits = []
    for _ in range(2000):
        shared, own = draw.random(150), draw.random(150)
        a, b = shared < 0.75, np.where(own < 0.5, shared, draw.random(150)) < 0.65
        span = paired(a, b)
        hits.append(span.low <= 0.10 <= span.high)
    assert 0.93 < np.mean(hits) < 0.985


def test_refusals() -> None:
    with pytest.raises(DataError, match="right or wrong"):
        interval([])
    with pytest.raises(DataError, match="got 3 and 4"):
        paired([1, 0, 1], [1, 0, 1, 1])
    with pytest.raises(ConfigError, match="between 0 and 1"):
        interval([True], level=95)
