"""A sweep of learning rates and weight decays: linear heads by SGD, all of them at once."""

import math
from collections.abc import Sequence
from typing import ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from selfsight import philox
from selfsight.errors import ConfigError, Diverged
from selfsight.evaluate.learners.probe import Probe, fifth, moments, rows, standardised
from selfsight.evaluate.learners.rows import Rows, labelled
from selfsight.evaluate.measures.classified import classified
from selfsight.evaluate.report import Score
from selfsight.features import Features
from selfsight.machine import device_named
from selfsight.philox import Purpose
from selfsight.ranges import Count, Whole
from selfsight.schedules import cosine

__all__ = ["DECAYS", "RATES", "Sweep", "descend"]

RATES = tuple(10.0**power for power in np.arange(-3, 2.5, 0.5).tolist())
DECAYS = (0.0, 1e-6, 1e-4, 1e-2)

_MOMENTUM = 0.9
# Weights held at a time, over all heads: 512 MiB in float32.
_WEIGHTS = 1 << 27


class Sweep(Probe):
    """A linear head for each pair of a rate and a decay, by SGD with momentum 0.9 and a cosine;
    the most accurate on a stratified fifth of the training features, of equals the one of the
    lower cross-entropy there, is trained again on all.

    rates: as they are, whatever the batch
    decays: of the weights, not of the biases
    standardise: channels by the training features; otherwise the features stay as they are,
        and the best rate depends on their scale
    seed: of the split and of the order of images

    After `fit`: rate, decay; held_out: (rate, decay, accuracy) of each head on the fifth;
    at_edge: a better one may lie outside of those tried; tuned: False when nothing could be
    held out; and what a `Probe` has.
    """

    name: ClassVar[str] = "sweep"

    def __init__(
        self,
        rates: tuple[float, ...] = RATES,
        decays: tuple[float, ...] = DECAYS,
        *,
        epochs: Count = 100,
        batch: Count = 256,
        standardise: bool = True,
        seed: Whole = 0,
    ) -> None:
        if not rates or not all(0 < rate < np.inf for rate in rates):
            raise ConfigError(f"a sweep needs rates > 0, got {list(rates)}")
        if not decays or not all(0 <= decay < np.inf for decay in decays):
            raise ConfigError(f"a sweep needs decays ≥ 0, got {list(decays)}")
        self.rates, self.decays = tuple(sorted(set(rates))), tuple(sorted(set(decays)))
        self.epochs, self.batch = epochs, batch
        self.standardise, self.seed = standardise, seed

    def measure(self, train: Features, test: Features) -> list[Score]:
        assert test.label is not None
        device = device_named("auto")
        x = torch.from_numpy(train.embedding).to(device)
        answers = self.fit(x, train.label).logits(test.embedding)
        found = {
            "rate": self.rate,
            "decay": self.decay,
            "at_edge": self.at_edge,
            "tuned": self.tuned,
            "held_out": self.held_out,
            "batch": min(self.batch, len(x)),
        }
        name = f"sweep (lr={self.rate:.2g}, wd={self.decay:.2g})"
        return classified(name, self.name, answers, test.label, test.classes, **found)

    def fit(self, x: Rows, y: Rows) -> Self:
        """x: (N, D); y: (N,) class numbers, which need not be consecutive."""
        x, y = labelled(x, y)
        y = self._number(y)
        grid = [(rate, decay) for decay in self.decays for rate in self.rates]
        fitted, held = fifth(y, self.seed)
        self.tuned = len(held) > 0 and len(grid) > 1
        self.held_out: list[tuple[float, float, float]] = []
        choice = len(grid) // 2
        if self.tuned:
            quality = self._try(x, y, fitted, held, grid)
            self.held_out = [
                (*pair, max(right, 0) / len(held))
                for pair, (right, _) in zip(grid, quality, strict=True)
            ]
            choice = quality.index(max(quality))
        self.rate, self.decay = grid[choice]
        self.at_edge = self.tuned and self._edge()
        self.mean, self.scale = self._moments(x)
        weight, bias = self._descend(x, y, self.mean, self.scale, grid[choice : choice + 1])
        self.weight, self.bias = weight[0], bias[0]
        if not (self.weight.isfinite().all() and self.bias.isfinite().all()):
            raise Diverged(f"the sweep diverged at rate {self.rate:g}; give it lower rates")
        return self

    def _edge(self) -> bool:
        """Whether the best is the first or last of several; below no decay there is nothing."""
        rate = len(self.rates) > 1 and self.rate in (self.rates[0], self.rates[-1])
        ends = (self.decays[0] or None, self.decays[-1])
        return rate or (len(self.decays) > 1 and self.decay in ends)

    def _try(
        self, x: Tensor, y: Tensor, fitted: Tensor, held: Tensor, grid: list[tuple[float, float]]
    ) -> list[tuple[int, float]]:
        """Of each head, how many held-out images it gets right and their negative
        cross-entropy; (-1, 0) where it has diverged."""
        part, quality = x[fitted], []
        mean, scale = self._moments(part)
        together = max(1, _WEIGHTS // (len(self.classes) * x.shape[1]))
        for start in range(0, len(grid), together):
            tried = grid[start : start + together]
            for w, b in zip(*self._descend(part, y[fitted], mean, scale, tried), strict=True):
                right, likely = 0, 0.0
                for k in rows(len(held), max(w.shape)):
                    logits = torch.addmm(b, standardised(x[held[k]], mean, scale), w.T)
                    target = y[held[k]]
                    right += int((logits.argmax(dim=1) == target).sum())
                    likely -= float(F.cross_entropy(logits, target, reduction="sum"))
                quality.append((right, likely) if math.isfinite(likely) else (-1, 0.0))
        return quality

    def _moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.standardise:
            return moments(x)
        return x.new_zeros(x.shape[1]), x.new_ones(x.shape[1])

    def _descend(
        self,
        x: Tensor,
        y: Tensor,
        mean: Tensor,
        scale: Tensor,
        grid: Sequence[tuple[float, float]],
    ) -> tuple[Tensor, Tensor]:
        return descend(
            x, y, mean, scale, grid, epochs=self.epochs, batch=self.batch, seed=self.seed
        )


def descend(
    x: Tensor,
    y: Tensor,
    mean: Tensor,
    scale: Tensor,
    grid: Sequence[tuple[float, float]],
    *,
    epochs: int,
    batch: int,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Weights (H, C, D) and biases (H, C) of heads trained side by side, from zeros, on
    mean cross-entropy + decay/2 ‖W‖², each at its own (rate, decay) of `grid`.

    x: (N, D), standardised by mean and scale (D,); y: (N,) classes from 0

    All heads see the same batches, so a step is one product of matrices for all of them. What
    is left over of an epoch's order by whole batches is not used.
    """
    n, dim, heads, classes = len(y), x.shape[1], len(grid), int(y.max()) + 1
    size = min(batch, n)
    per_epoch = n // size
    w, b = x.new_zeros(heads * classes, dim), x.new_zeros(heads * classes)
    speed_w, speed_b = torch.zeros_like(w), torch.zeros_like(b)
    rate, decay = (x.new_tensor(v).repeat_interleave(classes) for v in zip(*grid, strict=True))
    for epoch in range(epochs):
        order = torch.from_numpy(philox.permutation(seed, epoch, Purpose.ORDER, n)).to(x.device)
        for place in range(per_epoch):
            chosen = order[place * size : (place + 1) * size]
            z = standardised(x[chosen], mean, scale)
            error = torch.addmm(b, z, w.T).view(size, heads, classes).softmax(dim=2)
            own = y[chosen, None, None].expand(-1, heads, 1)
            error.scatter_add_(2, own, error.new_full((1, 1, 1), -1.0).expand(own.shape))
            error = error.flatten(1) / size
            speed_w.mul_(_MOMENTUM).addmm_(error.T, z).addcmul_(decay[:, None], w)
            speed_b.mul_(_MOMENTUM).add_(error.sum(dim=0))
            factor = cosine(1.0, 0.0, (epoch * per_epoch + place) / (epochs * per_epoch))
            w.addcmul_(rate[:, None], speed_w, value=-factor)
            b.addcmul_(rate, speed_b, value=-factor)
    return w.view(heads, classes, dim), b.view(heads, classes)
