"""A linear classifier on frozen features: multinomial logistic regression, tuned on
training features only."""

from collections.abc import Sequence
from typing import Annotated, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from selfsight.errors import ConfigError
from selfsight.evaluate.learners.lbfgs import MEMORY, Problems, minimise
from selfsight.evaluate.learners.probe import (
    Probe,
    fifth,
    moments,
    principal_axes,
    rows,
    standardised,
)
from selfsight.evaluate.learners.rows import Rows, labelled, samples
from selfsight.evaluate.measures.classified import classified
from selfsight.evaluate.report import Score
from selfsight.features import Features
from selfsight.ranges import Range, Whole

__all__ = ["STRENGTHS", "LinearProbe"]

STRENGTHS = tuple(10.0**power for power in np.arange(-5, 1.5, 0.5).tolist())

# Logits held at a time: 64 MiB in float32.
_BLOCK = 1 << 24


class LinearProbe(Probe):
    """argmin over W, b of mean cross-entropy + strength/2 ‖W‖², on channels standardised by
    the training features.

    strengths: tried on a stratified fifth of the training features; the most
        accurate, of equals the strongest, is fitted to all of them
    seed: of that split
    folds: fifths that are held out in turn and counted together; where labels are few one says
        too little

    After `fit`: strength; at_edge: it is the smallest or largest tried; tuned: False when
    every class has one image, so that nothing could be held out; converged; and what a
    `Probe` has.
    """

    name: ClassVar[str] = "linear"

    def __init__(
        self,
        strengths: Sequence[float] = STRENGTHS,
        *,
        seed: Whole = 0,
        folds: Annotated[int, Range(1, 5)] = 1,
    ) -> None:
        if not strengths or not all(0 < s < np.inf for s in strengths):
            raise ConfigError(f"the linear probe needs strengths > 0, got {list(strengths)}")
        self.strengths = tuple(sorted(strengths))
        self.seed = seed
        self.folds = folds

    def measure(self, train: Features, test: Features) -> list[Score]:
        assert test.label is not None
        answers = self.fit(train.embedding, train.label).logits(test.embedding)
        found = {
            "strength": self.strength,
            "at_edge": self.at_edge,
            "tuned": self.tuned,
            "converged": self.converged,
        }
        name = f"linear (L2={self.strength:.2g})"
        return classified(name, self.name, answers, test.label, test.classes, **found)

    def fit(self, x: Rows, y: Rows, among: Rows | None = None) -> Self:
        """x: (N, D); y: (N,) class numbers, which need not be consecutive.

        among: (M, D), whose means and deviations standardise, if not those of x; it has no labels
        """
        x, y = labelled(x, y)
        y = self._number(y)
        self.mean, self.scale = moments(x if among is None else samples(among).to(x))
        splits = [split for k in range(self.folds) if len((split := fifth(y, self.seed, k))[1])]
        self.tuned = len(splits) > 0 and len(self.strengths) > 1
        choice = self._choose(x, y, splits, among) if self.tuned else len(self.strengths) // 2
        self.strength = self.strengths[choice]
        self.at_edge = self.tuned and choice in (0, len(self.strengths) - 1)
        weight, bias, self.converged = _Design(standardised(x, self.mean, self.scale)).solve(
            y, len(self.classes), [self.strength], torch.float64, tolerance=1e-3, steps=2000
        )
        self.weight, self.bias = weight[0], bias[0]
        return self

    def _choose(
        self, x: Tensor, y: Tensor, splits: list[tuple[Tensor, Tensor]], among: Rows | None
    ) -> int:
        classes, right = len(self.classes), [0] * len(self.strengths)
        # As many at once as L-BFGS's memory of them allows; all, unless classes are many.
        together = max(1, _BLOCK // (MEMORY * classes * x.shape[1]))
        for fitted, held in splits:
            mean, scale = moments(x[fitted]) if among is None else (self.mean, self.scale)
            design = _Design(standardised(x[fitted], mean, scale))
            held_x = standardised(x[held], mean, scale).float()
            for start in range(0, len(self.strengths), together):
                weight, bias, _ = design.solve(
                    y[fitted], classes, self.strengths[start : start + together], torch.float32,
                    tolerance=0.03, steps=100,
                )  # fmt: skip
                for place, (w, b) in enumerate(zip(weight, bias, strict=True), start):
                    right[place] += int(((held_x @ w.T + b).argmax(dim=1) == y[held]).sum())
        # Of equals the strongest: on separable classes the weaker ones only grow W.
        return max(range(len(right)), key=lambda place: (right[place], place))


class _Design:
    """Standardised features z (N, D) in the basis of their principal axes, where the penalty
    looks the same and the curvature is nearly diagonal."""

    def __init__(self, z: Tensor) -> None:
        axes, squares = principal_axes(z.float())
        self._axes, self._curvature = axes.float(), squares / len(z)
        self._x = z.float() @ self._axes

    def solve(
        self,
        y: Tensor,
        classes: int,
        strengths: Sequence[float],
        dtype: torch.dtype,
        *,
        tolerance: float,
        steps: int,
    ) -> tuple[Tensor, Tensor, bool]:
        """Weights (S, classes, D), biases (S, classes), and whether all converged; by strong
        convexity the weights are within `tolerance` of the optimum."""
        rank, strength = self._x.shape[1], torch.tensor(strengths).to(self._x.device, dtype)
        problems = _Regressions(self._x, y, self._curvature.to(dtype), strength, tolerance)
        w = torch.zeros(len(strengths), classes, rank + 1, dtype=dtype, device=self._x.device)
        w[:, :, rank] = (torch.bincount(y, minlength=classes) / len(y)).log()
        w, solved = minimise(problems, w, steps)
        return w[:, :, :rank] @ self._axes.T.to(dtype), w[:, :, rank], bool(solved.all())


class _Regressions(Problems):
    """Mean cross-entropy of the rows x (N, R) + strength/2 ‖W‖², for each strength (S,).

    w: (S, classes, R + 1); the last column is the bias, which has no penalty
    curvature: (R,) mean square along each axis
    """

    def __init__(
        self, x: Tensor, y: Tensor, curvature: Tensor, strength: Tensor, tolerance: float
    ) -> None:
        self.x, self.y, self.curvature = x, y, curvature
        self.strength, self.tolerance = strength, tolerance

    def of(self, kept: Tensor) -> "_Regressions":
        return _Regressions(self.x, self.y, self.curvature, self.strength[kept], self.tolerance)

    def limit(self, w: Tensor) -> Tensor:
        rounding = 4 * torch.finfo(w.dtype).eps
        limit: Tensor = self.tolerance * self.strength * w[:, :, :-1].norm(dim=(1, 2)) + rounding
        return limit

    def objective(self, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        count, classes, width = w.shape
        flat = w.reshape(-1, width)
        total, loss = torch.zeros_like(flat), w.new_zeros(count)
        for part in rows(len(self.y), max(len(flat), width)):
            x = self.x[part].to(w.dtype)
            own = self.y[part, None, None].expand(-1, count, 1)
            log_p = torch.addmm(flat[:, -1], x, flat[:, :-1].T).view(-1, count, classes)
            log_p = log_p.log_softmax(dim=2)
            loss -= log_p.gather(2, own).sum(dim=(0, 2))
            error = log_p.exp_()
            error.scatter_add_(2, own, error.new_full((1, 1, 1), -1.0).expand(own.shape))
            error = error.flatten(1)
            total[:, :-1].addmm_(error.T, x)
            total[:, -1] += error.sum(dim=0)
        gradient, strength = (total / len(self.y)).view_as(w), self.strength[:, None, None]
        gradient[:, :, :-1] += strength * w[:, :, :-1]
        penalty = self.strength / 2 * w[:, :, :-1].square().sum(dim=(1, 2))
        # Half the covariance bounds the curvature (Böhning 1992), and half of 1 the bias's.
        inverse = F.pad(1 / (self.curvature / 2 + strength), (0, 1), value=2.0)
        return loss / len(self.y) + penalty, gradient, inverse
