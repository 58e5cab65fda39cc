"""Clustering: agreement against hand-worked tables, scikit-learn and scipy."""

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from selfsight.errors import ConfigError, DataError
from selfsight.evaluate import create
from selfsight.evaluate.protocols.clustering import (
    Clustering,
    adjusted_rand,
    contingency,
    matching,
    mutual_information,
)
from selfsight.features import Features
from selfsight.kmeans import spherical_kmeans


def clusters(n: int, seed: int, noise: float = 1.0, classes: int = 4) -> Features:
    draw = np.random.default_rng(seed)
    y = draw.integers(classes, size=n)
    centre = 3 * np.random.default_rng(9).normal(size=(classes, 8))
    return Features(centre[y] + noise * draw.normal(size=(n, 8)), y)


def test_by_hand() -> None:
    table = contingency([0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 1, 1])
    assert table.tolist() == [[2, 1], [0, 3]]
    # Pairs: joined in both 1 + 0 + 3, in rows 3 + 3, in columns 1 + 6, of 15.
    assert adjusted_rand(table) == pytest.approx((4 - 6 * 7 / 15) / (6.5 - 6 * 7 / 15))
    entropy = np.log(2), np.log(3) - 2 / 3 * np.log(2)
    joint = -(1 / 3 * np.log(1 / 3) + 1 / 6 * np.log(1 / 6) + 1 / 2 * np.log(1 / 2))
    assert mutual_information(table) == pytest.approx((sum(entropy) - joint) / (sum(entropy) / 2))
    assert matching(table).tolist() == [0, 1]
    assert matching(np.array([[3, 2], [2, 0]])).tolist() == [1, 0]


@pytest.mark.parametrize("seed", range(5))
def test_equals_scikit_learn(seed: int) -> None:
    draw = np.random.default_rng(seed)
    label = draw.integers(5, size=200)
    cluster = np.where(draw.random(200) < 0.5, label, draw.integers(7, size=200))
    table = contingency(cluster, label)
    assert mutual_information(table) == pytest.approx(normalized_mutual_info_score(label, cluster))
    assert adjusted_rand(table) == pytest.approx(adjusted_rand_score(label, cluster))


def test_the_limits() -> None:
    y = np.array([0, 0, 1, 1, 2])
    one, each = np.zeros(5, np.int64), np.arange(5)
    for cluster, label in itertools.product((y, one, each), repeat=2):
        table = contingency(cluster, label)
        assert mutual_information(table) == pytest.approx(
            normalized_mutual_info_score(label, cluster)
        )
        assert adjusted_rand(table) == pytest.approx(adjusted_rand_score(label, cluster))


@pytest.mark.parametrize("shape", [(1, 1), (6, 6), (9, 4), (4, 9), (40, 40)])
def test_matching_is_the_best(shape: tuple[int, int]) -> None:
    for seed in range(10):
        table = np.random.default_rng(seed).integers(20, size=shape)
        match = matching(table)
        given = np.flatnonzero(match >= 0)
        assert len(given) == min(shape)
        assert len(set(match[given])) == len(given)
        rows, columns = linear_sum_assignment(table, maximize=True)
        assert table[given, match[given]].sum() == table[rows, columns].sum()


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("fit", ["test", "train"])
def test_finds_what_is_apart(metric: str, fit: str) -> None:
    train, test = clusters(80, 0, 0.1), clusters(50, 1, 0.1)
    scores = create("clustering", metric=metric, fit=fit).measure(train, test)
    assert [score.metric for score in scores] == ["NMI", "ARI", "matched accuracy"]
    assert [score.value for score in scores] == pytest.approx([1, 1, 1])
    assert scores[0].details["used"] == 4


def test_intervals_and_pairing() -> None:
    train, test = clusters(80, 0, 4.0), clusters(60, 1, 4.0)
    scores = Clustering(starts=2).measure(train, test)
    for score in scores:
        assert score.low < score.value < score.high
    assert scores[0].draws.shape == (1000,)
    assert scores[0].draws.mean() == pytest.approx(scores[0].value)
    assert scores[2].value == scores[2].each.mean()
    assert scores[0].details["purity"] >= scores[2].value
    again = Clustering(starts=2).measure(train, test)
    assert (again[1].draws == scores[1].draws).all()


def test_the_tightest_start_counts() -> None:
    train, test = clusters(80, 0, 2.0), clusters(60, 1, 2.0)
    x = torch.nn.functional.normalize(torch.from_numpy(test.embedding), dim=1)

    def looseness(start: int) -> float:
        centroids, number = spherical_kmeans(x, 4, iterations=1, draw=start)
        return float((x - centroids[number]).square().sum())

    best = min(range(6), key=looseness)
    assert best > 0
    found, until, before = (
        [score.value for score in Clustering(starts=n, iterations=1).measure(train, test)]
        for n in (6, best + 1, best)
    )
    assert found == until != before


def test_fewer_and_more_clusters_than_classes() -> None:
    train, test = clusters(80, 0, 0.1), clusters(60, 1, 0.1)
    few = Clustering(2).measure(train, test)[2]
    largest = np.sort(np.bincount(test.label))[::-1]
    assert few.value <= largest[:2].sum() / 60
    many = Clustering(20).measure(train, test)
    assert many[0].details["purity"] == 1
    assert many[2].value < 1


def test_a_collapsed_encoder() -> None:
    flat = Features(np.ones((20, 4)), np.arange(20) % 2)
    values = [score.value for score in Clustering().measure(flat, flat)]
    assert values == [0, 0, 0.5]


def test_what_cannot_be_clustered() -> None:
    train, test = clusters(80, 0), clusters(60, 1)
    with pytest.raises(DataError, match="90 clusters need as many test images, got 60"):
        Clustering(90).measure(train, test)
    with pytest.raises(DataError, match="all test images have one class"):
        Clustering().measure(train, Features(test.embedding, np.zeros(60)))
    with pytest.raises(ConfigError, match="must be 2 or more"):
        create("clustering", clusters=1)
