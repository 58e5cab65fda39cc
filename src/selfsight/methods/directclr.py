"""DirectCLR: contrast some of the encoder's channels themselves; the rest follow without a head.

Jing et al. 2021, https://arxiv.org/abs/2110.09348
Loss: mean of both directions of −log exp(s(z₁,z₂)/τ) / Σ_k exp(s(z₁,z₂ₖ)/τ), z the first d₀ of h
"""

import torch
from torch import Tensor

from selfsight.distributed import gather, places
from selfsight.encoders.base import Encoder
from selfsight.errors import ConfigError
from selfsight.losses import info_nce
from selfsight.methods.base import Batch, Clock, Method, Output, pairs
from selfsight.optim import Recipe
from selfsight.ranges import Count, Positive, Whole
from selfsight.views.presets import byol_views, crops

__all__ = ["DirectCLR"]


class DirectCLR(Method):
    """Contrastive learning without a projector.

    dim: channels that the loss sees, d₀; None: the share that 360 are of a ResNet-50's 2048
    temperature: τ of the loss
    multi_crop: small crops, compared with the two large ones
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        dim: Count | None = None,
        temperature: Positive = 0.1,
        multi_crop: Whole = 0,
    ) -> None:
        super().__init__(encoder)
        self.dim = max(1, round(encoder.dim * 360 / 2048)) if dim is None else dim
        if self.dim > encoder.dim:
            raise ConfigError(
                f"directclr cannot take {dim} of the {encoder.dim} channels of {encoder.name}; "
                "lower --method.dim"
            )
        self.temperature = temperature
        # Differs from the paper: no classifier learns from labels beside the training.
        self.views = crops(byol_views(), multi_crop)
        self.recipe = Recipe(optimizer="lars", lr=0.3, weight_decay=1e-6)

    def forward(self, batch: Batch, clock: Clock) -> Output:
        # Each view has a BatchNorm pass of its own.
        h = [self.encoder(x) for x in batch.views]
        z = [h_i[:, : self.dim] for h_i in h]
        losses = [self.contrast(z[j], z[i]) for i, j in pairs(len(z))]
        loss = torch.stack(losses).mean()
        return Output(loss, embedding=h[0], projections=tuple(z))

    def contrast(self, z1: Tensor, z2: Tensor) -> Tensor:
        """InfoNCE whose candidates are the other views of all ranks, and no view of its own."""
        own = places(z1)
        return info_nce(z1, gather(z2), own, temperature=self.temperature)
