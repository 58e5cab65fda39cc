"""Simple contrastive loss: push all other images away equally hard, or the nearest alone.

Wang and Liu 2021, https://arxiv.org/abs/2012.09740
Loss: −s⁺ + λ Σ s⁻, or −log e^{s⁺/τ} / (e^{s⁺/τ} + Σ e^{s⁻/τ}), over all negatives or the nearest
"""

from typing import Literal

import torch
from torch import Tensor

from selfsight.encoders.base import Encoder
from selfsight.heads import Head, mlp, shape
from selfsight.losses import hard_nce, simple_contrast
from selfsight.methods.base import Batch, Clock, Method, Output, pairs, per_resolution, sides
from selfsight.optim import Recipe
from selfsight.ranges import Count, Positive, Share, Weight, Whole
from selfsight.views.presets import crops, simclr_view

__all__ = ["SimpleContrastive"]


class SimpleContrastive(Method):
    """What the contrastive loss owes to its hardness: the simple loss, its limit at a high
    temperature, has none unless it is given hard negatives alone.

    loss: simple, or contrastive, which pushes near negatives harder by itself
    hardest: share of an anchor's negatives that is kept, the most similar; 1 keeps all, less gives
        the paper's hard forms
    weight: λ of the simple loss; None: one over the number of negatives kept, as that limit has it
    temperature: τ of the contrastive loss
    head: projector behind the encoder: none, linear or nonlinear
    layers: linear layers of the nonlinear head
    hidden, dim: widths of the nonlinear head's inner layers (None: the encoder's) and of z
    strength: of the colour jitter; 0.5 for CIFAR-10
    multi_crop: small crops beside two crops of 160/224; 0 for two full views
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        loss: Literal["simple", "contrastive"] = "simple",
        hardest: Share = 1.0,
        weight: Weight | None = None,
        temperature: Positive = 0.1,
        head: Head = "nonlinear",
        layers: Count = 2,
        hidden: Count | None = None,
        dim: Count = 128,
        strength: Weight = 1.0,
        multi_crop: Whole = 0,
    ) -> None:
        super().__init__(encoder)
        widths = shape(head, encoder.dim, hidden, layers, dim)
        norm: Literal["scale", "none"] = "none" if head == "none" else "scale"
        self.projector = mlp(*widths, last_bias=norm == "none", last_norm=norm)
        self.loss, self.hardest = loss, hardest
        self.weight, self.temperature = weight, temperature
        # Differs from the paper: its losses stand in SimCLR's batch, views and recipe.
        self.views = crops(simclr_view(strength, size=160 if multi_crop else 224), multi_crop)
        self.recipe = Recipe(optimizer="lars", lr=0.3, weight_decay=1e-6, epochs=200)

    def forward(self, batch: Batch, clock: Clock) -> Output:
        h = per_resolution(self.encoder, batch.views)
        z = self.projector(torch.cat(h)).chunk(len(h))
        losses = [self.contrast(z[i], z[j]) for i, j in pairs(len(z)) if i < j]
        return Output(torch.stack(losses).mean(), embedding=h[0], projections=z)

    def contrast(self, z1: Tensor, z2: Tensor) -> Tensor:
        both = sides(z1, z2)
        if self.loss == "contrastive":
            return hard_nce(*both, temperature=self.temperature, hardest=self.hardest)
        return simple_contrast(*both, weight=self.weight, hardest=self.hardest)
