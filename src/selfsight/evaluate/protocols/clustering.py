"""Clusters that nobody named, compared with the classes."""

from collections.abc import Callable
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from selfsight.errors import DataError
from selfsight.evaluate.base import OnFeatures
from selfsight.evaluate.learners.rows import samples
from selfsight.evaluate.report import Score
from selfsight.features import Features
from selfsight.kmeans import euclidean_kmeans, nearest, spherical_kmeans
from selfsight.machine import device_named
from selfsight.ranges import Count, Several, Whole

__all__ = [
    "Clustering",
    "adjusted_rand",
    "contingency",
    "matching",
    "mutual_information",
]

Table = NDArray[np.int64]

# Compared with their centroids at a time.
_ROWS = 1 << 14


class Clustering(OnFeatures):
    """k-means of the embeddings, and how far its clusters are the classes of the test images.

    Labels choose nothing but the number of clusters: of several starts the one with the least
    sum of squared distances counts.

    clusters: as many as classes if none are given
    fit: centroids are means of `test` embeddings, as no label is seen; or of `train` ones
    metric: `cosine` clusters directions (spherical k-means), `euclidean` the embeddings as
        they are
    starts, iterations: of k-means; seed: of its starts

    Scores: normalised mutual information (by the arithmetic mean of the entropies), the
    adjusted Rand index, and accuracy when each cluster stands for the class that the best
    one-to-one matching gives it. That matching is chosen on the test labels, by definition.
    """

    name: ClassVar[str] = "clustering"

    def __init__(
        self,
        clusters: Several | None = None,
        *,
        fit: Literal["test", "train"] = "test",
        metric: Literal["cosine", "euclidean"] = "cosine",
        starts: Count = 10,
        iterations: Count = 50,
        seed: Whole = 0,
    ) -> None:
        self.clusters = clusters
        self.fit = fit
        self.metric = metric
        self.starts = starts
        self.iterations = iterations
        self.seed = seed

    def measure(self, train: Features, test: Features) -> list[Score]:
        assert train.label is not None
        assert test.label is not None
        classes, label = np.unique(test.label, return_inverse=True)
        if len(classes) < 2:
            raise DataError("all test images have one class; clustering needs two or more")
        count = self.clusters or len(np.union1d(train.label, classes))
        fitted = test if self.fit == "test" else train
        if len(fitted) < count:
            raise DataError(
                f"{count} clusters need as many {self.fit} images, got {len(fitted)}; label more, "
                "or choose fewer clusters"
            )
        cluster = self._assign(samples(fitted.embedding), samples(test.embedding), count)
        table = contingency(cluster, label)
        match = matching(table)
        right = match[cluster] == label
        found = {
            "clusters": count,
            "used": int((table.sum(axis=1) > 0).sum()),
            "purity": float(table.max(axis=1).sum() / table.sum()),
        }
        title = f"k-means (k={count})"

        def score(
            metric: str, agreement: Callable[[Table], float], least: float, **found: object
        ) -> Score:
            def of(rows: NDArray[np.int64]) -> float:
                return agreement(contingency(cluster[rows], label[rows]))

            return Score.resampled(
                title, self.name, of, len(label), metric, found, least=least, seed=self.seed
            )

        return [
            score("NMI", mutual_information, 0.0, **found),
            score("ARI", adjusted_rand, -1.0),
            Score.mean(title, self.name, right, "matched accuracy"),
        ]

    def _assign(self, fitted: Tensor, test: Tensor, count: int) -> NDArray[np.int64]:
        """(N,) the cluster of each test image."""
        device = device_named("auto")
        fitted, test = fitted.to(device), test.to(device)
        cosine = self.metric == "cosine"
        kmeans = spherical_kmeans if cosine else euclidean_kmeans
        if cosine:
            fitted, test = F.normalize(fitted, dim=1), F.normalize(test, dim=1)
        best, least = fitted[:count], float("inf")
        for start in range(self.starts):
            centroids, number = kmeans(
                fitted, count, iterations=self.iterations, seed=self.seed, draw=start
            )
            total = _spread(fitted, centroids, number)
            if total < least:
                best, least = centroids, total
        return nearest(test, best, cosine=cosine).cpu().numpy()


def contingency(cluster: ArrayLike, label: ArrayLike) -> Table:
    """(K, C) how many images are in each cluster and class, both (N,) numbers from 0."""
    cluster, label = np.asarray(cluster), np.asarray(label)
    rows, columns = int(cluster.max()) + 1, int(label.max()) + 1
    cells = np.bincount(cluster * columns + label, minlength=rows * columns)
    return cells.reshape(rows, columns)


def mutual_information(table: Table) -> float:
    """Mutual information over the arithmetic mean of the two entropies; 1 where both are 0."""
    total = table.sum()
    rows, columns = table.sum(axis=1), table.sum(axis=0)
    mean = (_entropy(rows) + _entropy(columns)) / 2
    if mean == 0:
        return 1.0
    i, j = np.nonzero(table)
    count = table[i, j]
    information = (count * np.log(count / rows[i] * (total / columns[j]))).sum() / total
    return min(max(float(information / mean), 0.0), 1.0)


def adjusted_rand(table: Table) -> float:
    """Pairs that both partitions join, above what chance joins, over what could be above it
    (Hubert and Arabie 1985); 1 where both join all pairs, or none."""
    joined, in_rows, in_columns, pairs = (
        _pairs(counts)
        for counts in (table.ravel(), table.sum(axis=1), table.sum(axis=0), table.sum()[None])
    )
    most = (in_rows + in_columns) / 2
    chance = in_rows * in_columns / max(pairs, 1.0)
    return (joined - chance) / (most - chance) if most != chance else 1.0


def matching(table: Table) -> NDArray[np.int64]:
    """(K,) the column of each row, −1 for those that get none, with the largest sum.

    The Hungarian method by shortest augmenting paths (Jonker and Volgenant 1987).
    """
    n = max(table.shape)
    cost = np.full((n, n), float(table.max()))
    cost[: table.shape[0], : table.shape[1]] -= table
    # Column n is where each path begins.
    row_of = np.full(n + 1, -1)
    row_price, price = np.zeros(n), np.zeros(n + 1)
    for row in range(n):
        row_of[n], column = row, n
        least, back = np.full(n, np.inf), np.full(n, n)
        reached = np.zeros(n + 1, np.bool_)
        while row_of[column] >= 0:
            reached[column] = True
            here = row_of[column]
            slack = cost[here] - row_price[here] - price[:n]
            nearer = ~reached[:n] & (slack < least)
            least[nearer], back[nearer] = slack[nearer], column
            column = int(np.where(reached[:n], np.inf, least).argmin())
            way = least[column]
            row_price[row_of[reached]] += way
            price[reached] -= way
            least[~reached[:n]] -= way
        while column != n:
            row_of[column] = row_of[back[column]]
            column = int(back[column])
    match = np.empty(n, np.int64)
    match[row_of[:n]] = np.arange(n)
    match = match[: table.shape[0]]
    return np.where(match < table.shape[1], match, -1)


def _spread(x: Tensor, centroids: Tensor, number: Tensor) -> float:
    """The sum of squared distances of the rows of x from their centroids."""
    parts = zip(torch.split(x, _ROWS), torch.split(number, _ROWS), strict=True)
    return sum(float((y - centroids[own]).square().sum(dtype=torch.float64)) for y, own in parts)


def _entropy(counts: NDArray[np.int64]) -> float:
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log(share)).sum())


def _pairs(counts: NDArray[np.int64]) -> float:
    each = counts.astype(np.float64)
    return float((each * (each - 1)).sum() / 2)
