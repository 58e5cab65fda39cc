"""SimCLR: pull two views of an image together, push all other images of the batch away.

Chen et al. 2020, https://arxiv.org/abs/2002.05709; v2: https://arxiv.org/abs/2006.10029
Loss: Σ over both directions of −log exp(s(i,i⁺)/τ) / Σ_{k≠i} exp(s(i,k)/τ), s the cosine of z
"""

from typing import Literal

import torch
from torch import Tensor, nn

from selfsight.distributed import gather, places
from selfsight.encoders.base import Encoder
from selfsight.errors import ConfigError
from selfsight.heads import Head, mlp, shape
from selfsight.losses import coupling, info_nce, variation
from selfsight.methods.base import Batch, Clock, Method, Output, pairs, per_resolution, sides
from selfsight.optim import Recipe
from selfsight.ranges import Count, Positive, Weight, Whole
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
    other: an architecture, with new weights and a projector of its own, for all views but the
        first (VICReg, table 5); "" shares the first view's
    mean: average over the 2N anchors, as the paper writes, instead of adding two directions
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        temperature: Positive = 0.1,
        head: Head = "nonlinear",
        layers: Count = 2,
        hidden: Count | None = None,
        dim: Count = 128,
        strength: Weight = 1.0,
        multi_crop: Whole = 0,
        other: str = "",
        mean: bool = False,
    ) -> None:
        super().__init__(encoder)
        norm: Literal["scale", "none"] = "none" if head == "none" else "scale"

        def projector(width: int) -> nn.Sequential:
            widths = shape(head, width, hidden, layers, dim)
            return mlp(*widths, last_bias=norm == "none", last_norm=norm)

        self.projector = projector(encoder.dim)
        self.other: nn.Module | None = None
        if other:
            second = encoder.fresh(other)
            if head == "none" and second.dim != encoder.dim:
                raise ConfigError(f"simclr compares h of {encoder.name} ({encoder.dim}) with h of "
                                  f"{other} ({second.dim}); give it a --method.head")  # fmt: skip
            self.other = nn.Sequential(second, projector(second.dim))
        self.temperature = temperature
        # Differs from the paper: the official code adds the losses of the two directions.
        self.scale = 1 if mean else 2
        self.views = crops(simclr_view(strength, size=160 if multi_crop else 224), multi_crop)
        # Differs from the paper: LARS keeps the rate out of its momentum, as later code does.
        self.recipe = Recipe(optimizer="lars", lr=0.3, weight_decay=1e-6)

    def forward(self, batch: Batch, clock: Clock) -> Output:
        here = batch.views if self.other is None else batch.views[:1]
        h = per_resolution(self.encoder, here)
        z = list(self.projector(torch.cat(h)).chunk(len(h)))
        if self.other is not None:
            z += per_resolution(self.other, batch.views[1:])
        losses = [self.contrast(z[i], z[j]) for i, j in pairs(len(z)) if i < j]
        loss = self.scale * torch.stack(losses).mean()
        q = gather(coupling(*sides(z[0].detach(), z[1].detach()), temperature=self.temperature))
        metrics = {"coupling": q.mean(), "coupling_variation": variation(q)}
        return Output(loss, embedding=h[0], projections=tuple(z), metrics=metrics)

    def contrast(self, z1: Tensor, z2: Tensor) -> Tensor:
        """NT-Xent with the candidates of all ranks."""
        z = torch.cat([z1, z2])
        own = places(z)
        positive = own.roll(len(z1))
        return info_nce(z, gather(z), positive, temperature=self.temperature, exclude=own)
