"""BYOL: predict a slow copy's projection of the other view; no negatives.

Grill et al. 2020, https://arxiv.org/abs/2006.07733
Loss: Σ over both directions of 2 − 2 cos(p, t)
"""

import copy
from typing import Literal

import torch
from torch import Tensor, nn

from selfsight.distributed import gather, rank
from selfsight.encoders.base import Encoder
from selfsight.heads import mlp
from selfsight.losses import info_nce, negative_cosine
from selfsight.methods.base import Batch, Clock, Method, Output, pairs
from selfsight.methods.ranges import Count, Positive, Share
from selfsight.momentum import Teacher
from selfsight.optim import Recipe
from selfsight.schedules import cosine
from selfsight.views.presets import byol_views

__all__ = ["BYOL"]


class BYOL(Method):
    """Bootstrap your own latent.

    hidden, dim: widths of projector and predictor (section 3.3)
    momentum: decay of the target at the start; 1 keeps it at its random start and 0 copies
        the online network (table 5a)
    ramp: raise the momentum to 1 by a cosine; table 5a holds it constant
    predictor: put a predictor on the online network (table 5b)
    target: "ema", "stopped" (the online network behind a stop-gradient) or "online"
    beta: weight of SimCLR's negatives (table 5b): 0 is BYOL, 1 InfoNCE
    temperature: τ of those negatives
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        hidden: Count = 4096,
        dim: Count = 256,
        momentum: Share = 0.99,
        ramp: bool = True,
        predictor: bool = True,
        target: Literal["ema", "stopped", "online"] = "ema",
        beta: Share = 0.0,
        temperature: Positive = 0.1,
    ) -> None:
        super().__init__(encoder)
        self.projector = mlp(encoder.dim, hidden, dim, last_bias=False)
        self.predictor = mlp(dim, hidden, dim, last_bias=False) if predictor else nn.Identity()
        # The target starts from weights of its own, as in the official code; where the
        # encoder starts from trained weights, from those.
        start = copy.deepcopy(encoder) if encoder.pretrained else encoder.fresh()
        fresh = nn.Sequential(start, mlp(encoder.dim, hidden, dim, last_bias=False))
        self.teacher = Teacher(fresh) if target == "ema" else None
        self.stopped = target == "stopped"
        self.momentum, self.ramp = momentum, ramp
        self.beta, self.temperature = beta, temperature
        # Differs from the paper: no classifier learns from labels beside the training.
        self.views = byol_views()
        self.recipe = Recipe(optimizer="lars", lr=0.3, weight_decay=1e-6, epochs=300)

    def forward(self, batch: Batch, clock: Clock) -> Output:
        # Each view has a BatchNorm pass of its own, in both networks.
        h = [self.encoder(x) for x in batch.views]
        z = [self.projector(h_i) for h_i in h]
        p = [self.predictor(z_i) for z_i in z]
        t = z if self.teacher is None else [self.teacher(x) for x in batch.views]
        t = [t_i.detach() for t_i in t] if self.stopped else t
        losses = [self.regression(p[j], t[i]) for i, j in pairs(len(p))]
        if self.beta:
            contrasts = [self.contrast(p[j], t[j], t[i]) for i, j in pairs(len(p))]
            losses = [torch.lerp(a, b, self.beta) for a, b in zip(losses, contrasts, strict=True)]
        return Output(torch.stack(losses).sum(), embedding=h[0], projections=tuple(z))

    def regression(self, p: Tensor, t: Tensor) -> Tensor:
        """‖p̂ − t̂‖² = 2 − 2 cos, in [0, 4] (equation 2)."""
        return 2 + 2 * negative_cosine(p, t)

    def contrast(self, p: Tensor, same: Tensor, other: Tensor) -> Tensor:
        """2τ InfoNCE: with weight β it leaves 2 cos whole and adds β 2τ log Σ e^{s/τ}."""
        candidates = torch.cat([gather(same), gather(other)])
        own = len(p) * rank() + torch.arange(len(p), device=p.device)
        positive = own + len(candidates) // 2
        nce = info_nce(p, candidates, positive, temperature=self.temperature, exclude=own)
        return 2 * self.temperature * nce

    def after_step(self, carry: dict[str, Tensor], clock: Clock) -> None:
        if self.teacher is not None:
            decay = cosine(self.momentum, 1.0, clock.progress) if self.ramp else self.momentum
            self.teacher.update(nn.Sequential(self.encoder, self.projector), decay)
