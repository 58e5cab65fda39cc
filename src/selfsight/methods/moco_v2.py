"""MoCo v2: MoCo with SimCLR's projection head, stronger augmentation and a cosine schedule.

Chen et al. 2020, https://arxiv.org/abs/2003.04297
Loss: −log exp(q·k⁺/τ) / (exp(q·k⁺/τ) + Σ_queue exp(q·k/τ))
"""

import copy
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsight.batchnorm import grouped, shuffled
from selfsight.distributed import gather
from selfsight.encoders.base import Encoder
from selfsight.heads import Head, mlp, shape
from selfsight.losses import queue_nce
from selfsight.memory import Queue
from selfsight.methods.base import Batch, Clock, Method, Output
from selfsight.momentum import Teacher
from selfsight.optim import Recipe
from selfsight.ranges import Count, Positive, Share, Whole
from selfsight.views.presets import crops, moco_view

__all__ = ["MoCoV2"]


class MoCoV2(Method):
    """Improved baselines with momentum contrast.

    queue: keys that serve as negatives
    head: projector behind the encoder (table 1): none, linear as in v1, or nonlinear
    layers: linear layers of the nonlinear head
    hidden, dim: widths of the nonlinear head's inner layers (None: the encoder's) and of q and k
    temperature: τ of the loss (table 2)
    momentum: decay of the key encoder
    augment: v1's views, or v2's with blur and stronger colours (table 1)
    schedule: of the learning rate (table 1): v1's steps, or a cosine
    norm_groups: parts of the batch that share BatchNorm statistics, as GPUs do in the paper
    symmetric: let each view be the query once, and add the two losses
    multi_crop: small crops beside the two large ones, each a query too (SwAV table 3)
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        queue: Count = 65536,
        head: Head = "nonlinear",
        layers: Count = 2,
        hidden: Count | None = None,
        dim: Count = 128,
        temperature: Positive = 0.2,
        momentum: Share = 0.999,
        augment: Literal["v1", "v2"] = "v2",
        schedule: Literal["steps", "cosine"] = "cosine",
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
        self.temperature, self.momentum = temperature, momentum
        self.key_views = (1, 0) if symmetric else (1,)  # views that give keys
        self.views = crops(moco_view(1 if augment == "v1" else 2), multi_crop)
        # Differs from the paper: the rate changes with each step, not with each epoch.
        self.recipe = Recipe(
            optimizer="sgd", lr=0.03, weight_decay=1e-4, warmup=0, exempt="none", epochs=200,
            drops=(0.6, 0.8) if schedule == "steps" else (),
        )  # fmt: skip

    def forward(self, batch: Batch, clock: Clock) -> Output:
        ways = [(i, j) for j in self.key_views for i in range(len(batch.views)) if i != j]
        h = {i: self.encoder(batch.views[i]) for i in sorted({i for i, _ in ways})}
        q = {i: self.projector(h_i) for i, h_i in h.items()}
        at = batch.key.seed, batch.key.step
        k = {j: shuffled(self.teacher, batch.views[j], *at) for j in self.key_views}
        losses = [queue_nce(q[i], k[j], self.queue.rows, self.temperature) for i, j in ways]
        loss = len(k) * torch.stack(losses).mean()
        carry = {"k": F.normalize(torch.stack(list(k.values()), 1), dim=2)}
        return Output(loss, embedding=h[0], projections=(q[0], q.get(1, k[1])), carry=carry)

    def after_step(self, carry: dict[str, Tensor], clock: Clock) -> None:
        self.queue.push(gather(carry["k"]).flatten(0, 1))
        # The official code moves the key encoder before its next use: the same weights.
        self.teacher.update(nn.Sequential(self.encoder, self.projector), self.momentum)
