"""Intervals: literals, symmetries, and whether they cover what they promise."""

from statistics import NormalDist

import numpy as np
import pytest

from selfsight.errors import ConfigError, DataError
from selfsight.evaluate.statistics import (
    around,
    bootstrap,
    drawn_p_value,
    holm,
    interval,
    mean_interval,
    p_value,
    paired,
    spread,
    student,
    student_interval,
    welch,
)


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


def test_students_law() -> None:
    # Tables: two-sided 95% and 99%.
    for freedom, t95, t99 in (
        (1, 12.706, 63.657),
        (2, 4.303, 9.925),
        (4, 2.776, 4.604),
        (10, 2.228, 3.169),
        (30, 2.042, 2.750),
        (120, 1.980, 2.617),
    ):
        assert student(freedom) == pytest.approx(t95, abs=5e-4)
        assert student(freedom, 0.99) == pytest.approx(t99, abs=5e-4)
    assert student(1e7) == pytest.approx(NormalDist().inv_cdf(0.975), abs=1e-6)


def test_students_law_equals_scipy() -> None:
    t = pytest.importorskip("scipy.stats").t
    for freedom in (1, 1.5, 2, 4.7, 29, 999, 49_999):
        for level in (0.01, 0.5, 0.95, 0.999):
            expected = t.ppf((1 + level) / 2, freedom)
            assert student(freedom, level) == pytest.approx(expected, rel=1e-8)


def test_mean_interval() -> None:
    # 3 ± 2.776 · 1.5811 / √5
    assert mean_interval([1, 2, 3, 4, 5]) == pytest.approx((1.0368, 4.9632), abs=1e-4)
    right = answers(20, 20)
    assert mean_interval(right.astype(float)) == interval(right)
    for each in ([0.3], [1.0], [0.3, 0.3, 0.3]):
        assert mean_interval(each) == (-np.inf, np.inf)
    # Seeds that agree are no Bernoulli draws.
    assert student_interval([1.0, 1.0, 1.0]) == (-np.inf, np.inf)
    for bad in ([], [[1.0]], [1.0, np.nan], [np.inf, 1.0]):
        with pytest.raises(DataError, match="finite numbers"):
            mean_interval(bad)


def test_mean_interval_covers() -> None:
    draw = np.random.default_rng(0)
    spans = [mean_interval(draw.normal(size=4)) for _ in range(1000)]
    assert 0.93 < np.mean([low <= 0 <= high for low, high in spans]) < 0.97


def test_bootstrap_is_paired_and_seeded() -> None:
    x = np.random.default_rng(0).normal(size=40)
    seen: list[np.ndarray] = []

    def total(rows: np.ndarray) -> float:
        seen.append(rows)
        return float(x[rows].mean())

    draws = bootstrap(total, 40, draws=300, seed=3)
    assert draws.shape == (300,)
    rows = np.stack(seen)
    assert (rows.shape, rows.dtype) == ((300, 40), np.int64)
    assert (rows.min(), rows.max()) == (0, 39)
    # Each image as often as any other: 300 ± 17.
    assert np.abs(np.bincount(rows.ravel()) - 300).max() < 80
    np.testing.assert_array_equal(bootstrap(total, 40, draws=300, seed=3), draws)
    np.testing.assert_array_equal(bootstrap(total, 40, draws=5, seed=3), draws[:5])
    assert not np.array_equal(bootstrap(total, 40, draws=300, seed=4), draws)
    low, high = mean_interval(x)
    assert spread(draws) == pytest.approx((low, high), abs=0.15 * (high - low))


def test_bootstrap_covers() -> None:
    draw = np.random.default_rng(1)
    covered = []
    for seed in range(100):
        x = draw.exponential(size=60)
        low, high = spread(bootstrap(lambda i, x=x: float(np.median(x[i])), 60, 100, seed))  # type: ignore[misc]
        covered.append(low <= np.log(2) <= high)
    assert 0.85 < np.mean(covered) < 1


def test_spread() -> None:
    assert spread(np.arange(101.0)) == pytest.approx((2.5, 97.5))
    assert spread([np.nan, *np.arange(101.0), np.nan]) == pytest.approx((2.5, 97.5))
    assert spread(np.arange(101.0), 0.5) == pytest.approx((25, 75))


