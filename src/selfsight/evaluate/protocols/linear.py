"""A linear classifier on frozen features: multinomial logistic regression, tuned on
training features only."""

from collections import deque
from collections.abc import Sequence
from typing import Annotated, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from selfsight.errors import ConfigError
from selfsight.evaluate.learners.probe import Probe, fifth, moments, rows, standardised
from selfsight.evaluate.learners.rows import Rows, labelled, samples
from selfsight.evaluate.measures.classified import classified
from selfsight.evaluate.report import Score
from selfsight.features import Features
from selfsight.ranges import Range, Whole

__all__ = ["STRENGTHS", "LinearProbe"]

STRENGTHS = tuple(10.0**power for power in np.arange(-5, 1.5, 0.5).tolist())

# Logits held at a time: 64 MiB in float32.
_BLOCK = 1 << 24
_MEMORY = 10


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
            "seed": self.seed,
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
        together = max(1, _BLOCK // (_MEMORY * classes * x.shape[1]))
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
        z = z.float()
        n, dim = z.shape
        gram = z.new_zeros(2 * [min(n, dim)], dtype=torch.float64)
        for part in rows(n, dim) if dim <= n else rows(dim, n):
            block = (z[part] if dim <= n else z[:, part].T).double()
            gram += block.T @ block
        values, vectors = torch.linalg.eigh(gram / n)
        values = values.clamp_min(0)
        if dim <= n:
            axes = vectors.float()
        else:
            kept = values > 1e-10 * values[-1]
            values = values[kept]
            axes = z.T @ (vectors[:, kept] / (n * values).sqrt()).float()
        self._axes, self._curvature = axes, values
        self._x = z @ axes

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
        """Weights (S, classes, D), biases (S, classes), and whether all converged.

        L-BFGS, one problem per strength side by side. Half the covariance bounds the
        cross-entropy's curvature (Böhning 1992) and starts the inverse Hessian. By strong
        convexity, ‖gradient‖ ≤ tolerance · strength · ‖W‖ puts W within `tolerance` of
        the optimum.
        """
        count, rank = len(strengths), self._x.shape[1]
        new = {"dtype": dtype, "device": self._x.device}
        strength = torch.tensor(strengths, **new)[:, None, None]
        # The last column is the bias: no penalty, curvature at most 1/2.
        inverse = 1 / (self._curvature.to(**new) / 2 + strength)
        inverse = torch.cat([inverse, torch.full((count, 1, 1), 2.0, **new)], dim=2)
        w = torch.zeros(count, classes, rank + 1, **new)
        w[:, :, rank] = (torch.bincount(y, minlength=classes) / len(y)).log()
        best, number = w.clone(), torch.arange(count, device=w.device)
        loss, gradient = self._evaluate(w, y, strength)
        memory: deque[tuple[Tensor, Tensor, Tensor]] = deque(maxlen=_MEMORY)
        rounding = 4 * torch.finfo(dtype).eps
        for _ in range(steps):
            target = strength[:, 0, 0] * w[:, :, :rank].norm(dim=(1, 2))
            going = gradient.norm(dim=(1, 2)) > tolerance * target + rounding
            if not going.all():  # those that have converged cost no more
                number, w, strength, inverse = (v[going] for v in (number, w, strength, inverse))
                loss, gradient = loss[going], gradient[going]
                for _ in range(len(memory)):
                    a, b, c = memory.popleft()
                    memory.append((a[going], b[going], c[going]))
            if len(number) == 0:
                break
            direction = -_inverse_hessian(gradient, inverse, memory)
            slope = (gradient * direction).sum(dim=(1, 2))
            length = torch.ones_like(slope)
            while True:
                w_new = w + length[:, None, None] * direction
                loss_new, gradient_new = self._evaluate(w_new, y, strength)
                uphill = loss_new > loss + 1e-4 * length * slope + rounding * loss
                if not uphill.any() or length.min() < 1e-6:
                    break
                length = torch.where(uphill, length / 2, length)
            step, change = w_new - w, gradient_new - gradient
            memory.append((step, change, (step * change).sum(dim=(1, 2), keepdim=True)))
            w, loss, gradient = w_new, loss_new, gradient_new
            best[number] = w
        weight = best[:, :, :rank] @ self._axes.T.to(dtype)
        return weight, best[:, :, rank], len(number) == 0

    def _evaluate(self, w: Tensor, y: Tensor, strength: Tensor) -> tuple[Tensor, Tensor]:
        """w: (S, classes, rank + 1). Objective (S,) and gradient."""
        count, classes, width = w.shape
        flat = w.reshape(-1, width)
        total, loss = torch.zeros_like(flat), w.new_zeros(count)
        for part in rows(len(y), max(len(flat), width)):
            x = self._x[part].to(w.dtype)
            own = y[part, None, None].expand(-1, count, 1)
            log_p = torch.addmm(flat[:, -1], x, flat[:, :-1].T).view(-1, count, classes)
            log_p = log_p.log_softmax(dim=2)
            loss -= log_p.gather(2, own).sum(dim=(0, 2))
            error = log_p.exp_()
            error.scatter_add_(2, own, error.new_full((1, 1, 1), -1.0).expand(own.shape))
            error = error.flatten(1)
            total[:, :-1].addmm_(error.T, x)
            total[:, -1] += error.sum(dim=0)
        gradient = (total / len(y)).view_as(w)
        gradient[:, :, :-1] += strength * w[:, :, :-1]
        penalty = strength[:, 0, 0] / 2 * w[:, :, :-1].square().sum(dim=(1, 2))
        return loss / len(y) + penalty, gradient


def _inverse_hessian(
    gradient: Tensor, inverse: Tensor, memory: Sequence[tuple[Tensor, Tensor, Tensor]]
) -> Tensor:
    """L-BFGS's two loops (Nocedal 1980) over (step, change, their product)."""
    shares = []
    for step, change, product in reversed(memory):
        # A problem that stood still has no product, and the pair says nothing about it.
        share = (step * gradient).sum(dim=(1, 2), keepdim=True) / product
        share = torch.where(product > 0, share, 0)
        gradient = gradient - share * change
        shares.append(share)
    if memory:
        # The bound's curvature, scaled to what the newest step has met.
        _, change, product = memory[-1]
        scale = product / (change * inverse * change).sum(dim=(1, 2), keepdim=True)
        inverse = torch.where(product > 0, scale, 1) * inverse
    gradient = inverse * gradient
    for (step, change, product), share in zip(memory, reversed(shares), strict=True):
        back = (change * gradient).sum(dim=(1, 2), keepdim=True) / product
        gradient = gradient + torch.where(product > 0, share - back, 0) * step
    return gradient
