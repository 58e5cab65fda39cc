"""Nearest neighbours vote: no training, nothing to tune."""

from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from selfsight.errors import ConfigError, DataError

__all__ = ["KNN", "Rows", "labelled", "samples"]

# Arrays or tensors: anything that has rows.
Rows = Any

# Similarities held at a time: 64 MiB in float32.
_BLOCK = 1 << 24


class KNN:
    """The k most similar training images vote with weight e^{s/T}, s the cosine.

    Wu et al. 2018, https://arxiv.org/abs/1805.01978, as in DINO's evaluation. Exact, in at
    least float32, in blocks of bounded memory. Equal similarities at the k-th place and
    equal votes go to the lower class.
    """

    def __init__(self, k: int = 20, temperature: float = 0.07) -> None:
        if k < 1 or not temperature > 0:
            raise ConfigError(
                f"kNN needs k ≥ 1 and temperature > 0, got k={k}, temperature={temperature}"
            )
        self.k = k
        self.temperature = temperature

    _order: Tensor
    _x: Tensor
    _y: Tensor

    def fit(self, x: Rows, y: Rows) -> Self:
        """x: (N, D); y: (N,) class numbers."""
        x, y = labelled(x, y)
        # Sorted by class, so that "the first of equals" means the lower class.
        self._order = y.argsort(stable=True)
        self._x = F.normalize(x[self._order], dim=1)
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
        x = F.normalize(samples(x).to(self._x), dim=1)
        n = len(self._y)
        if x.shape[1] != self._x.shape[1]:
            raise DataError(f"kNN was fitted on {self._x.shape[1]} channels, got {x.shape[1]}")
        if exclude_self and (len(x) != n or n < 2):
            raise DataError(f"leave-one-out needs the {n} training images and n ≥ 2, got {len(x)}")
        place = self._order.argsort()
        k = min(self.k, n - exclude_self)
        votes = x.new_empty(len(x), self.classes, dtype=torch.float64)
        step = max(1, _BLOCK // n)
        for start in range(0, len(x), step):
            rows = slice(start, start + step)
            similarity = x[rows] @ self._x.T
            if exclude_self:
                similarity.scatter_(1, place[rows, None], -torch.inf)
            votes[rows] = self._vote(similarity, k)
        shares: np.ndarray = votes.cpu().numpy()
        return shares

    def predict(self, x: Rows, *, exclude_self: bool = False) -> np.ndarray:
        """(N,) class numbers."""
        number: np.ndarray = self.proba(x, exclude_self=exclude_self).argmax(axis=1)
        return number

    def score(self, x: Rows, y: Rows, *, exclude_self: bool = False) -> float:
        """Accuracy as a fraction."""
        x, y = labelled(x, y)
        return float((self.predict(x, exclude_self=exclude_self) == y.cpu().numpy()).mean())

    def _vote(self, similarity: Tensor, k: int) -> Tensor:
        top, index = similarity.topk(k, dim=1)
        # topk picks any of several equals at the k-th place; a stable sort takes the first.
        tied = (similarity >= top[:, -1:]).sum(dim=1) > k
        if tied.any():
            index[tied] = similarity[tied].argsort(dim=1, descending=True, stable=True)[:, :k]
        # Relative to the best, so that no temperature overflows.
        weight = torch.exp((top - top[:, :1]).double() / self.temperature)
        votes = torch.zeros(len(top), self.classes, dtype=weight.dtype, device=weight.device)
        votes.scatter_add_(1, self._y[index], weight)
        return votes / votes.sum(dim=1, keepdim=True)


def samples(x: Rows) -> Tensor:
    """x: (N, D), N ≥ 1, as a detached tensor of at least float32, all of it finite."""
    rows: Tensor = x.detach() if isinstance(x, Tensor) else torch.tensor(np.asarray(x))
    if rows.dtype != torch.float64:
        rows = rows.float()
    if rows.ndim != 2 or 0 in rows.shape:
        raise DataError(f"features are (N, D) with N ≥ 1 and D ≥ 1, got {tuple(rows.shape)}")
    bad = (~rows.isfinite().all(dim=1)).nonzero()[:, 0].tolist()
    if bad:
        shown = ", ".join(map(str, bad[:5])) + (", …" if len(bad) > 5 else "")
        raise DataError(
            f"{len(bad)} of {len(rows)} feature rows are not finite (rows {shown}); "
            "the encoder diverged, or use fp32"
        )
    return rows


def labelled(x: Rows, y: Rows) -> tuple[Tensor, Tensor]:
    """x: (N, D), y: (N,) class numbers from 0, checked."""
    x = samples(x)
    y = torch.as_tensor(y if isinstance(y, Tensor) else np.asarray(y)).to(x.device, torch.int64)
    if y.shape != (len(x),) or int(y.min()) < 0:
        raise DataError(
            f"{len(x)} feature rows need as many class numbers ≥ 0, got shape {tuple(y.shape)}"
        )
    return x, y
