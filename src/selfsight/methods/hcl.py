"""HCL: debiased contrastive loss in which the hard negatives, those near the anchor, count more.

Robinson et al. 2021, https://arxiv.org/abs/2010.04592
Loss: −log e^{s⁺/τ} / (e^{s⁺/τ} + G), G debiased's with the mean of e^{s⁻/τ} weighted by e^{βs⁻/τ}
"""

import torch
from torch import Tensor

from selfsight.encoders.base import Encoder
from selfsight.heads import Head, mlp, shape
from selfsight.losses import debiased_nce
from selfsight.methods.base import Batch, Clock, Method, Output, pairs, per_resolution, sides
from selfsight.optim import Recipe
from selfsight.ranges import Count, Part, Positive, Weight, Whole
from selfsight.views.presets import crops, simclr_view

__all__ = ["HCL"]


class HCL(Method):
    """Contrastive learning with hard negative samples.

    temperature: τ of the loss
    tau_plus: τ⁺, the share of negatives that are of the anchor's class unseen
    beta: β, how much more near negatives count (figure 4); 0 is `debiased`, and with τ⁺ = 0
        SimCLR with its mean
    head: projector behind the encoder: none, linear or nonlinear
    layers: linear layers of the nonlinear head
    hidden, dim: widths of the nonlinear head's inner layers (None: the encoder's) and of z
    strength: of the colour jitter
    multi_crop: small crops beside two crops of 160/224; 0 for two full views
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        temperature: Positive = 0.5,
        tau_plus: Part = 0.1,
        beta: Weight = 1.0,
        head: Head = "nonlinear",
        layers: Count = 2,
        hidden: Count | None = 512,
        dim: Count = 128,
        strength: Weight = 0.5,
        multi_crop: Whole = 0,
    ) -> None:
        super().__init__(encoder)
        self.projector = mlp(*shape(head, encoder.dim, hidden, layers, dim), bias=False)
        self.temperature, self.tau_plus, self.beta = temperature, tau_plus, beta
        view = simclr_view(strength, blur=0.0, size=160 if multi_crop else 224)
        self.views = crops(view, multi_crop)
        # Differs from the paper: AdamW, where the decay was part of Adam's gradient.
        self.recipe = Recipe(
            optimizer="adamw", lr=1e-3, weight_decay=1e-6, rule="fixed", betas=(0.9, 0.999),
            warmup=0, last=1.0, exempt="none", epochs=400,
        )  # fmt: skip

    def forward(self, batch: Batch, clock: Clock) -> Output:
        h = per_resolution(self.encoder, batch.views)
        z = self.projector(torch.cat(h)).chunk(len(h))
        losses = [self.contrast(z[i], z[j]) for i, j in pairs(len(z)) if i < j]
        return Output(torch.stack(losses).mean(), embedding=h[0], projections=z)

    def contrast(self, z1: Tensor, z2: Tensor) -> Tensor:
        return debiased_nce(
            *sides(z1, z2), temperature=self.temperature, tau_plus=self.tau_plus, beta=self.beta
        )
