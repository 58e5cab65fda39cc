"""Ring: MoCo whose negatives are neither too far from the query nor too near to it.

Wu et al. 2021, https://arxiv.org/abs/2010.02037
Loss: −log exp(q·k⁺/τ) / (exp(q·k⁺/τ) + Σ_ring exp(q·k/τ)), the ring between two quantiles of q·k
"""

import copy
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsight.batchnorm import grouped, shuffled
from selfsight.distributed import gather
from selfsight.encoders.base import Encoder
from selfsight.heads import Head, mlp, shape
from selfsight.losses import ring_nce
from selfsight.memory import Queue
from selfsight.methods.base import Batch, Clock, Method, Output
from selfsight.momentum import Teacher
from selfsight.optim import Recipe
from selfsight.ranges import Count, Part, Positive, Range, Share, Whole
from selfsight.schedules import linear
from selfsight.views.presets import crops, moco_view

__all__ = ["Ring"]

Fraction = Annotated[float, Range(0, 1, above=True)]


class Ring(Method):
    """Conditional negative sampling, on MoCo v2 (MoCoRing).

    queue: keys from which the negatives are chosen
    outer: fraction of the queue, the nearest to the query, that are negatives in the end
    inner: fraction of these, the nearest of all, that are left out
    anneal: how the outer fraction falls from 1: in ten steps, linearly or exponentially; none: it
        has its final size from the start
    until: share of the run by which it has fallen
    temperature: τ of the loss
    momentum: decay of the key encoder
    head: projector behind the encoder: none, linear or nonlinear
    layers: linear layers of the nonlinear head
    hidden, dim: widths of the nonlinear head's inner layers (None: the encoder's) and of q and k
    norm_groups: parts of the batch that share BatchNorm statistics, as GPUs do in the paper
    symmetric: let each view be the query once, and add the two losses
    multi_crop: small crops beside the two large ones, each a query too (SwAV table 3)
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        queue: Count = 65536,
        outer: Fraction = 0.1,
        inner: Part = 0.1,
        anneal: Literal["steps", "linear", "exponential", "none"] = "linear",
        until: Fraction = 0.5,
        temperature: Positive = 0.07,
        momentum: Share = 0.999,
        head: Head = "nonlinear",
        layers: Count = 2,
        hidden: Count | None = None,
        dim: Count = 128,
        norm_groups: Count = 8,
        symmetric: bool = False,
        multi_crop: Whole = 0,
    ) -> None:
        super().__init__(encoder)
        widths = shape(head, encoder.dim, hidden, layers, dim)
        self.projector = mlp(*widths, norm=False)
        grouped(encoder, norm_groups)
        self.teacher = Teacher(copy.deepcopy(nn.Sequential(encoder, self.projector)))
        self.queue = Queue.random(queue, widths[-1])
        self.outer, self.inner, self.anneal, self.until = outer, inner, anneal, until
        self.temperature, self.momentum = temperature, momentum
        self.key_views = (1, 0) if symmetric else (1,)  # views that give keys
        self.views = crops(moco_view(2), multi_crop)
        # Differs from the paper: the rate falls by a cosine, as MoCo v2's.
        self.recipe = Recipe(optimizer="sgd", lr=0.03, weight_decay=1e-4, warmup=0, exempt="none",
                             epochs=200)  # fmt: skip

    def forward(self, batch: Batch, clock: Clock) -> Output:
        ways = [(i, j) for j in self.key_views for i in range(len(batch.views)) if i != j]
        h = {i: self.encoder(batch.views[i]) for i in sorted({i for i, _ in ways})}
        q = {i: self.projector(h_i) for i, h_i in h.items()}
        at = batch.key.seed, batch.key.step
        k = {j: shuffled(self.teacher, batch.views[j], *at) for j in self.key_views}
        ring = (self.temperature, self.inner, self.fraction(clock.progress))
        losses = [ring_nce(q[i], k[j], self.queue.rows, *ring) for i, j in ways]
        loss = len(k) * torch.stack(losses).mean()
        carry = {"k": F.normalize(torch.stack(list(k.values()), 1), dim=2)}
        return Output(loss, embedding=h[0], projections=(q[0], q.get(1, k[1])), carry=carry)

    def fraction(self, progress: float) -> float:
        """Of the queue inside the outer rim of the ring."""
        t = min(1.0, progress / self.until)
        if self.anneal == "exponential":
            # Differs from the paper: the exponential fall takes as long as the others; the
            # official code has its rate per step.
            return float(self.outer**t)
        t = {"steps": min(9, int(10 * t)) / 9, "linear": t, "none": 1.0}[self.anneal]
        return linear(1.0, self.outer, t)

    def after_step(self, carry: dict[str, Tensor], clock: Clock) -> None:
        self.queue.push(gather(carry["k"]).flatten(0, 1))
        self.teacher.update(nn.Sequential(self.encoder, self.projector), self.momentum)
