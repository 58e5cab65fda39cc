"""DCL: SimCLR with the positive pair taken out of the denominator, so small batches teach too.

Yeh et al. 2021, https://arxiv.org/abs/2110.06848
Loss: Σ over both directions of −w s⁺/τ + log Σ_{images j≠i} exp(s(i,j)/τ), s the cosine of z
"""

from typing import Literal

import torch
from torch import Tensor

from selfsight.distributed import gather
from selfsight.encoders.base import Encoder
from selfsight.heads import Head, mlp, shape
from selfsight.losses import cosine, coupling, decoupled_nce, mises_fisher, variation
from selfsight.methods.base import Batch, Clock, Method, Output, pairs, per_resolution, sides
from selfsight.optim import Recipe
from selfsight.ranges import Count, Positive, Weight, Whole
from selfsight.views.presets import crops, simclr_view

__all__ = ["DCL"]


class DCL(Method):
    """Decoupled contrastive learning.

    temperature: τ of the loss
    weight: of the positive pairs: none, or vmf (DCLW, section 3.3): 2 − N softmax(s⁺/σ) over the
        batch, the larger the further apart a pair is
    sigma: σ of that weight
    stop_gradient: hold the weight constant in the gradient
    head: projector behind the encoder: none, linear or nonlinear
    layers: linear layers of the nonlinear head
    hidden, dim: widths of the nonlinear head's inner layers (None: the encoder's) and of z
    strength: of the colour jitter; 0.5 for CIFAR-10
    multi_crop: small crops beside two crops of 160/224; 0 for two full views
    mean: average over the 2N anchors instead of adding two directions
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        temperature: Positive = 0.1,
        weight: Literal["none", "vmf"] = "none",
        sigma: Positive = 0.5,
        stop_gradient: bool = False,
        head: Head = "nonlinear",
        layers: Count = 2,
        hidden: Count | None = None,
        dim: Count = 128,
        strength: Weight = 1.0,
        multi_crop: Whole = 0,
        mean: bool = False,
    ) -> None:
        super().__init__(encoder)
        widths = shape(head, encoder.dim, hidden, layers, dim)
        norm: Literal["scale", "none"] = "none" if head == "none" else "scale"
        self.projector = mlp(*widths, last_bias=norm == "none", last_norm=norm)
        self.temperature, self.scale = temperature, 1 if mean else 2
        self.weight, self.sigma, self.stop_gradient = weight, sigma, stop_gradient
        self.views = crops(simclr_view(strength, size=160 if multi_crop else 224), multi_crop)
        self.recipe = Recipe(optimizer="lars", lr=0.3, weight_decay=1e-6, epochs=200)

    def forward(self, batch: Batch, clock: Clock) -> Output:
        h = per_resolution(self.encoder, batch.views)
        z = self.projector(torch.cat(h)).chunk(len(h))
        losses = [self.contrast(z[i], z[j]) for i, j in pairs(len(z)) if i < j]
        loss = self.scale * torch.stack(losses).mean()
        q = gather(coupling(*sides(z[0].detach(), z[1].detach()), temperature=self.temperature))
        metrics = {"coupling": q.mean(), "coupling_variation": variation(q)}
        return Output(loss, embedding=h[0], projections=z, metrics=metrics)

    def contrast(self, z1: Tensor, z2: Tensor) -> Tensor:
        z, partner, candidates, own, owners = sides(z1, z2)
        w = None
        if self.weight == "vmf":
            s = cosine(z, partner)
            w = mises_fisher(s, gather(s), self.sigma)
            # The paper does not say whether w's gradient counts, and published code does either.
            w = w.detach() if self.stop_gradient else w
        return decoupled_nce(
            z, partner, candidates, own, owners, temperature=self.temperature, weight=w
        )
