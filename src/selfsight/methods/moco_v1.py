"""MoCo v1: tell an image's other view from a queue of older images, encoded by a slow copy.

He et al. 2019, https://arxiv.org/abs/1911.05722
Loss: −log exp(q·k⁺/τ) / (exp(q·k⁺/τ) + Σ_queue exp(q·k/τ))
"""

import copy
from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor, nn

from selfsight.batchnorm import grouped, shuffled
from selfsight.distributed import gather
from selfsight.encoders.base import Encoder
from selfsight.losses import queue_nce
from selfsight.memory import Queue
from selfsight.methods.base import Batch, Clock, Method, Output
from selfsight.methods.ranges import Count, Positive, Share
from selfsight.momentum import Teacher
from selfsight.optim import Recipe
from selfsight.views.presets import moco_view

__all__ = ["MoCoV1"]


class MoCoV1(Method):
    """Momentum contrast.

    queue: keys that serve as negatives
    dim: width of the projection, one linear layer
    temperature: τ of the loss
    momentum: decay of the key encoder
    norm_groups: parts of the batch that share BatchNorm statistics, as GPUs do in the paper; keys
        are dealt to them anew, so that the statistics do not tell which key belongs to a query
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        queue: Count = 65536,
        dim: Count = 128,
        temperature: Positive = 0.07,
        momentum: Share = 0.999,
        norm_groups: Count = 8,
    ) -> None:
        super().__init__(encoder)
        self.projector = nn.Linear(encoder.dim, dim)
        grouped(encoder, norm_groups)
        self.teacher = Teacher(copy.deepcopy(nn.Sequential(encoder, self.projector)))
        self.queue = Queue.random(queue, dim)
        self.temperature, self.momentum = temperature, momentum
        self.views = [replace(moco_view(1), count=2)]
        # Differs from the paper: the rate changes with each step, not with each epoch.
        self.recipe = Recipe(
            optimizer="sgd", lr=0.03, weight_decay=1e-4, warmup=0, drops=(0.6, 0.8),
            exempt="none", epochs=200,
        )  # fmt: skip

    def forward(self, batch: Batch, clock: Clock) -> Output:
        x_q, x_k = batch.views
        h = self.encoder(x_q)
        q = self.projector(h)
        k = shuffled(self.teacher, x_k, batch.key.seed, batch.key.step)
        loss = queue_nce(q, k, self.queue.rows, self.temperature)
        carry = {"k": F.normalize(k, dim=1)}
        return Output(loss, embedding=h, projections=(q, k), carry=carry)

    def after_step(self, carry: dict[str, Tensor], clock: Clock) -> None:
        self.queue.push(gather(carry["k"]))
        # The official code moves the key encoder before its next use: the same weights.
        self.teacher.update(nn.Sequential(self.encoder, self.projector), self.momentum)
