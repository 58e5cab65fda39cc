"""What linear probes share: the training images they hold out, how features are standardised, the
axes they are solved along, and how a fitted one answers."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from selfsight import philox
from selfsight.errors import DataError
from selfsight.evaluate.base import OnFeatures
from selfsight.evaluate.learners.rows import Rows, labelled, samples
from selfsight.philox import Purpose

__all__ = ["Probe", "fifth", "moments", "principal_axes", "rows", "standardised"]

# Numbers held at a time: 64 MiB in float32.
_BLOCK = 1 << 24
# Rounding of a constant float32 channel leaves a relative deviation of about 1e-7.
_CONSTANT = 1e-6


class Probe(OnFeatures):
    """logits = W (x − mean) / scale + b.

    After fitting: classes (C,), the classes' numbers, which need not be consecutive; weight
    (C, D), bias (C,); mean, scale (D,)
    """

    classes: Tensor
    weight: Tensor
    bias: Tensor
    mean: Tensor
    scale: Tensor

    def logits(self, x: Rows) -> np.ndarray:
        """(N, classes), column by column the class of that number; −∞ for numbers that the
        training images did not have."""
        x = samples(x)
        if x.shape[1] != self.weight.shape[1]:
            raise DataError(
                f"{self.name} was fitted on {self.weight.shape[1]} channels, got {x.shape[1]}"
            )
        z = standardised(x.to(self.mean.device), self.mean, self.scale)
        known = self.classes.cpu().numpy()
        answers = np.full((len(x), known[-1] + 1), -np.inf)
        answers[:, known] = (z.to(self.weight) @ self.weight.T + self.bias).cpu().numpy()
        return answers

    def predict(self, x: Rows) -> np.ndarray:
        """(N,) class numbers."""
        numbers: np.ndarray = self.logits(x).argmax(axis=1)
        return numbers

    def score(self, x: Rows, y: Rows) -> float:
        """Accuracy as a fraction."""
        x, y = labelled(x, y)
        return float((self.predict(x) == y.cpu().numpy()).mean())

    def _number(self, y: Tensor) -> Tensor:
        """y: (N,) class numbers. Their places in `classes`, which this sets."""
        self.classes, y = torch.unique(y, return_inverse=True)
        if len(self.classes) < 2:
            raise DataError(f"{self.name} needs two classes or more, got one")
        return y


def fifth(y: Tensor, seed: int, number: int = 0) -> tuple[Tensor, Tensor]:
    """Rows to fit, and rows held out: part `number` of five of each class.

    y: (N,) classes from 0. Of fewer than five images one is a part; a class with a single
    image is always fitted.
    """
    fitted, held = [], []
    for label in range(int(y.max()) + 1):
        members = (y == label).nonzero()[:, 0].cpu()
        count = len(members)
        members = members[torch.from_numpy(philox.permutation(seed, label, Purpose.SPLIT, count))]
        start, stop = number * count // 5, (number + 1) * count // 5
        if count < 5:
            start, stop = min(number, count), min(number + 1, count)
        if count == 1:
            stop = start
        held.append(members[start:stop])
        fitted += [members[:start], members[stop:]]
    return torch.cat(fitted).to(y.device), torch.cat(held).to(y.device)


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """x: (N, D). Mean and deviation (D,) of each channel; ∞ for the deviation of a constant
    one, which is only centred: dividing would blow its rounding up to 1."""
    n, dim = x.shape
    total = x.sum(dim=0, dtype=torch.float64)
    mean = (total / n).to(x.dtype)
    variance = x.new_zeros(dim, dtype=torch.float64)
    for part in rows(n, dim):
        variance += (x[part] - mean).double().square().sum(dim=0)
    scale = (variance / n).sqrt()
    size = (variance / n + (total / n).square()).sqrt()
    return mean, torch.where(scale > _CONSTANT * size, scale, torch.inf).to(x.dtype)


def principal_axes(x: Tensor) -> tuple[Tensor, Tensor]:
    """x: (N, D). An orthonormal basis (D, R) of what the rows span, along their principal axes,
    and the rows' sums of squares along each (R,); both in float64."""
    n, dim = x.shape
    gram = x.new_zeros(2 * [min(n, dim)], dtype=torch.float64)
    for part in rows(n, dim) if dim <= n else rows(dim, n):
        block = (x[part] if dim <= n else x[:, part].T).double()
        gram += block.T @ block
    squares, axes = torch.linalg.eigh(gram)
    squares = squares.clamp_min(0)
    if dim > n:
        kept = squares > 1e-10 * squares[-1]
        squares = squares[kept]
        axes = x.T.double() @ (axes[:, kept] / squares.sqrt())
    return axes, squares


def standardised(x: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    return (x.to(mean) - mean) / scale


def rows(n: int, width: int) -> Iterator[slice]:
    """Slices of `n` rows, each of a bounded size."""
    step = max(1, _BLOCK // width)
    return (slice(start, start + step) for start in range(0, n, step))
