"""MoCo v2: MoCo with SimCLR's projection head, stronger augmentation and a cosine schedule.

Chen et al. 2020, https://arxiv.org/abs/2003.04297
Loss: −log exp(q·k⁺/τ) / (exp(q·k⁺/τ) + Σ_queue exp(q·k/τ))
"""

import copy
from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsight.batchnorm import grouped, shuffled
from selfsight.distributed import gather
from selfsight.encoders.base import Encoder
from selfsight.heads import mlp
from selfsight.losses import queue_nce
from selfsight.memory import Queue
from selfsight.methods.base import Batch, Clock, Method, Output, pairs
from selfsight.methods.ranges import Count, Positive, Share
from selfsight.momentum import Teacher
from selfsight.optim import Recipe
from selfsight.views.presets import moco_view

__all__ = ["MoCoV2"]


class MoCoV2(Method):
    """Improved baselines with momentum contrast.

    queue: keys that serve as negatives
    head: projector (table 1): linear as in v1, or an mlp with `hidden` units (None: as many as
        the encoder's width)
    dim: width of the projection
    temperature: τ of the loss (table 2)
    momentum: decay of the key encoder
    augment: v1's views, or v2's with blur and stronger colours (table 1)
    schedule: of the learning rate (table 1): v1's steps, or a cosine
    norm_groups: parts of the batch that share BatchNorm statistics, as GPUs do in the paper
    symmetric: let each view be the query once, and add the two losses
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        queue: Count = 65536,
        head: Literal["linear", "mlp"] = "mlp",
        hidden: Count | None = None,
        dim: Count = 128,
        temperature: Positive = 0.2,
        momentum: Share = 0.999,
        augment: Literal["v1", "v2"] = "v2",
        schedule: Literal["steps", "cosine"] = "cosine",
        norm_groups: Count = 8,
        symmetric: bool = False,
    ) -> None:
        super().__init__(encoder)
        inner = [encoder.dim if hidden is None else hidden] if head == "mlp" else []
        self.projector = mlp(encoder.dim, *inner, dim, norm=False)
        grouped(encoder, norm_groups)
        self.teacher = Teacher(copy.deepcopy(nn.Sequential(encoder, self.projector)))
        self.queue = Queue.random(queue, dim)
        self.temperature, self.momentum = temperature, momentum
        self.queries = 2 if symmetric else 1
        self.views = [replace(moco_view(1 if augment == "v1" else 2), count=2)]
        # Differs from the paper: the rate changes with each step, not with each epoch.
        self.recipe = Recipe(
            optimizer="sgd", lr=0.03, weight_decay=1e-4, warmup=0, exempt="none", epochs=200,
            drops=(0.6, 0.8) if schedule == "steps" else (),
        )  # fmt: skip

    def forward(self, batch: Batch, clock: Clock) -> Output:
        ways = list(pairs(len(batch.views), self.queries))
        h = [self.encoder(x) for x in batch.views[: self.queries]]
        q = [self.projector(h_i) for h_i in h]
        k = {j: self.key(batch, j) for _, j in ways}
        losses = [queue_nce(q[i], k[j], self.queue.rows, self.temperature) for i, j in ways]
        carry = {"k": F.normalize(torch.stack(list(k.values()), 1), dim=2)}
        z = (*q, *k.values())[:2]
        return Output(torch.stack(losses).sum(), embedding=h[0], projections=z, carry=carry)

    def key(self, batch: Batch, view: int) -> Tensor:
        """Keys of one view, from BatchNorm groups that do not tell which query they belong to."""
        return shuffled(self.teacher, batch.views[view], batch.key.seed, batch.key.step)

    def after_step(self, carry: dict[str, Tensor], clock: Clock) -> None:
        self.queue.push(gather(carry["k"]).flatten(0, 1))
        # The official code moves the key encoder before its next use: the same weights.
        self.teacher.update(nn.Sequential(self.encoder, self.projector), self.momentum)
