"""DINO: predict, from any crop, the centred and sharpened outputs of a slow copy on another.

Caron et al. 2021, https://arxiv.org/abs/2104.14294
Loss: mean over pairs of crops of −Σ_k softmax((t − c)/τ_t)_k log softmax(s/τ_s)_k
"""

import copy
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from selfsight.distributed import all_sum, world
from selfsight.encoders.base import Encoder
from selfsight.heads import Directions, mlp
from selfsight.losses import assignment_cross_entropy, full_precision, negative_cosine, sinkhorn
from selfsight.methods.base import Batch, Clock, Method, Output, pairs, per_resolution
from selfsight.momentum import Teacher
from selfsight.optim import Recipe
from selfsight.schedules import cosine, linear
from selfsight.views.presets import byol_views

__all__ = ["DINO"]


class DINO(Method):
    """Self-distillation with no labels.

    hidden, bottleneck: widths of the head's inner layers and of what is scored
    prototypes: outputs of the head
    momentum: decay of the teacher at the start, raised to 1 by a cosine unless `ramp` is off
    temperature, teacher_temperature: τ_s and τ_t
    cold, cold_epochs: τ_t starts at `cold` and moves to τ_t over so many epochs
    centring: of the teacher's outputs: by their running mean, by Sinkhorn, or none (table 7)
    center_momentum: decay of the running mean
    freeze: epochs during which the last layer rests
    multi_crop: small crops beside the two large ones
    loss: cross entropy, or squared distance of the normalised outputs (table 7)
    predictor: on the student (table 7)
    """

    center: Tensor

    def __init__(
        self,
        encoder: Encoder,
        *,
        hidden: int = 2048,
        bottleneck: int = 256,
        prototypes: int = 65536,
        momentum: float = 0.996,
        ramp: bool = True,
        temperature: float = 0.1,
        teacher_temperature: float = 0.04,
        cold: float = 0.04,
        cold_epochs: int = 0,
        centring: Literal["mean", "sinkhorn", "none"] = "mean",
        center_momentum: float = 0.9,
        freeze: float = 1.0,
        multi_crop: int = 8,
        loss: Literal["cross_entropy", "mse"] = "cross_entropy",
        predictor: bool = False,
    ) -> None:
        super().__init__(encoder)
        self.projector = mlp(
            encoder.dim, hidden, hidden, bottleneck, norm=False, activation=nn.GELU
        )
        self.last = Directions(bottleneck, prototypes)
        self.predictor: nn.Module = nn.Identity()
        start = copy.deepcopy(nn.Sequential(encoder, self.projector, self.last))
        self.teacher = Teacher(start)
        if predictor:
            self.predictor = mlp(bottleneck, hidden, bottleneck)
        self.register_buffer("center", torch.zeros(1, prototypes))
        self.momentum, self.ramp, self.centring, self.loss = momentum, ramp, centring, loss
        self.temperature, self.teacher_temperature = temperature, teacher_temperature
        self.cold, self.cold_epochs = cold, cold_epochs
        self.center_momentum, self.freeze = center_momentum, freeze
        # Differs from the paper: no drop-path in the student.
        large, small = ((0.4, 1.0), (0.05, 0.4)) if multi_crop else ((0.14, 1.0), (0.05, 0.4))
        self.views = [replace(view, crop=large) for view in byol_views()]
        if multi_crop:
            view = replace(self.views[0], crop=small, size=96, blur=0.5, count=multi_crop)
            self.views.append(view)
        self.recipe = Recipe(
            optimizer="adamw", lr=5e-4, weight_decay=0.04, weight_decay_end=0.4, last=2e-3,
            betas=(0.9, 0.999), clip=3.0, clip_each=True,
        )  # fmt: skip

    def forward(self, batch: Batch, clock: Clock) -> Output:
        h = per_resolution(self.encoder, batch.views)
        z = self.predictor(self.projector(torch.cat(h)))
        s = self.last(z).chunk(len(h))
        t = self.teacher(torch.cat(batch.views[:2])).chunk(2)
        q = [self.target(t_i, clock) for t_i in t]
        losses = [self.distance(s[j], t[i], q[i]) for i, j in pairs(len(s))]
        entropy = torch.special.entr(torch.cat(q)).sum(1).mean()
        return Output(
            torch.stack(losses).mean(), embedding=h[0], projections=z.chunk(len(h)),
            carry={"t": torch.cat(t).mean(0, keepdim=True)},
            metrics={"teacher_entropy": entropy},
        )  # fmt: skip

    @full_precision
    def target(self, t: Tensor, clock: Clock) -> Tensor:
        """The teacher's distribution over prototypes, (N, K)."""
        part = min(1.0, clock.epoch / self.cold_epochs) if self.cold_epochs else 1.0
        temperature = linear(self.cold, self.teacher_temperature, part)
        if self.centring == "sinkhorn":
            return sinkhorn(t, temperature, all_sum=all_sum)
        center = self.center.to(t) if self.centring == "mean" else 0.0
        return torch.softmax((t - center) / temperature, 1)

    def distance(self, s: Tensor, t: Tensor, q: Tensor) -> Tensor:
        """Of a student's output from a teacher's output t with its distribution q."""
        if self.loss == "mse":
            return 2 + 2 * negative_cosine(s, t)
        return assignment_cross_entropy(s, q, self.temperature)

    def after_backward(self, clock: Clock) -> None:
        if clock.step < self.freeze * clock.per_epoch:
            self.last.weight.grad = None

    def after_step(self, carry: dict[str, Tensor], clock: Clock) -> None:
        mean = all_sum(carry["t"].mean(0, keepdim=True)) / world()
        self.center.lerp_(mean.to(self.center), 1 - self.center_momentum)
        decay = cosine(self.momentum, 1.0, clock.progress) if self.ramp else self.momentum
        self.teacher.update(nn.Sequential(self.encoder, self.projector, self.last), decay)

    @property
    def product(self) -> Encoder:
        encoder = self.teacher.network.get_submodule("0")
        assert isinstance(encoder, Encoder)
        return encoder
