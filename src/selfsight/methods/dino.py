"""DINO: predict, from any crop, the centred and sharpened outputs of a slow copy on another.

Caron et al. 2021, https://arxiv.org/abs/2104.14294
Loss: mean over pairs of crops of −Σ_k softmax((t − c)/τ_t)_k log softmax(s/τ_s)_k
"""

import copy
from typing import Literal

import torch
from torch import Tensor, nn

from selfsight.distributed import all_sum
from selfsight.encoders.base import Encoder
from selfsight.heads import Directions, dino_head, mlp
from selfsight.losses import assignment_cross_entropy, negative_cosine, sinkhorn
from selfsight.memory import Center
from selfsight.methods.base import Batch, Clock, Method, Output, pairs, per_resolution
from selfsight.momentum import Teacher
from selfsight.optim import Recipe
from selfsight.ranges import Count, Positive, Several, Share, Weight, Whole
from selfsight.schedules import by_epoch, cosine
from selfsight.views.presets import dino_views

__all__ = ["DINO"]


class DINO(Method):
    """Self-distillation with no labels.

    hidden, bottleneck: widths of the head's inner layers and of what is scored
    prototypes: outputs of the head
    momentum: decay of the teacher at the start, raised to 1 by a cosine unless `ramp` is off
    temperature, teacher_temperature: τ_s and τ_t
    warmup_temperature, warmup_epochs: τ_t starts at the first and moves to τ_t over so many epochs
    centring: of the teacher's outputs: by their running mean, by Sinkhorn (table 7), or none
    center_momentum: decay of the running mean
    freeze: epochs during which the last layer rests
    multi_crop: small crops beside the two large ones
    loss: cross entropy, or squared distance of the normalised outputs (table 7)
    predictor: on the student (table 7)
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        hidden: Count = 2048,
        bottleneck: Count = 256,
        prototypes: Several = 65536,
        momentum: Share = 0.996,
        ramp: bool = True,
        temperature: Positive = 0.1,
        teacher_temperature: Positive = 0.04,
        warmup_temperature: Positive = 0.04,
        warmup_epochs: Whole = 0,
        centring: Literal["mean", "sinkhorn", "none"] = "mean",
        center_momentum: Share = 0.9,
        freeze: Weight = 1.0,
        multi_crop: Whole = 8,
        loss: Literal["cross_entropy", "mse"] = "cross_entropy",
        predictor: bool = False,
    ) -> None:
        super().__init__(encoder)
        self.projector = dino_head(encoder.dim, hidden, bottleneck)
        self.last = Directions(bottleneck, prototypes)
        self.teacher = Teacher(copy.deepcopy(nn.Sequential(encoder, self.projector, self.last)))
        widths = (bottleneck, hidden, bottleneck)
        self.predictor = mlp(*widths, bias=False) if predictor else nn.Identity()
        self.center = Center(prototypes, center_momentum)
        self.momentum, self.ramp, self.centring, self.loss = momentum, ramp, centring, loss
        self.temperature, self.freeze = temperature, freeze
        self.teacher_temperature = (warmup_temperature, teacher_temperature, warmup_epochs)
        self.views = dino_views(multi_crop)
        # Differs from the paper: no drop-path in the student.
        self.recipe = Recipe(optimizer="adamw", lr=5e-4, weight_decay=0.04, weight_decay_end=0.4,
                             last=2e-3, betas=(0.9, 0.999), clip=3.0, clip_each=True)  # fmt: skip

    def forward(self, batch: Batch, clock: Clock) -> Output:
        h = per_resolution(self.encoder, batch.views)
        z = self.predictor(self.projector(torch.cat(h)))
        s = self.last(z).chunk(len(h))
        t = self.teacher(torch.cat(batch.views[:2]))
        q = [self.target(t_i, clock.epoch) for t_i in t.chunk(2)]
        losses = [self.distance(s[j], t.chunk(2)[i], q[i]) for i, j in pairs(len(s))]
        entropy = torch.special.entr(torch.cat(q)).sum(1).mean()
        return Output(torch.stack(losses).mean(), h[0], z.chunk(len(h)),
                      {"t": t.mean(0, keepdim=True)}, {"teacher_entropy": entropy})  # fmt: skip

    def target(self, t: Tensor, epoch: int) -> Tensor:
        """The teacher's distribution over prototypes, (N, K)."""
        temperature = by_epoch(*self.teacher_temperature, epoch)
        if self.centring == "sinkhorn":
            return sinkhorn(t, temperature, all_sum=all_sum)
        t = self.center(t) if self.centring == "mean" else t
        return torch.softmax(t / temperature, 1)

    def distance(self, s: Tensor, t: Tensor, q: Tensor) -> Tensor:
        """Of a student's output from a teacher's output t with its distribution q."""
        if self.loss == "mse":
            return 2 + 2 * negative_cosine(s, t)
        return assignment_cross_entropy(s, q, self.temperature)

    def after_backward(self, clock: Clock) -> None:
        if clock.step < self.freeze * clock.per_epoch:
            self.last.weight.grad = None

    def after_step(self, carry: dict[str, Tensor], clock: Clock) -> None:
        self.center.follow(carry["t"])
        decay = cosine(self.momentum, 1.0, clock.progress) if self.ramp else self.momentum
        self.teacher.update(nn.Sequential(self.encoder, self.projector, self.last), decay)

    @property
    def product(self) -> Encoder:
        return self.teacher.encoder
