"""Barlow Twins: make the cross-correlation of two views' features the identity.

Zbontar et al. 2021, https://arxiv.org/abs/2103.03230
Loss: Σ_i (C_ii − 1)² + λ Σ_{i≠j} C_ij², C = BN(z¹)ᵀ BN(z²) / N
"""

from typing import Literal

import torch
from torch import Tensor, nn

from selfsight.distributed import gather
from selfsight.encoders.base import Encoder
from selfsight.heads import mlp
from selfsight.losses import barlow_cross_entropy, barlow_twins
from selfsight.methods.base import Batch, Clock, Method, Output, pairs
from selfsight.optim import Recipe
from selfsight.ranges import Count, Positive, Several, Weight
from selfsight.views.presets import byol_views

__all__ = ["BarlowTwins"]


class BarlowTwins(Method):
    """Redundancy reduction.

    hidden, dim: widths of the projector
    lambd: λ, weight of the off-diagonal terms; 0 leaves the invariance alone (table 5)
    invariance: weight of the diagonal terms; 0 leaves the redundancy alone (table 5)
    normalize: z along the batch, only centred there (C is the covariance), along its features,
        or not (table 5); for the squares
    norm: BatchNorm in the projector (table 5)
    loss: squares, or cross entropies with a temperature (table 5)
    temperature: τ of the cross entropies, which normalise along the batch
    stop_gradient, predictor: on one branch, in turn (table 6)
    other: an architecture, with new weights and a projector of its own, for the second view; ""
        shares the first view's
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        hidden: Count = 8192,
        dim: Several = 8192,
        lambd: Weight = 0.0051,
        invariance: Weight = 1.0,
        normalize: Literal["batch", "centre", "feature", "none"] = "batch",
        norm: bool = True,
        loss: Literal["squares", "cross_entropy"] = "squares",
        temperature: Positive = 0.1,
        stop_gradient: bool = False,
        predictor: bool = False,
        other: str = "",
    ) -> None:
        super().__init__(encoder)
        widths = (hidden, hidden, dim)
        self.projector = mlp(encoder.dim, *widths, bias=not norm, norm=norm, last_bias=False)
        self.predictor = mlp(dim, hidden, dim, bias=False) if predictor else nn.Identity()
        self.other: nn.Module | None = None
        if other:
            second = encoder.fresh(other)
            head = mlp(second.dim, *widths, bias=not norm, norm=norm, last_bias=False)
            self.other = nn.Sequential(second, head)
        self.lambd, self.invariance, self.normalize = lambd, invariance, normalize
        self.loss, self.temperature, self.stop_gradient = loss, temperature, stop_gradient
        self.asymmetric = stop_gradient or predictor
        self.views = byol_views()
        # Differs from the paper: the official gradient lacks a factor of its 32 GPUs. Its decay,
        # 1e-6, and the rate of what has no trust ratio, 0.0048, are for that: converted here.
        self.recipe = Recipe(
            optimizer="lars", lr=0.2, weight_decay=32e-6, last=1e-3, epochs=1000,
            spared_rate=0.0048 / 0.2 / 32,
        )  # fmt: skip

    def forward(self, batch: Batch, clock: Clock) -> Output:
        # Each view has a BatchNorm pass of its own.
        h = self.encoder(batch.views[0])
        shared = nn.Sequential(self.encoder, self.projector)
        follow = shared if self.other is None else self.other
        z = [self.projector(h), *(follow(x) for x in batch.views[1:])]
        p = [self.predictor(z_i) for z_i in z]
        t = [z_i.detach() for z_i in z] if self.stop_gradient else z
        losses = [self.compare(gather(p[i]), gather(t[j]))
                  for i, j in pairs(len(z), len(z)) if i < j or self.asymmetric]  # fmt: skip
        return Output(torch.stack(losses).mean(), embedding=h, projections=tuple(z))

    def compare(self, z1: Tensor, z2: Tensor) -> Tensor:
        """The loss of one pair of views, over the samples of all ranks."""
        if self.loss == "cross_entropy":
            return barlow_cross_entropy(z1, z2, self.lambd, self.temperature)
        return barlow_twins(
            z1, z2, self.lambd, invariance=self.invariance, normalize=self.normalize
        )
