"""ReSSL: see a strong view as near to older images as a slow copy sees a weak view.

Zheng et al. 2021, https://arxiv.org/abs/2107.09282
Loss: −Σ_k softmax(t̂·Q/τ_t)_k log softmax(ẑ·Q/τ_s)_k over the queue Q, mean over crops
"""

import copy
from dataclasses import replace
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsight.batchnorm import grouped, shuffled
from selfsight.distributed import gather
from selfsight.encoders.base import Encoder
from selfsight.heads import Head, mlp, shape
from selfsight.losses import relation_consistency
from selfsight.memory import Queue
from selfsight.methods.base import Batch, Clock, Method, Output
from selfsight.momentum import Teacher
from selfsight.optim import Recipe
from selfsight.ranges import Count, Positive, Range, Share
from selfsight.views.presets import moco_view
from selfsight.views.spec import View

__all__ = ["ReSSL"]


class ReSSL(Method):
    """Relational self-supervised learning.

    queue: older outputs of the teacher, to which images are compared
    teacher_view: weak (crop and flip), or contrastive as the student's
    temperature, teacher_temperature: τ_s and τ_t; the teacher's should be the lower
    momentum: decay of the teacher
    head: projector behind the encoder: none, linear or nonlinear
    layers, hidden: linear layers of the nonlinear head, and its inner width (None: the encoder's)
    dim: width of z
    norm_groups: parts of the batch that share BatchNorm statistics, as GPUs do in the paper; the
        teacher's images are dealt to them anew
    multi_crop: smaller crops for the student beside its first, of 192, 160, 128 and 96 pixels in
        this order
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        queue: Count = 131072,
        teacher_view: Literal["weak", "contrastive"] = "weak",
        temperature: Positive = 0.1,
        teacher_temperature: Positive = 0.04,
        momentum: Share = 0.999,
        head: Head = "nonlinear",
        layers: Count = 2,
        hidden: Count | None = 4096,
        dim: Count = 512,
        norm_groups: Count = 8,
        multi_crop: Annotated[int, Range(0, 4)] = 0,
    ) -> None:
        super().__init__(encoder)
        widths = shape(head, encoder.dim, hidden, layers, dim)
        self.projector = mlp(*widths, norm=False)
        grouped(encoder, norm_groups)
        self.teacher = Teacher(copy.deepcopy(nn.Sequential(encoder, self.projector)))
        self.queue = Queue.random(queue, widths[-1])
        self.temperature, self.teacher_temperature = temperature, teacher_temperature
        self.momentum = momentum
        strong, weak = moco_view(2), View(crop=(0.2, 1.0), jitter_p=0.0, gray=0.0, blur=0.0)
        small = [replace(strong, size=side, crop=(0.2 * side / 224, side / 224))
                 for side in (192, 160, 128, 96)[:multi_crop]]  # fmt: skip
        self.views = [strong, weak if teacher_view == "weak" else strong, *small]
        # Differs from the paper: the official code decays the scale of the BatchNorm in a
        # residual network's shortcuts, which its search by names misses; here no norm decays.
        self.recipe = Recipe(optimizer="sgd", lr=0.05, weight_decay=1e-4, warmup=5, epochs=200)

    def forward(self, batch: Batch, clock: Clock) -> Output:
        x, x_t, *small = batch.views
        h = [self.encoder(x_i) for x_i in (x, *small)]
        z = [self.projector(h_i) for h_i in h]
        t = shuffled(self.teacher, x_t, batch.key.seed, batch.key.step)
        taus = (self.temperature, self.teacher_temperature)
        losses = [relation_consistency(z_i, t, self.queue.rows, *taus) for z_i in z]
        carry = {"t": F.normalize(t, dim=1)}
        return Output(torch.stack(losses).mean(), h[0], projections=(z[0], t), carry=carry)

    def after_step(self, carry: dict[str, Tensor], clock: Clock) -> None:
        self.queue.push(gather(carry["t"]))
        # The official code moves the teacher before its next use: the same weights.
        self.teacher.update(nn.Sequential(self.encoder, self.projector), self.momentum)
