"""MoCo with alignment and uniformity: a query near its key, and far from a queue and its batch.

Wang and Isola 2020, https://arxiv.org/abs/2005.10242
Loss: λ_a mean ‖q̂ − k̂‖^α + λ_u log mean exp(−t d²), d from query to queue and query to query
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
from selfsight.losses import alignment, uniformity
from selfsight.memory import Queue
from selfsight.methods.base import Batch, Clock, Method, Output
from selfsight.momentum import Teacher
from selfsight.optim import Recipe
from selfsight.ranges import Count, Positive, Share, Weight, Whole
from selfsight.views.presets import crops, moco_view

__all__ = ["MoCoAlignUniform"]


class MoCoAlignUniform(Method):
    """Alignment and uniformity over MoCo's queue, as in the paper's runs on ImageNet.

    alignment, uniformity: weights of the two terms
    alpha: power of the distance between query and key
    t: of the potential exp(−t d²) between two images at distance d
    queue: keys from which queries are kept away, beside one another
    momentum: decay of the key encoder
    augment: v1's views, or v2's with blur and stronger colours
    schedule: of the learning rate: a tenth after 160, 190 and 220 of 240 epochs, or a cosine
    head: projector behind the encoder: none, linear as for ImageNet-100, or nonlinear
    layers, hidden: linear layers of the nonlinear head, and its inner width (None: the encoder's)
    dim: width of the projection
    norm_groups: parts of the batch that share BatchNorm statistics, as GPUs do in the paper
    multi_crop: small crops beside the two large ones, each a query too
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        alignment: Weight = 3.0,
        uniformity: Weight = 1.0,
        alpha: Positive = 2.0,
        t: Positive = 3.0,
        queue: Count = 65536,
        momentum: Share = 0.999,
        augment: Literal["v1", "v2"] = "v2",
        schedule: Literal["steps", "cosine"] = "cosine",
        head: Head = "nonlinear",
        layers: Count = 2,
        hidden: Count | None = None,
        dim: Count = 128,
        norm_groups: Count = 8,
        multi_crop: Whole = 0,
    ) -> None:
        super().__init__(encoder)
        widths = shape(head, encoder.dim, hidden, layers, dim)
        self.projector = mlp(*widths, norm=False)
        grouped(encoder, norm_groups)
        self.teacher = Teacher(copy.deepcopy(nn.Sequential(encoder, self.projector)))
        self.queue = Queue.random(queue, widths[-1])
        self.alignment, self.alpha = alignment, alpha
        self.uniformity, self.t = uniformity, t
        self.momentum = momentum
        self.views = crops(moco_view(1 if augment == "v1" else 2), multi_crop)
        self.recipe = Recipe(
            optimizer="sgd", lr=0.03, weight_decay=1e-4, warmup=0, exempt="none", epochs=200,
            drops=(2 / 3, 19 / 24, 11 / 12) if schedule == "steps" else (),
        )  # fmt: skip

    def forward(self, batch: Batch, clock: Clock) -> Output:
        x_q, x_k, *small = batch.views
        h = [self.encoder(x) for x in (x_q, *small)]
        q = [self.projector(h_i) for h_i in h]
        k = shuffled(self.teacher, x_k, batch.key.seed, batch.key.step)
        near = torch.stack([alignment(q_i, k, self.alpha) for q_i in q]).mean()
        # Differs from the paper: the mean is over the pairs of the whole batch, where the
        # official code has each GPU take the logarithm of its own.
        even = torch.stack([uniformity(gather(q_i), self.t, self.queue.rows) for q_i in q]).mean()
        loss = self.alignment * near + self.uniformity * even
        carry = {"k": F.normalize(k, dim=1)}
        metrics = {"alignment": near.detach(), "uniformity": even.detach()}
        return Output(loss, h[0], projections=(q[0], k), carry=carry, metrics=metrics)

    def after_step(self, carry: dict[str, Tensor], clock: Clock) -> None:
        self.queue.push(gather(carry["k"]))
        # The official code moves the key encoder before its next use: the same weights.
        self.teacher.update(nn.Sequential(self.encoder, self.projector), self.momentum)
