"""MoCo v3: predict a slow copy's projection of the other view among those of the whole batch.

Chen, Xie and He 2021, https://arxiv.org/abs/2104.02057
Loss: Σ over both directions of −2τ log exp(q·k⁺/τ) / Σ_batch exp(q·k/τ)
"""

import copy
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from selfsight.distributed import gather, places
from selfsight.encoders.base import Encoder
from selfsight.heads import Head, mlp, shape, sincos_positions
from selfsight.losses import info_nce
from selfsight.methods.base import Batch, Clock, Method, Output, pairs
from selfsight.momentum import Teacher
from selfsight.optim import Recipe
from selfsight.ranges import Count, Positive, Share, Whole
from selfsight.schedules import cosine
from selfsight.views.presets import byol_views, crops

__all__ = ["MoCoV3"]

_RESNET = Recipe(optimizer="lars", lr=0.6, weight_decay=1e-6, epochs=100)
_VIT = Recipe(optimizer="adamw", lr=1.5e-4, weight_decay=0.1, betas=(0.9, 0.999), warmup=40,
              exempt="none", epochs=300)  # fmt: skip


class MoCoV3(Method):
    """Momentum contrast without a queue, by the paper's recipe for a ResNet or that for a ViT.

    temperature: τ of the loss (None: 1 for a ResNet, 0.2 for a ViT)
    head: projector behind the encoder: none, linear or nonlinear
    layers: linear layers of the nonlinear head (None: 2 for a ResNet, 3 for a ViT)
    hidden, dim: widths of the heads' inner layers, and of q and k
    predictor: put a predictor on the queries (section 6.2)
    norm: BatchNorm in the heads (section 6.2)
    momentum: decay of the key encoder at the start (section 6.2)
    ramp: raise the momentum to 1 by a cosine
    frozen_patches: leave a ViT's patch projection as it was drawn (section 4.2)
    positions: of a ViT's patches: fixed sines and cosines, or learned (section 6.2)
    multi_crop: small crops beside two large ones (SwAV table 3); 0 for two full views
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        temperature: Positive | None = None,
        head: Head = "nonlinear",
        layers: Count | None = None,
        hidden: Count = 4096,
        dim: Count = 256,
        predictor: bool = True,
        norm: bool = True,
        momentum: Share = 0.99,
        ramp: bool = True,
        frozen_patches: bool = True,
        positions: Literal["fixed", "learned"] = "fixed",
        multi_crop: Whole = 0,
    ) -> None:
        super().__init__(encoder)
        vit = encoder.maskable
        if vit and not encoder.pretrained:  # trained weights know their own positions
            if positions == "fixed":
                grid = encoder.grid(torch.empty(1, 3, encoder.size, encoder.size))
                encoder.fix_positions(sincos_positions(encoder.token_dim, *grid))
            # Differs from the paper: of the official code's starting weights only the patch
            # projection's, Xavier's for one linear layer; the blocks have timm's.
            nn.init.xavier_uniform_(encoder.patch_projection.weight.detach().flatten(1))
        if vit and frozen_patches:
            encoder.patch_projection.requires_grad_(False)
        widths = shape(head, encoder.dim, hidden, layers or (3 if vit else 2), dim)
        plain: Literal["plain", "none"] = "plain" if norm else "none"
        self.projector = mlp(
            *widths, bias=False, norm=norm, last_bias=False,
            last_norm="none" if head == "none" else plain,
        )  # fmt: skip
        last = widths[-1], hidden, widths[-1]
        self.predictor = mlp(
            *(last if predictor else last[:1]), bias=False, norm=norm, last_bias=False,
            last_norm=plain if vit and predictor else "none",
        )  # fmt: skip
        self.teacher = Teacher(copy.deepcopy(nn.Sequential(encoder, self.projector)))
        self.temperature = temperature or (0.2 if vit else 1.0)
        self.momentum, self.ramp = momentum, ramp
        large = byol_views() if vit else [replace(view, crop=(0.2, 1.0)) for view in byol_views()]
        self.views = crops(large, multi_crop)
        self.recipe = _VIT if vit else _RESNET

    def forward(self, batch: Batch, clock: Clock) -> Output:
        # Each view has a BatchNorm pass of its own, in both networks.
        h = [self.encoder(x) for x in batch.views]
        z = [self.projector(h_i) for h_i in h]
        q = [self.predictor(z_i) for z_i in z]
        k = [gather(self.teacher(x)) for x in batch.views[:2]]
        losses = [self.contrast(q[j], k[i]) for i, j in pairs(len(q))]
        loss = 2 * torch.stack(losses).mean()  # of two views, the sum
        return Output(loss, embedding=h[0], projections=tuple(z))

    def contrast(self, q: Tensor, k: Tensor) -> Tensor:
        """2τ InfoNCE, whose gradient does not grow as τ falls."""
        own = places(q)
        return 2 * self.temperature * info_nce(q, k, own, temperature=self.temperature)

    def after_step(self, carry: dict[str, Tensor], clock: Clock) -> None:
        # The official code moves the key encoder before its next use: by that step's momentum.
        progress = (clock.step + 1) / clock.total
        decay = cosine(self.momentum, 1.0, progress) if self.ramp else self.momentum
        self.teacher.update(nn.Sequential(self.encoder, self.projector), decay)
