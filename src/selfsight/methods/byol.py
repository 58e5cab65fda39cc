"""BYOL: predict a slow copy's projection of the other view; no negatives.

Grill et al. 2020, https://arxiv.org/abs/2006.07733
Loss: Σ over both directions of 2 − 2 cos(p, t)
"""

import copy
from typing import Literal

import torch
from torch import Tensor, nn

from selfsight.distributed import gather, places
from selfsight.encoders.base import Encoder
from selfsight.errors import ConfigError
from selfsight.heads import Head, mlp, shape
from selfsight.losses import info_nce, negative_cosine
from selfsight.methods.base import Batch, Clock, Method, Output, pairs
from selfsight.momentum import Teacher
from selfsight.optim import Recipe
from selfsight.ranges import Count, Positive, Share, Whole
from selfsight.schedules import cosine
from selfsight.views.presets import byol_views, crops

__all__ = ["BYOL"]

# By the published run's epochs: momentum, rate and weight decay.
_LENGTHS = {40: (0.97, 0.45, 1e-6), 100: (0.99, 0.45, 1e-6),
            300: (0.99, 0.3, 1e-6), 1000: (0.996, 0.2, 1.5e-6)}  # fmt: skip


class BYOL(Method):
    """Bootstrap your own latent.

    head, layers: projector behind the encoder: none, linear or nonlinear with so many layers
    hidden, dim: widths of projector and predictor (section 3.3)
    length: epochs of the published run whose momentum, rate and weight decay are taken
    momentum: decay of the target at the start (None: the published run's); 1 keeps it at its
        random start and 0 copies the online network (table 5a)
    ramp: raise the momentum to 1 by a cosine; table 5a holds it constant
    predictor: put a predictor on the online network (table 5b)
    predictor_layers: 1 makes it linear
    target: "ema", "stopped" (the online network behind a stop-gradient) or "online"
    beta: weight of SimCLR's negatives (table 5b): 0 is BYOL, 1 InfoNCE
    temperature: τ of those negatives
    multi_crop: small crops beside the two large ones, which alone are targets
    other: an architecture, with new weights and a projector of its own, for the second view
        (VICReg's table 5); "" shares the first view's. Each is then the other's target, and
        `target` is not "ema", which copies one network
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        head: Head = "nonlinear",
        layers: Count = 2,
        hidden: Count = 4096,
        dim: Count = 256,
        length: Literal[40, 100, 300, 1000] = 300,
        momentum: Share | None = None,
        ramp: bool = True,
        predictor: bool = True,
        predictor_layers: Count = 2,
        target: Literal["ema", "stopped", "online"] = "ema",
        beta: Share = 0.0,
        temperature: Positive = 0.1,
        multi_crop: Whole = 0,
        other: str = "",
    ) -> None:
        super().__init__(encoder)
        if other and (target == "ema" or head == "none"):
            raise ConfigError("byol with --method.other needs a head, and --method.target stopped")
        widths = shape(head, encoder.dim, hidden, layers, dim)
        follow = shape("nonlinear", widths[-1], hidden, predictor_layers, widths[-1])
        self.projector = mlp(*widths, last_bias=False)
        self.predictor = mlp(*follow, last_bias=False) if predictor else nn.Identity()
        # The target starts from weights of its own, as in the official code; where the
        # encoder starts from trained weights, from those.
        start = copy.deepcopy(encoder) if encoder.pretrained else encoder.fresh()
        fresh = nn.Sequential(start, mlp(*widths, last_bias=False))
        self.teacher = Teacher(fresh) if target == "ema" else None
        self.other: nn.Module | None = None
        if other:
            second = encoder.fresh(other)
            self.other = nn.Sequential(second, mlp(second.dim, *widths[1:], last_bias=False))
        published, lr, decay = _LENGTHS[length]
        self.momentum, self.ramp = published if momentum is None else momentum, ramp
        self.stopped, self.beta, self.temperature = target == "stopped", beta, temperature
        # Differs from the paper: no classifier learns from labels beside the training.
        self.views = crops(byol_views(), multi_crop)
        self.recipe = Recipe(optimizer="lars", lr=lr, weight_decay=decay, epochs=length)

    def forward(self, batch: Batch, clock: Clock) -> Output:
        # Each view has a BatchNorm pass of its own, in both networks.
        h = self.encoder(batch.views[0])
        own = nn.Sequential(self.encoder, self.projector)
        second = own if self.other is None else self.other
        z = [self.projector(h), second(batch.views[1]), *(own(x) for x in batch.views[2:])]
        p = [self.predictor(z_i) for z_i in z]
        t = z[:2] if self.teacher is None else [self.teacher(x) for x in batch.views[:2]]
        t = [t_i.detach() for t_i in t] if self.stopped else t
        losses = [self.distance(p[j], t[i], t[1 - i]) for i, j in pairs(len(p))]
        return Output(2 * torch.stack(losses).mean(), embedding=h, projections=tuple(z))

    def distance(self, p: Tensor, t: Tensor, same: Tensor) -> Tensor:
        """‖p̂ − t̂‖² = 2 − 2 cos (equation 2) towards, as β says, 2τ InfoNCE among both targets,
        which leaves 2 cos whole and adds 2τ log Σ e^{s/τ}."""
        loss = 2 + 2 * negative_cosine(p, t)
        if not self.beta:
            return loss
        candidates = torch.cat([gather(same), gather(t)])
        own = places(p)
        positive = own + len(candidates) // 2
        nce = info_nce(p, candidates, positive, temperature=self.temperature, exclude=own)
        return torch.lerp(loss, 2 * self.temperature * nce, self.beta)

    def after_step(self, carry: dict[str, Tensor], clock: Clock) -> None:
        if self.teacher is not None:
            decay = cosine(self.momentum, 1.0, clock.progress) if self.ramp else self.momentum
            self.teacher.update(nn.Sequential(self.encoder, self.projector), decay)
