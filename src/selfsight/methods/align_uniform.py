"""Alignment and uniformity: pull two views of an image together, spread all over the sphere.

Wang and Isola 2020, https://arxiv.org/abs/2005.10242
Loss: λ_a mean ‖ẑ₁ − ẑ₂‖^α + λ_u mean over views of log mean_{i<j} exp(−t ‖ẑᵢ − ẑⱼ‖²)
"""

from dataclasses import replace

import torch
from torch import Tensor

from selfsight.distributed import gather, places
from selfsight.encoders.base import Encoder
from selfsight.heads import Head, mlp, shape
from selfsight.losses import alignment, info_nce, uniformity
from selfsight.methods.base import Batch, Clock, Method, Output, pairs, per_resolution
from selfsight.optim import Recipe
from selfsight.ranges import Count, Positive, Weight, Whole
from selfsight.views.presets import crops, moco_view

__all__ = ["AlignUniform"]


class AlignUniform(Method):
    """The two properties that a contrastive loss tends to, optimised directly.

    alignment, uniformity: weights of the two terms
    alpha: power of the distance between two views of an image
    t: of the potential exp(−t d²) between two images at distance d
    contrast: weight of InfoNCE against the other view's batch, beside the two terms
    temperature: τ of InfoNCE
    head: projector behind the encoder: none, linear or nonlinear
    layers, hidden: linear layers of the nonlinear head, and its inner width (None: the encoder's)
    dim: width of z
    multi_crop: small crops beside the two large ones
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        alignment: Weight = 1.0,
        uniformity: Weight = 1.0,
        alpha: Positive = 2.0,
        t: Positive = 2.0,
        contrast: Weight = 0.0,
        temperature: Positive = 0.2,
        head: Head = "linear",
        layers: Count = 2,
        hidden: Count | None = None,
        dim: Count = 128,
        multi_crop: Whole = 0,
    ) -> None:
        super().__init__(encoder)
        self.projector = mlp(*shape(head, encoder.dim, hidden, layers, dim))
        self.alignment, self.alpha = alignment, alpha
        self.uniformity, self.t = uniformity, t
        self.contrast, self.temperature = contrast, temperature
        self.views = crops(replace(moco_view(1), crop=(0.08, 1.0)), multi_crop)
        # Differs from the paper: the rate changes with each step, not with each epoch.
        self.recipe = Recipe(
            optimizer="sgd", lr=0.12, weight_decay=1e-4, warmup=0, drops=(0.775, 0.85, 0.925),
            exempt="none", epochs=200,
        )  # fmt: skip

    def forward(self, batch: Batch, clock: Clock) -> Output:
        h = per_resolution(self.encoder, batch.views)
        z = self.projector(torch.cat(h)).chunk(len(h))
        ways = list(pairs(len(z)))
        near = torch.stack([alignment(z[i], z[j], self.alpha) for i, j in ways]).mean()
        # Every rank has the whole batch's value, as its logarithm is of a mean over all pairs.
        even = torch.stack([uniformity(gather(z_i), self.t) for z_i in z]).mean()
        loss = self.alignment * near + self.uniformity * even
        if self.contrast:
            nce = torch.stack([self.info_nce(z[j], z[i]) for i, j in ways]).mean()
            loss = loss + self.contrast * nce
        metrics = {"alignment": near.detach(), "uniformity": even.detach()}
        return Output(loss, embedding=h[0], projections=z, metrics=metrics)

    def info_nce(self, z1: Tensor, z2: Tensor) -> Tensor:
        own = places(z1)
        return info_nce(z1, gather(z2), own, temperature=self.temperature)
