"""FastSiam: predict, from each of several views, the mean projection of the others.

Pototzky, Sultan and Schmidt-Thieme 2022, https://doi.org/10.1007/978-3-031-16788-1_4
Loss: mean over views of −cos(p_i, sg mean_{j≠i} z_j)
"""

from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from selfsight.encoders.base import Encoder
from selfsight.heads import Head, mlp, shape
from selfsight.losses import negative_cosine
from selfsight.methods.base import Batch, Clock, Method, Output, apart
from selfsight.optim import Recipe
from selfsight.ranges import Count, Several
from selfsight.views.presets import moco_view

__all__ = ["FastSiam"]


class FastSiam(Method):
    """SimSiam with steadier targets, for small batches and short runs.

    views: of each image; each predicts the mean of the others, so that two are SimSiam
    head, layers: projector behind the encoder: none, linear or nonlinear with so many layers
    hidden, dim: widths of its inner layers and of z
    bottleneck: width of the predictor's inner layer
    predictor_rate: learning rate of the predictor: constant, or with the schedule
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        views: Several = 4,
        head: Head = "nonlinear",
        layers: Count = 3,
        hidden: Count = 2048,
        dim: Several = 2048,
        bottleneck: Count = 512,
        predictor_rate: Literal["constant", "cosine"] = "constant",
    ) -> None:
        super().__init__(encoder)
        widths = shape(head, encoder.dim, hidden, layers, dim)
        on_z: Literal["none", "plain"] = "none" if head == "none" else "plain"
        self.projector = mlp(*widths, bias=False, last_bias=False, last_norm=on_z)
        self.predictor = mlp(widths[-1], bottleneck, widths[-1], bias=False)
        self.predictor_rate = predictor_rate
        self.views = [replace(moco_view(2), count=views)]
        self.recipe = Recipe(
            optimizer="sgd", lr=0.05, weight_decay=1e-4, warmup=0, exempt="none", epochs=25
        )

    def forward(self, batch: Batch, clock: Clock) -> Output:
        # Each view has a BatchNorm pass of its own.
        h = [self.encoder(x) for x in batch.views]
        z = [self.projector(h_i) for h_i in h]
        p = [self.predictor(z_i) for z_i in z]
        losses = [negative_cosine(p_i, self.target(z, i)) for i, p_i in enumerate(p)]
        return Output(torch.stack(losses).mean(), embedding=h[0], projections=tuple(z))

    def target(self, z: list[Tensor], i: int) -> Tensor:
        """The mean of the other views' projections."""
        return torch.stack([z_j.detach() for z_j in z[:i] + z[i + 1 :]]).mean(0)

    def groups(self) -> list[dict[str, Any]]:
        constant = self.predictor_rate == "constant"
        return apart(super().groups(), self.predictor.parameters(), constant=constant)