def test_one_image_says_nothing() -> None:
    draws = bootstrap(lambda rows: 0.7, 1, draws=10)
    assert np.isnan(draws).all()
    assert spread(draws) == (-np.inf, np.inf)
    with pytest.raises(DataError, match="nothing to resample"):
        bootstrap(lambda rows: 0.7, 0)


def test_welch() -> None:
    # Variances 1 of three and 8/3 of four: 4 ± t · √(1/3 + 2/3).
    a, b = [4.0, 5.0, 6.0], [-1.0, 1.0, 3.0, 1.0]
    found = welch(a, b)
    u, v = 1 / 3, (8 / 3) / 4
    freedom = (u + v) ** 2 / (u**2 / 2 + v**2 / 3)
    half = student(freedom) * (u + v) ** 0.5
    assert (found.value, found.low, found.high) == pytest.approx((4, 4 - half, 4 + half))
    assert welch(b, a).low == pytest.approx(-found.high)
    assert found.significant
    for few in ([1.0], [1.0, 1.0]):
        assert (welch(few, few).low, welch(few, few).high) == (-np.inf, np.inf)
    with pytest.raises(DataError, match="both sides"):
        welch([], a)


def test_welch_equals_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    draw = np.random.default_rng(0)
    a, b = draw.normal(size=5), draw.normal(0.5, 3, size=3)
    theirs = stats.ttest_ind(a, b, equal_var=False)
    ours = welch(a, b)
    assert (ours.low, ours.high) == pytest.approx(tuple(theirs.confidence_interval()))
    p = p_value(lambda level: welch(a, b, level).significant)
    assert p == pytest.approx(theirs.pvalue, abs=1e-6)


def test_p_values_agree_with_the_intervals() -> None:
    a, b = answers(30, 60), np.roll(answers(22, 60), 11)
    p = p_value(lambda level: paired(a, b, level).significant)
    assert paired(a, b, 1 - p - 1e-4).significant
    assert not paired(a, b, 1 - p + 1e-4).significant
    assert p_value(lambda level: False) == pytest.approx(1)
    assert p_value(lambda level: True) < 1e-9


def test_p_values_of_draws() -> None:
    # Three of 99 at or below zero, and one more for the value itself.
    few = np.concatenate([[-1.0, -2.0, 0.0], np.full(96, 5.0)])
    assert drawn_p_value(few, 50) == drawn_p_value(-few, 50) == pytest.approx(2 * 4 / 100)
    assert drawn_p_value([np.nan, *few], 50) == drawn_p_value(few, 50)
    assert drawn_p_value(np.zeros(99), 50) == 1
    # Draws that cannot tell more: none reaches zero, and nothing is known of their width.
    for flat in (np.ones(99), np.arange(20.0) + 1, 1 + 1e-16 * np.arange(99)):
        assert drawn_p_value(flat, 1) == pytest.approx(2 / (len(flat) + 1))
    assert drawn_p_value(np.ones(99), 50) == pytest.approx(2 / 100)
    assert drawn_p_value([], 50) == drawn_p_value([np.nan], 50) == 1


def test_p_values_beyond_the_draws_are_those_of_the_t_test() -> None:
    stats = pytest.importorskip("scipy.stats")
    x = np.random.default_rng(3).normal(1.0, 1.0, size=30)
    draws = bootstrap(lambda rows: float(x[rows].mean()), len(x), 4000)
    p = drawn_p_value(draws, len(x))
    assert p < 2 / 4001
    assert np.log10(p) == pytest.approx(np.log10(stats.ttest_1samp(x, 0).pvalue), abs=0.4)


def test_holm() -> None:
    # Holm 1979's rule by hand: 0.01 · 3, 0.02 · 2 and 0.9, in the order of the list.
    assert holm([0.02, 0.01, 0.9]) == pytest.approx([0.04, 0.03, 0.9])
    # None below one that was raised before it, and none above 1.
    assert holm([0.03, 0.02, 0.02]) == pytest.approx([0.06, 0.06, 0.06])
    assert holm([0.7, 0.8]) == [1, 1]
    assert holm([]) == []


def test_an_interval_around_a_value_has_the_width_of_the_draws() -> None:
    draws = np.array([0.5, 0.6, 0.7, np.nan])
    low, high, moved = around(0.4, draws)
    np.testing.assert_allclose(moved[:3], [0.3, 0.4, 0.5])
    assert (low, high) == pytest.approx(spread(draws[:3] - 0.2))
    assert around(0.5, np.full(3, np.nan))[:2] == (-np.inf, np.inf)
