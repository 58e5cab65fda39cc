"""VICReg: keep two views' embeddings alike, each feature varying, and features uncorrelated.

Bardes et al. 2021, https://arxiv.org/abs/2105.04906
Loss: 25 mean (z¹ − z²)² + 25 · ½ Σ_views mean_d max(0, 1 − σ_d) + Σ_views Σ_{i≠j} Cov_ij² / D
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsight.distributed import gather
from selfsight.encoders.base import Encoder
from selfsight.errors import ConfigError
from selfsight.heads import mlp
from selfsight.losses import covariance_penalty, full_precision, variance_hinge
from selfsight.methods.base import Batch, Clock, Method, Output, pairs
from selfsight.momentum import Teacher
from selfsight.optim import Recipe
from selfsight.ranges import Count, Several, Share, Weight
from selfsight.views.presets import byol_views

__all__ = ["VICReg"]


class VICReg(Method):
    """Variance, invariance and covariance regularisation.

    hidden, dim: widths of the expander
    invariance, variance, covariance: weights of the terms; table 4 sets some to 0
    norm: BatchNorm in the expander (table 4)
    predictor: on the branch that is compared with the other (table 4)
    stop_gradient: on the other (table 4)
    momentum: decay of a slow copy that makes the other branch (table 4); 0 for none
    other: an architecture, with new weights and an expander of its own, for the second view
        (table 5); "" shares the first view's. Not beside `momentum`
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        hidden: Count = 8192,
        dim: Several = 8192,
        invariance: Weight = 25.0,
        variance: Weight = 25.0,
        covariance: Weight = 1.0,
        norm: bool = True,
        predictor: bool = False,
        stop_gradient: bool = False,
        momentum: Share = 0.0,
        other: str = "",
    ) -> None:
        super().__init__(encoder)
        if momentum and other:
            raise ConfigError("vicreg follows one encoder: --method.momentum excludes other")

        def expander(width: int) -> nn.Sequential:
            return mlp(width, hidden, hidden, dim, norm=norm, last_bias=False)

        self.expander = expander(encoder.dim)
        self.predictor = mlp(dim, hidden, dim, norm=norm) if predictor else nn.Identity()
        self.teacher: Teacher | None = None
        if momentum:
            start = copy.deepcopy(nn.Sequential(encoder, self.expander))
            self.teacher = Teacher(start)
        self.other: nn.Module | None = None
        if other:
            second = encoder.fresh(other)
            self.other = nn.Sequential(second, expander(second.dim))
        self.invariance, self.variance, self.covariance = invariance, variance, covariance
        self.stop_gradient, self.momentum = stop_gradient, momentum
        self.views = byol_views()
        self.recipe = Recipe(optimizer="lars", lr=0.2, weight_decay=1e-6, last=1e-3, epochs=1000)

    def forward(self, batch: Batch, clock: Clock) -> Output:
        # Each view has a BatchNorm pass of its own.
        h = self.encoder(batch.views[0])
        shared = nn.Sequential(self.encoder, self.expander)
        follow = shared if self.other is None else self.other
        z = [self.expander(h), *(follow(x) for x in batch.views[1:])]
        p = [self.predictor(z_i) for z_i in z]
        t = z if self.teacher is None else [self.teacher(x) for x in batch.views]
        t = [t_i.detach() for t_i in t] if self.stop_gradient else t
        # Differs from the paper: as in the official code the invariance is a mean over
        # features as well, and the variance terms are averaged over views, not added.
        s = torch.stack([self.distance(p[i], t[j]) for i, j in pairs(len(z), len(z))]).mean()
        everyone = [gather(z_i) for z_i in z]
        v = torch.stack([variance_hinge(z_i) for z_i in everyone]).mean()
        c = 2 * torch.stack([covariance_penalty(z_i) for z_i in everyone]).mean()
        loss = self.invariance * s + self.variance * v + self.covariance * c
        metrics = {"invariance": s.detach(), "variance": v.detach(), "covariance": c.detach()}
        return Output(loss, embedding=h, projections=tuple(z), metrics=metrics)

    @full_precision
    def distance(self, p: Tensor, t: Tensor) -> Tensor:
        return F.mse_loss(p, t)

    def after_step(self, carry: dict[str, Tensor], clock: Clock) -> None:
        if self.teacher is not None:
            self.teacher.update(nn.Sequential(self.encoder, self.expander), self.momentum)
