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
from selfsight.distributed import gather, places
from selfsight.encoders.base import Encoder
from selfsight.errors import ConfigError
from selfsight.heads import Head, mlp, shape
from selfsight.instances import Instances
from selfsight.losses import queue_nce
from selfsight.memory import Queue
from selfsight.methods.base import Batch, Clock, Method, Output
from selfsight.momentum import Teacher
from selfsight.optim import Recipe
from selfsight.ranges import Count, Positive, Share, Whole
from selfsight.views.presets import crops, moco_view

__all__ = ["MoCoV1"]


class MoCoV1(Method):
    """Momentum contrast.

    mechanism: where keys come from (figures 2 and 3): a queue filled by a slow copy; a bank of
        each image's query of its last epoch, with the batch's and `queue` random ones of them as
        negatives; or end to end, from the other view by the same network, with the batch as
        negatives
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
        self.instances: Instances | None = None
        if mechanism == "bank":
            self.instances = Instances(samples, widths[-1], negatives=queue, loss="softmax",
                                       temperature=temperature, momentum=0.0)  # fmt: skip
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
        # One view is for the key, but where the bank has it.
        x = batch.views if self.instances is not None else [batch.views[0], *batch.views[2:]]
        h = [self.encoder(x_i) for x_i in x]
        q = [self.projector(h_i) for h_i in h]
        at = batch.key.seed, batch.key.step
        if self.instances is not None:
            losses = [self.instances(q_i, batch.index, *at)[0] for q_i in q]
            k, kept = self.instances.bank.rows[batch.index], q[0]
        else:
            k = kept = shuffled(self.teacher or self.network, batch.views[1], *at)
            # End to end the negatives are the batch's keys, of which one is the positive.
            rows, own = (gather(k), places(k)) if self.teacher is None else (self.queue.rows, None)
            losses = [queue_nce(q_i, k, rows, self.temperature, own) for q_i in q]
        carry = {"index": batch.index, "k": F.normalize(kept.detach(), dim=1)}
        return Output(torch.stack(losses).mean(), h[0], projections=(q[0], k), carry=carry)

    def after_step(self, carry: dict[str, Tensor], clock: Clock) -> None:
        if self.instances is not None:
            self.instances.bank.write(gather(carry["index"]), gather(carry["k"]))
        if self.teacher is not None:
            self.queue.push(gather(carry["k"]))
            # The official code moves the key encoder before its next use: the same weights.
            self.teacher.update(self.network, self.momentum)
