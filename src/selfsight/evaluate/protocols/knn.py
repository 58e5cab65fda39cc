"""Nearest neighbours vote: no training, nothing to tune."""

from typing import ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor

from selfsight.errors import ConfigError, DataError
from selfsight.evaluate.base import OnFeatures
from selfsight.evaluate.learners.neighbours import Metric, Neighbours
from selfsight.evaluate.learners.rows import Rows, labelled, samples
from selfsight.evaluate.measures.classified import classified
from selfsight.evaluate.report import Score
from selfsight.features import Features
from selfsight.ranges import Count, Positive

__all__ = ["KNN"]

_TEMPERATURE = 0.07
# Keeps the weight of an equal row finite, as in solo-learn's evaluation.
_EPSILON = 1e-5


class KNN(OnFeatures):
    """The k nearest training images vote.

    metric: cosine, or the Euclidean distance of the features as they are
    vote: weighted by e^{s/T}, s the cosine (Wu et al. 2018, https://arxiv.org/abs/1805.01978,
        as in DINO's evaluation), or by 1/(d + 1e-5), d the distance; majority counts all alike
    temperature: T

    W-MSE's evaluation is k=5, euclidean, majority. The search is exact, see Neighbours. Equal
    similarities at the k-th place and equal votes go to the lower class.
    """

    name: ClassVar[str] = "knn"

    def __init__(
        self,
        k: Count = 20,
        temperature: Positive = _TEMPERATURE,
        metric: Metric = "cosine",
        vote: Literal["weighted", "majority"] = "weighted",
    ) -> None:
        if k < 1 or not temperature > 0:
            raise ConfigError(
                f"kNN needs k ≥ 1 and temperature > 0, got k={k}, temperature={temperature}"
            )
        self.k = k
        self.temperature = temperature
        self.metric = metric
        self.vote = vote
        if temperature != _TEMPERATURE and not self._warm:
            raise ConfigError(
                "temperature acts on the weighted vote by cosine only; leave it out with "
                f"metric={metric}, vote={vote}"
            )

    _order: Tensor
    _rows: Neighbours
    _y: Tensor

    @property
    def _warm(self) -> bool:
        return self.metric == "cosine" and self.vote == "weighted"

    def measure(self, train: Features, test: Features) -> list[Score]:
        if len(train) < self.k:
            raise DataError(
                f"kNN with k={self.k} needs as many training images, got {len(train)}; label "
                "more, or choose a smaller k"
            )
        assert test.label is not None
        shares = self.fit(train.embedding, train.label).proba(test.embedding)
        words = [f"k={self.k}"]
        if self.metric == "euclidean":
            words.append("Euclidean")
        if self._warm:
            words.append(f"T={self.temperature:g}")
        else:
            words.append("majority" if self.vote == "majority" else "1/d")
        name = f"kNN ({', '.join(words)})"
        # A class without a vote is not among the first five either.
        answers = np.where(shares > 0, shares, -np.inf)
        return classified(name, self.name, answers, test.label, test.classes)

    def fit(self, x: Rows, y: Rows) -> Self:
        """x: (N, D); y: (N,) class numbers."""
        x, y = labelled(x, y)
        # Sorted by class, so that "the first of equals" means the lower class.
        self._order = y.argsort(stable=True)
        self._rows = Neighbours(x[self._order], self.metric)
        self._y = y[self._order]
        self.classes = int(y.max()) + 1
        return self

    @property
    def effective_k(self) -> int:
        """k, or as many training images as there are."""
        return min(self.k, len(self._y))

    def proba(self, x: Rows, *, exclude_self: bool = False) -> np.ndarray:
        """(N, classes): shares of the vote.

        exclude_self: x is the training set itself, in its order; no image is its own
            neighbour.
        """
        x = samples(x)
        n, dim = self._rows.x.shape
        if x.shape[1] != dim:
            raise DataError(f"kNN was fitted on {dim} channels, got {x.shape[1]}")
        if exclude_self and (len(x) != n or n < 2):
            raise DataError(f"leave-one-out needs the {n} training images and n ≥ 2, got {len(x)}")
        place = self._order.argsort() if exclude_self else None
        votes = np.empty((len(x), self.classes))
        for rows, near, number in self._rows.search(x, min(self.k, n - exclude_self), place):
            votes[rows] = self._vote(near, number).cpu().numpy()
        return votes

    def predict(self, x: Rows, *, exclude_self: bool = False) -> np.ndarray:
        """(N,) class numbers."""
        number: np.ndarray = self.proba(x, exclude_self=exclude_self).argmax(axis=1)
        return number

    def score(self, x: Rows, y: Rows, *, exclude_self: bool = False) -> float:
        """Accuracy as a fraction."""
        x, y = labelled(x, y)
        return float((self.predict(x, exclude_self=exclude_self) == y.cpu().numpy()).mean())

    def _vote(self, near: Tensor, number: Tensor) -> Tensor:
        """near: (N, k) similarities, falling; number: (N, k) rows that have them."""
        near = near.double()
        if self.vote == "majority":
            weight = torch.ones_like(near)
        elif self.metric == "euclidean":
            weight = 1 / (_EPSILON - near)
        else:
            # Relative to the best, so that no temperature overflows.
            weight = torch.exp((near - near[:, :1]) / self.temperature)
        votes = torch.zeros(len(near), self.classes, dtype=weight.dtype, device=weight.device)
        votes.scatter_add_(1, self._y[number], weight)
        return votes / votes.sum(dim=1, keepdim=True)
