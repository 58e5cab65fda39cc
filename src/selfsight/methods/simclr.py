"""SimCLR: pull two views of an image together, push all other images of the batch away.

Chen et al. 2020, https://arxiv.org/abs/2002.05709; v2: https://arxiv.org/abs/2006.10029
Loss: Σ over both directions of −log exp(s(i,i⁺)/τ) / Σ_{k≠i} exp(s(i,k)/τ), s the cosine of z
"""

from typing import Literal

import torch
from torch import Tensor

from selfsight.distributed import gather, rank
from selfsight.encoders.base import Encoder
from selfsight.heads import mlp
from selfsight.losses import info_nce
from selfsight.methods.base import Batch, Clock, Method, Output, pairs, per_resolution
from selfsight.methods.ranges import Count, Positive, Weight, Whole
from selfsight.optim import Recipe
from selfsight.views.presets import crops, simclr_view

__all__ = ["SimCLR"]


class SimCLR(Method):
    """In-batch instance discrimination.

    temperature: τ of the loss; 0.1 for ImageNet, 0.5 for CIFAR-10
    head: projector behind the encoder (figure 8): none, linear or nonlinear
    layers: linear layers of the nonlinear head; v1 has two, v2 three
    hidden, dim: widths of the nonlinear head's inner layers (None: the encoder's) and of z
    strength: of the colour jitter (appendix A); 0.5 for CIFAR-10
    multi_crop: small crops beside two crops of 160/224 (SwAV table 3); 0 for two full views
    mean: average over the 2N anchors, as the paper writes, instead of adding two directions
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        temperature: Positive = 0.1,
        head: Literal["none", "linear", "nonlinear"] = "nonlinear",
        layers: Count = 2,
        hidden: Count | None = None,
        dim: Count = 128,
        strength: Weight = 1.0,
        multi_crop: Whole = 0,
        mean: bool = False,
    ) -> None:
        super().__init__(encoder)
        inner = [encoder.dim if hidden is None else hidden] * (layers - 1)
        widths = {"none": [], "linear": [dim], "nonlinear": [*inner, dim]}[head]
        norm: Literal["scale", "none"] = "none" if head == "none" else "scale"
        self.projector = mlp(encoder.dim, *widths, last_bias=norm == "none", last_norm=norm)
        self.temperature = temperature
        # Differs from the paper: the official code adds the losses of the two directions.
        self.scale = 1 if mean else 2
        self.views = crops(simclr_view(strength, size=160 if multi_crop else 224), multi_crop)
        # Differs from the paper: LARS keeps the rate out of its momentum, as later code does.
        self.recipe = Recipe(optimizer="lars", lr=0.3, weight_decay=1e-6)

    def forward(self, batch: Batch, clock: Clock) -> Output:
        h = per_resolution(self.encoder, batch.views)
        z = self.projector(torch.cat(h)).chunk(len(h))
        losses = [self.contrast(z[i], z[j]) for i, j in pairs(len(z)) if i < j]
        loss = self.scale * torch.stack(losses).mean()
        return Output(loss, embedding=h[0], projections=z)

    def contrast(self, z1: Tensor, z2: Tensor) -> Tensor:
        """NT-Xent with the candidates of all ranks."""
        z = torch.cat([z1, z2])
        own = len(z) * rank() + torch.arange(len(z), device=z.device)
        positive = own.roll(len(z1))
        return info_nce(z, gather(z), positive, temperature=self.temperature, exclude=own)
