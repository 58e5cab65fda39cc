"""A linear classifier on frozen features: multinomial logistic regression, tuned on
training features only."""

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Self

import numpy as np
import torch
from torch import Tensor

from selfsight import philox
from selfsight.errors import ConfigError, DataError
from selfsight.evaluate.knn import Rows, labelled, samples
from selfsight.philox import Purpose

__all__ = ["STRENGTHS", "LinearProbe"]

STRENGTHS = tuple(10.0**power for power in np.arange(-5, 1.5, 0.5).tolist())

# Logits held at a time: 64 MiB in float32.
_BLOCK = 1 << 24
# Rounding of a constant float32 channel leaves a relative deviation of about 1e-7.
_CONSTANT = 1e-6
_MEMORY = 10


class LinearProbe:
    """argmin over W, b of mean cross-entropy + strength/2 ‖W‖², on channels standardised by
    the training features.

    strengths: tried on a stratified fifth of the training features; the most
        accurate, of equals the strongest, is fitted to all of them
    seed: of that split

    After `fit`: strength; at_edge: it is the smallest or largest tried; tuned: False when
    every class has one image, so that nothing could be held out; converged; weight
    (classes, D) and bias, for standardised channels; classes: the numbers of the classes.
    """

    def __init__(self, strengths: Sequence[float] = STRENGTHS, *, seed: int = 0) -> None:
        if not strengths or not all(0 < s < np.inf for s in strengths):
            raise ConfigError(f"the linear probe needs strengths > 0, got {list(strengths)}")
        self.strengths = tuple(sorted(strengths))
        self.seed = seed

    def fit(self, x: Rows, y: Rows) -> Self:
        """x: (N, D); y: (N,) class numbers, which need not be consecutive."""
        x, y = labelled(x, y)
        self.classes, y = torch.unique(y, return_inverse=True)
        if len(self.classes) < 2:
            raise DataError("the linear probe needs two classes or more, got one")
        fitted, held = self._split(y)
        self.tuned = len(held) > 0 and len(self.strengths) > 1
        choice = self._choose(x, y, fitted, held) if self.tuned else len(self.strengths) // 2
        self.strength = self.strengths[choice]
        self.at_edge = self.tuned and choice in (0, len(self.strengths) - 1)
        design = _Design(x)
        weight, bias, self.converged = design.solve(
            y, len(self.classes), [self.strength], torch.float64, tolerance=1e-3, steps=2000
        )
        self._mean, self._scale, self.weight, self.bias = (
            design.mean,
            design.scale,
            weight[0],
            bias[0],
        )
        return self

    def predict(self, x: Rows) -> np.ndarray:
        """(N,) class numbers."""
        x = samples(x)
        if x.shape[1] != self.weight.shape[1]:
            raise DataError(
                f"the linear probe was fitted on {self.weight.shape[1]} channels, got {x.shape[1]}"
            )
        logits = (
            _standardised(x, self._mean, self._scale).to(self.weight) @ self.weight.T + self.bias
        )
        numbers: np.ndarray = self.classes[logits.argmax(dim=1)].cpu().numpy()
        return numbers

    def score(self, x: Rows, y: Rows) -> float:
        """Accuracy as a fraction."""
        x, y = labelled(x, y)
        return float((self.predict(x) == y.cpu().numpy()).mean())

    def _split(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Rows to fit and rows held out: a fifth of each class, at least one of two; a
        class with one image is fitted."""
        fitted, held = [], []
        for number in range(len(self.classes)):
            rows = (y == number).nonzero()[:, 0].cpu()
            order = philox.permutation(self.seed, number, Purpose.SPLIT, len(rows))
            rows = rows[torch.from_numpy(order)]
            count = max(len(rows) // 5, 1) if len(rows) > 1 else 0
            held.append(rows[:count])
            fitted.append(rows[count:])
        return torch.cat(fitted).to(y.device), torch.cat(held).to(y.device)

    def _choose(self, x: Tensor, y: Tensor, fitted: Tensor, held: Tensor) -> int:
        design, classes = _Design(x[fitted]), len(self.classes)
        target, held_x = y[held], _standardised(x[held], design.mean, design.scale).float()
        # As many at once as L-BFGS's memory of them allows; all, unless classes are many.
        together = max(1, _BLOCK // (_MEMORY * classes * x.shape[1]))
        quality: list[tuple[int, int]] = []
        for start in range(0, len(self.strengths), together):
            weight, bias, _ = design.solve(
                y[fitted], classes, self.strengths[start : start + together], torch.float32,
                tolerance=0.03, steps=100,
            )  # fmt: skip
            for w, b in zip(weight, bias, strict=True):
                right = int(((held_x @ w.T + b).argmax(dim=1) == target).sum())
                quality.append((right, len(quality)))
        # Of equals the strongest: on separable classes the weaker ones only grow W.
        return max(quality)[1]


class _Design:
    """Standardised features in the basis of their principal axes, where the penalty looks
    the same and the curvature is nearly diagonal."""

    def __init__(self, x: Tensor) -> None:
        n, dim = x.shape
        total = x.sum(dim=0, dtype=torch.float64)
        self.mean = (total / n).to(x.dtype)
        variance = x.new_zeros(dim, dtype=torch.float64)
        for rows in _rows(n, dim):
            variance += (x[rows] - self.mean).double().square().sum(dim=0)
        scale = (variance / n).sqrt()
        size = (variance / n + (total / n).square()).sqrt()
        # A constant channel is only centred: dividing would blow its rounding up to 1.
        self.scale = torch.where(scale > _CONSTANT * size, scale, torch.inf).to(x.dtype)
        z = _standardised(x, self.mean, self.scale).float()
        gram = z.new_zeros(2 * [min(n, dim)], dtype=torch.float64)
        for part in _rows(n, dim) if dim <= n else _rows(dim, n):
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
        for rows in _rows(len(y), max(len(flat), width)):
            x = self._x[rows].to(w.dtype)
            own = y[rows, None, None].expand(-1, count, 1)
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


def _standardised(x: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    return (x.to(mean) - mean) / scale


def _rows(n: int, width: int) -> Iterator[slice]:
    step = max(1, _BLOCK // width)
    return (slice(start, start + step) for start in range(0, n, step))
