"""MoCo v1: tell an image's other view from a queue of older images, encoded by a slow copy.

He et al. 2019, https://arxiv.org/abs/1911.05722
Loss: −log exp(q·k⁺/τ) / (exp(q·k⁺/τ) + Σ_queue exp(q·k/τ))
"""

import copy
from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsight.batchnorm import grouped, shuffled
from selfsight.distributed import gather, rank
from selfsight.encoders.base import Encoder
from selfsight.errors import ConfigError
from selfsight.heads import Head, mlp, shape
from selfsight.losses import queue_nce
from selfsight.memory import Bank, Queue
from selfsight.methods.base import Batch, Clock, Method, Output
from selfsight.methods.ranges import Count, Positive, Share, Whole
from selfsight.momentum import Teacher
from selfsight.optim import Recipe
from selfsight.views.presets import crops, moco_view

__all__ = ["MoCoV1"]


class MoCoV1(Method):
    """Momentum contrast.

    mechanism: where keys come from (figures 2 and 3): a queue filled by a slow copy; a bank of
        each image's query of its last epoch, with `queue` random ones of them as negatives; or
        end to end, from the other view by the same network, with the batch as negatives
    queue: keys that serve as negatives
    head: projector behind the encoder: none, linear or nonlinear
    layers: linear layers of the nonlinear head
    hidden, dim: widths of the nonlinear head's inner layers (None: the encoder's) and of q and k
    temperature: τ of the loss
    momentum: decay of the key encoder
    norm_groups: parts of the batch that share BatchNorm statistics, as GPUs do in the paper; keys
        are dealt to them anew, so that the statistics do not tell which key belongs to a query
    multi_crop: small crops beside the large ones, each a query too (SwAV table 3)
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        mechanism: Literal["queue", "bank", "end_to_end"] = "queue",
        queue: Count = 65536,
        head: Head = "linear",
        layers: Count = 2,
        hidden: Count | None = None,
        dim: Count = 128,
        temperature: Positive = 0.07,
        momentum: Share = 0.999,
        norm_groups: Count = 8,
        multi_crop: Whole = 0,
        samples: int = 0,
    ) -> None:
        super().__init__(encoder)
        if mechanism == "bank" and samples < 1:
            raise ConfigError("the bank of moco_v1 needs samples=, the number of images")
        widths = shape(head, encoder.dim, hidden, layers, dim)
        self.projector = mlp(*widths, norm=False)
        grouped(encoder, norm_groups)
        slow = mechanism == "queue"
        self.teacher = Teacher(copy.deepcopy(self.network)) if slow else None
        self.queue = Queue.random(queue if slow else 0, widths[-1])
        self.bank = Bank.random(samples if mechanism == "bank" else 0, widths[-1])
        self.mechanism, self.negatives = mechanism, queue
        self.temperature, self.momentum = temperature, momentum
        large, *small = crops(moco_view(1), multi_crop)
        self.views = [replace(large, count=1) if mechanism == "bank" else large, *small]
        # Differs from the paper: the rate changes with each step, not with each epoch.
        self.recipe = Recipe(optimizer="sgd", lr=0.03, weight_decay=1e-4, warmup=0,
                             drops=(0.6, 0.8), exempt="none", epochs=200)  # fmt: skip

    @property
    def network(self) -> nn.Sequential:
        return nn.Sequential(self.encoder, self.projector)

    def forward(self, batch: Batch, clock: Clock) -> Output:
        first, *others = batch.views
        small = others if self.mechanism == "bank" else others[1:]
        h = [self.encoder(x) for x in (first, *small)]
        q = [self.projector(h_i) for h_i in h]
        k, negatives, own = self.keys(batch)
        losses = [queue_nce(q_i, k, negatives, self.temperature, own) for q_i in q]
        kept = F.normalize((q[0] if self.mechanism == "bank" else k).detach(), dim=1)
        return Output(torch.stack(losses).mean(), embedding=h[0], projections=(q[0], k),
                      carry={"index": batch.index, "k": kept})  # fmt: skip

    def keys(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
        """Each query's key, the negatives, and which of these is the key itself."""
        seed, step = batch.key.seed, batch.key.step
        if self.mechanism == "bank":
            return self.bank.rows[batch.index], self.bank.drawn(seed, step, self.negatives), None
        k = shuffled(self.teacher or self.network, batch.views[1], seed, step)
        if self.mechanism == "queue":
            return k, self.queue.rows, None
        return k, gather(k), len(k) * rank() + torch.arange(len(k), device=k.device)

    def after_step(self, carry: dict[str, Tensor], clock: Clock) -> None:
        if self.mechanism == "bank":
            self.bank.write(gather(carry["index"]), gather(carry["k"]))
        if self.teacher is not None:
            self.queue.push(gather(carry["k"]))
            # The official code moves the key encoder before its next use: the same weights.
            self.teacher.update(self.network, self.momentum)
