"""Linear support vector machines on frozen features, one per class, many side by side."""

from collections.abc import Sequence
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from selfsight import philox
from selfsight.errors import DataError
from selfsight.evaluate.learners.lbfgs import MEMORY, Problems, minimise
from selfsight.evaluate.learners.probe import principal_axes
from selfsight.evaluate.learners.rows import Rows, samples
from selfsight.evaluate.measures.ranking import Ranking
from selfsight.philox import Purpose

__all__ = ["COSTS", "LinearSVM", "machines"]

COSTS = tuple(2.0**power for power in range(-14, 11, 2))

# Numbers held at a time in each of a few arrays: 64 MiB in float32.
_BLOCK = 1 << 24
_FOLDS = 3


class LinearSVM:
    """One machine per class on rows of length 1 and a constant 1, as in the protocol of Goyal
    et al. 2019, https://arxiv.org/abs/1905.01235.

    costs: of which each class takes the one with the best mean average precision in three
        folds of the training rows, of equals the smallest
    positive: how much more an image with the class costs than one without
    seed: of the folds

    After `fit`: cost, tuned, at_edge, converged, each (C,). A class with fewer than two rows
    that have it, or that lack it, cannot be tuned and takes the middle cost; one without any
    decides 0 for everything.
    """

    def __init__(
        self, costs: Sequence[float] = COSTS, *, positive: float = 2.0, seed: int = 0
    ) -> None:
        self.costs = np.sort(np.asarray(costs, np.float64))
        self.positive = positive
        self.seed = seed

    def fit(self, x: Rows, tags: NDArray[np.int8]) -> Self:
        """x: (N, D); tags: (N, C), 1 has it, 0 lacks it, −1 is left out."""
        x = _prepared(x)
        folds = self._folds(tags)
        self.tuned = (folds.max(axis=0) > 0) & (len(self.costs) > 1)
        choice = np.full(tags.shape[1], len(self.costs) // 2)
        tuned = np.flatnonzero(self.tuned)
        per = _FOLDS * len(self.costs)
        for some in _parts(tuned, per * max(len(x), 2 * MEMORY * x.shape[1])):
            choice[some] = self._choose(x, tags[:, some], folds[:, some])
        self.cost = self.costs[choice]
        self.at_edge = self.tuned & ((choice == 0) | (choice == len(self.costs) - 1))
        # Without both kinds of rows there is no side to be on.
        learns = (tags == 1).any(axis=0) & (tags == 0).any(axis=0)
        weight, converged = [], []
        for some in _parts(np.arange(tags.shape[1]), max(len(x), 2 * MEMORY * x.shape[1])):
            cost = np.where(learns[some], self.cost[some], 0) * self._weights(tags[:, some])
            fitted = _solve(x, tags[:, some], cost, torch.float64, tolerance=1e-5, steps=3000)
            weight.append(fitted[0])
            converged.append(fitted[1].cpu().numpy())
        self.weight, self.converged = torch.cat(weight), np.concatenate(converged)
        return self

    def decide(self, x: Rows) -> NDArray[np.float64]:
        """(N, C): above 0 where the class is thought to be there."""
        x = _prepared(x)
        if x.shape[1] != self.weight.shape[1]:
            raise DataError(
                f"the machines were fitted on {self.weight.shape[1] - 1} channels, got "
                f"{x.shape[1] - 1}"
            )
        answers: NDArray[np.float64] = (x.to(self.weight) @ self.weight.T).cpu().numpy()
        return answers

    def _weights(self, tags: NDArray[np.int8]) -> NDArray[np.float64]:
        """(N, C): what a row counts for."""
        return np.where(tags == 1, self.positive, 1.0) * (tags >= 0)

    def _folds(self, tags: NDArray[np.int8]) -> NDArray[np.int64]:
        """(N, C) numbers of folds, stratified; −1 for rows left out. A class with too few rows
        for two folds has all in fold 0."""
        folds = np.full(tags.shape, -1, np.int64)
        for number, column in enumerate(tags.T):
            kinds = [np.flatnonzero(column == value) for value in (0, 1)]
            count = max(1, min(_FOLDS, *map(len, kinds)))
            for value, rows in enumerate(kinds):
                place = 2 * number + value
                order = philox.permutation(self.seed, place, Purpose.SPLIT, len(rows))
                folds[rows[order], number] = np.arange(len(rows)) % count
        return folds

    def _choose(
        self, x: Tensor, tags: NDArray[np.int8], folds: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """(C,) which cost; all classes, folds and costs are solved side by side."""
        classes, costs = tags.shape[1], len(self.costs)
        fold = np.arange(_FOLDS)[:, None]
        seen = folds[:, :, None, None] != fold  # (N, C, folds, 1)
        cost = self._weights(tags)[:, :, None, None] * seen * self.costs
        shape = (len(x), classes, _FOLDS, costs)
        sign = np.broadcast_to(tags[:, :, None, None], shape).reshape(len(x), -1)
        weight, _ = _solve(
            x.float(), sign, cost.reshape(len(x), -1), torch.float32, tolerance=0.01, steps=200
        )
        answers = (x.float() @ weight.T).cpu().numpy().reshape(shape)
        quality = np.full((classes, _FOLDS, costs), np.nan)
        for c, f in np.ndindex(classes, _FOLDS):
            held = folds[:, c] == f
            if held.any():
                truth = tags[held, c] == 1
                for k in range(costs):
                    quality[c, f, k] = Ranking(answers[held, c, f, k], truth).average_precision()
        chosen: NDArray[np.int64] = np.nanmean(quality, axis=1).argmax(axis=1)
        return chosen


def machines(
    x: Tensor,
    sign: Tensor,
    cost: Tensor,
    *,
    dtype: torch.dtype = torch.float64,
    tolerance: float = 1e-5,
    steps: int = 3000,
) -> tuple[Tensor, Tensor]:
    """Normals w of P machines on the same rows, (P, D), and whether each converged, (P,).

    Each minimises ½‖w‖² + Σ cost_i max(0, 1 − sign_i x_i·w)², as LIBLINEAR does (Fan et al.
    2008). ½‖w‖² alone bends by 1 in every direction, so w is no farther from the optimum
    than ‖gradient‖; it ends below tolerance · ‖w‖.

    x: (N, D); a constant column makes a bias, which is then penalised as any weight
    sign: (N, P), 1 or −1; cost: (N, P), 0 where a machine does not see a row
    """
    axes = principal_axes(x)[0].to(dtype)
    z = x.to(dtype) @ axes
    rows = sign.to(z).T.contiguous(), cost.to(z).T.contiguous()
    problems = _Hinges(z, z.square(), *rows, tolerance)
    w, converged = minimise(problems, z.new_zeros(len(rows[0]), z.shape[1]), steps)
    return w @ axes.T, converged


class _Hinges(Problems):
    """Penalty and squared hinge loss of P machines, w: (P, R), on the rows z (N, R) along their
    principal axes, where the curvature is nearly diagonal.

    squares: (N, R) of z; sign, cost: (P, N)
    """

    def __init__(
        self, z: Tensor, squares: Tensor, sign: Tensor, cost: Tensor, tolerance: float
    ) -> None:
        self.z, self.squares, self.sign, self.cost = z, squares, sign, cost
        self.tolerance = tolerance

    def of(self, kept: Tensor) -> "_Hinges":
        return _Hinges(self.z, self.squares, self.sign[kept], self.cost[kept], self.tolerance)

    def limit(self, w: Tensor) -> Tensor:
        limit: Tensor = self.tolerance * w.norm(dim=1)
        return limit

    def objective(self, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        short = (1 - self.sign * (w @ self.z.T)).clamp_min(0)
        pull = self.cost * short
        value = w.square().sum(dim=1) / 2 + (pull * short).sum(dim=1)
        gradient = w - 2 * (pull * self.sign) @ self.z
        return value, gradient, 1 / (1 + 2 * (self.cost * (short > 0)) @ self.squares)


def _solve(
    x: Tensor,
    tags: NDArray[np.int8],
    cost: NDArray[np.float64],
    dtype: torch.dtype,
    *,
    tolerance: float,
    steps: int,
) -> tuple[Tensor, Tensor]:
    sign = torch.from_numpy(np.where(tags == 1, 1, -1).astype(np.int8)).to(x.device)
    prices = torch.from_numpy(cost).to(x.device, dtype)
    return machines(x, sign, prices, dtype=dtype, tolerance=tolerance, steps=steps)


def _prepared(x: Rows) -> Tensor:
    return F.pad(F.normalize(samples(x), dim=1), (0, 1), value=1.0)


def _parts(classes: NDArray[np.int64], each: int) -> list[NDArray[np.int64]]:
    """As many classes at once as fit, where one takes `each` numbers."""
    step = max(1, _BLOCK // each)
    return [classes[start : start + step] for start in range(0, len(classes), step)]
