"""What every method is made of: a batch and a clock go in, an output comes out."""

import abc
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from selfsight import philox
from selfsight.distributed import gather, places
from selfsight.encoders.base import Encoder
from selfsight.optim import Recipe
from selfsight.philox import Purpose
from selfsight.views.spec import View

__all__ = [
    "Batch",
    "Clock",
    "Key",
    "Method",
    "Output",
    "Sweep",
    "apart",
    "pairs",
    "per_resolution",
    "sides",
]


@dataclass(frozen=True)
class Key:
    """The address of a batch's randomness. position: (N,) int64, one per sample."""

    seed: int
    step: int
    position: Tensor

    def per_sample(self, purpose: Purpose, count: int) -> Tensor:
        """(N, count) uniforms that belong to the samples, whichever rank holds them."""
        draws: Tensor = philox.uniform(self.seed, self.position, purpose, count)
        return draws


@dataclass(frozen=True)
class Batch:
    """views: one (N, 3, s, s) tensor per crop; index: (N,) sample ids; boxes: (N, V, 4)
    crops as x0, y0, x1, y1 in source pixels, x0 > x1 when flipped; labels only for a
    supervised method."""

    views: list[Tensor]
    index: Tensor
    boxes: Tensor
    key: Key
    labels: Tensor | None = None


@dataclass(frozen=True)
class Clock:
    """Where a run stands. Every schedule is a function of it."""

    step: int
    total: int
    per_epoch: int
    seed: int = 0

    @property
    def epoch(self) -> int:
        return self.step // self.per_epoch

    @property
    def progress(self) -> float:
        """In [0, 1)."""
        return self.step / self.total


@dataclass(frozen=True)
class Output:
    """embedding: h, (N, D); projections: one z per view; carry: what `after_step` is to
    remember, a row per sample or one row; metrics: scalars worth logging."""

    loss: Tensor
    embedding: Tensor
    projections: tuple[Tensor, ...] = ()
    carry: dict[str, Tensor] = field(default_factory=dict)
    metrics: dict[str, Tensor] = field(default_factory=dict)


# sweep(network, view) streams (index, network(x)) over the data set in index order.
Sweep = Callable[[nn.Module, View], Iterator[tuple[Tensor, Tensor]]]


class Method(nn.Module, abc.ABC):
    """A published method. Subclasses are final; their constructor is their config.

    A step is: prepare → forward → backward → all ranks agree it is finite → clip →
    after_backward → optimizer → after_step. `forward` changes nothing but BatchNorm
    statistics, so a rejected step leaves no trace of what came after `prepare`.
    """

    supervised = False
    needs_tokens = False  # masked methods: the encoder must be a ViT
    views: list[View]
    recipe: Recipe

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    @abc.abstractmethod
    def forward(self, batch: Batch, clock: Clock) -> Output:
        """The paper's algorithm box."""

    def prepare(self, clock: Clock, sweep: Sweep) -> None:
        """Before each step; may read the data set through `sweep`."""

    def after_backward(self, clock: Clock) -> None:
        """Between clipping and the optimizer: drop gradients that a schedule forbids."""

    def after_step(self, carry: dict[str, Tensor], clock: Clock) -> None:
        """After the optimizer: move teachers, queues, banks and centres."""

    def groups(self) -> list[dict[str, Any]]:
        """Parameter groups; `optim.build` says what a group may hold. An encoder that starts
        from trained weights learns at a tenth of the rate."""
        encoder = {id(p) for p in self.encoder.parameters()}
        learned = [p for p in self.parameters() if p.requires_grad]
        scale = 0.1 if self.encoder.pretrained else 1.0
        return [
            {"params": [p for p in learned if id(p) in encoder], "lr_scale": scale},
            {"params": [p for p in learned if id(p) not in encoder]},
        ]

    @property
    def smallest(self) -> int:
        """Side in pixels of the smallest image that the encoder is given."""
        return min(view.size for view in self.views)

    @property
    def product(self) -> Encoder:
        """The encoder that is exported."""
        return self.encoder


def apart(
    groups: list[dict[str, Any]], params: Iterable[nn.Parameter], *, lr_scale: float = 1.0,
    **facts: Any,
) -> list[dict[str, Any]]:  # fmt: skip
    """The groups with some parameters moved into groups of their own, which say `facts`."""
    chosen = {id(p) for p in params}
    kept = [{**g, "params": [p for p in g["params"] if id(p) not in chosen]} for g in groups]
    moved = [
        {**g, **facts, "params": [p for p in g["params"] if id(p) in chosen],
         "lr_scale": g.get("lr_scale", 1.0) * lr_scale}
        for g in groups
    ]  # fmt: skip
    return [g for g in kept + moved if g["params"]]


def per_resolution(network: Callable[[Tensor], Tensor], views: Sequence[Tensor]) -> list[Tensor]:
    """One pass per run of equally sized views, so that they share BatchNorm statistics."""
    outputs: list[Tensor] = []
    start = 0
    for stop in range(1, len(views) + 1):
        if stop == len(views) or views[stop].shape != views[start].shape:
            outputs += network(torch.cat(list(views[start:stop]))).chunk(stop - start)
            start = stop
    return outputs


def pairs(views: int, targets: int = 2) -> Iterator[tuple[int, int]]:
    """(i, j) for every target view i among the first `targets` and every other view j."""
    return ((i, j) for i in range(min(targets, views)) for j in range(views) if i != j)


def sides(z1: Tensor, z2: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What `losses.negatives` takes: the rows of two views as anchors, the positive of each, the
    candidates of all ranks, and which image of the batch each anchor and each candidate is of."""
    z = torch.cat([z1, z2])
    image = places(z1).repeat(2)
    return z, z.roll(len(z1), 0), gather(z), image, gather(image)
