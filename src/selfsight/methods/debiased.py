"""Debiased contrastive loss: allow for negatives that are of the anchor's own class, unseen.

Chuang et al. 2020, https://arxiv.org/abs/2007.00224
Loss: −log e^{s⁺/τ} / (e^{s⁺/τ} + G), G = n max{(mean e^{s⁻/τ} − τ⁺ mean e^{s⁺/τ})/(1−τ⁺), e^{−1/τ}}
"""

from dataclasses import replace

import torch
from torch import Tensor

from selfsight.distributed import gather
from selfsight.encoders.base import Encoder
from selfsight.heads import Head, mlp, shape
from selfsight.losses import debiased_nce
from selfsight.methods.base import Batch, Clock, Method, Output, pairs, per_resolution, sides
from selfsight.optim import Recipe
from selfsight.ranges import Count, Part, Positive, Weight, Whole
from selfsight.views.presets import crops, simclr_view

__all__ = ["Debiased"]


class Debiased(Method):
    """Negatives are drawn from all images, so a share of them is of the anchor's class; the loss
    takes off what the known positives say that share adds.

    temperature: τ of the loss
    tau_plus: τ⁺, that share (figure 4): 1/K of K classes; 0 is SimCLR with its mean; not used
        where `unbiased`, which leaves no such negatives
    positives: M, other views of an image that are averaged for it (table 4); small crops add to
        them
    unbiased: leave the negatives of the anchor's class out by their labels instead: the loss that
        this one stands for
    head: projector behind the encoder: none, linear or nonlinear
    layers: linear layers of the nonlinear head
    hidden, dim: widths of the nonlinear head's inner layers (None: the encoder's) and of z
    strength: of the colour jitter
    multi_crop: small crops beside the large ones of 160/224; 0 for full views alone
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        temperature: Positive = 0.5,
        tau_plus: Part = 0.1,
        positives: Count = 1,
        unbiased: bool = False,
        head: Head = "nonlinear",
        layers: Count = 2,
        hidden: Count | None = 512,
        dim: Count = 128,
        strength: Weight = 0.5,
        multi_crop: Whole = 0,
    ) -> None:
        super().__init__(encoder)
        self.projector = mlp(*shape(head, encoder.dim, hidden, layers, dim), bias=False)
        self.supervised = unbiased
        self.temperature, self.tau_plus = temperature, 0.0 if unbiased else tau_plus
        view = simclr_view(strength, blur=0.0, size=160 if multi_crop else 224)
        self.views = crops([replace(view, count=positives + 1)], multi_crop)
        # Differs from the paper: AdamW, where the decay was part of Adam's gradient.
        self.recipe = Recipe(
            optimizer="adamw", lr=1e-3, weight_decay=1e-6, rule="fixed", betas=(0.9, 0.999),
            warmup=0, last=1.0, exempt="none", epochs=400,
        )  # fmt: skip

    def forward(self, batch: Batch, clock: Clock) -> Output:
        h = per_resolution(self.encoder, batch.views)
        z = self.projector(torch.cat(h)).chunk(len(h))
        losses = [self.contrast(z, i, j, batch.labels) for i, j in pairs(len(z)) if i < j]
        return Output(torch.stack(losses).mean(), embedding=h[0], projections=z)

    def contrast(self, z: tuple[Tensor, ...], i: int, j: int, labels: Tensor | None) -> Tensor:
        anchors, positives, candidates, own, owners = sides(z[i], z[j])
        if labels is not None:
            own = labels.repeat(2)
            owners = gather(own)
        known = torch.cat([torch.stack([*z[:k], *z[k + 1 :]], 1) for k in (i, j)])
        return debiased_nce(
            anchors, positives, candidates, own, owners, temperature=self.temperature,
            tau_plus=self.tau_plus, known=known,
        )  # fmt: skip
