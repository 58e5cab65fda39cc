"""SimSiam: predict the other view's projection behind a stop-gradient; nothing else.

Chen and He 2020, https://arxiv.org/abs/2011.10566
Loss: −½ cos(p₁, sg z₂) − ½ cos(p₂, sg z₁)
"""

from typing import Any, Literal

import torch
from torch import nn

from selfsight.encoders.base import Encoder
from selfsight.heads import Head, mlp, shape
from selfsight.losses import negative_cosine
from selfsight.methods.base import Batch, Clock, Method, Output, apart, pairs
from selfsight.optim import Recipe
from selfsight.ranges import Count, Several, Whole
from selfsight.views.presets import crops, moco_view

__all__ = ["SimSiam"]


class SimSiam(Method):
    """Simple siamese representation learning.

    head, layers: projector behind the encoder: none, linear or nonlinear with so many layers
    hidden, dim: widths of its inner layers and of z
    bottleneck: width of the predictor's inner layer
    predictor: trained, none, or fixed at its random start (table 1)
    predictor_rate: learning rate of the predictor: constant, or with the schedule (table 1)
    stop_gradient: on the target (figure 2)
    norm: BatchNorm (table 3): none, in hidden layers, by default also on z, or all, on p too
    multi_crop: small crops beside the two large ones, which alone are targets
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        head: Head = "nonlinear",
        layers: Count = 3,
        hidden: Count = 2048,
        dim: Several = 2048,
        bottleneck: Count = 512,
        predictor: Literal["trained", "none", "fixed"] = "trained",
        predictor_rate: Literal["constant", "cosine"] = "constant",
        stop_gradient: bool = True,
        norm: Literal["none", "hidden", "default", "all"] = "default",
        multi_crop: Whole = 0,
    ) -> None:
        super().__init__(encoder)
        inside, on_p = norm != "none", norm == "all"
        on_z = norm in ("default", "all") and head != "none"
        widths = shape(head, encoder.dim, hidden, layers, dim)
        self.projector = mlp(
            *widths, bias=not inside, norm=inside,
            last_bias=not on_z, last_norm="plain" if on_z else "none",
        )  # fmt: skip
        self.predictor: nn.Module = nn.Identity()
        if predictor != "none":
            self.predictor = mlp(
                widths[-1], bottleneck, widths[-1], bias=not inside, norm=inside,
                last_bias=not on_p, last_norm="affine" if on_p else "none",
            ).requires_grad_(predictor == "trained")  # fmt: skip
        self.predictor_rate, self.stop_gradient = predictor_rate, stop_gradient
        self.views = crops(moco_view(2), multi_crop)
        # Differs from the paper: the rate changes with each step, not with each epoch.
        self.recipe = Recipe(
            optimizer="sgd", lr=0.05, weight_decay=1e-4, warmup=0, exempt="none", epochs=100
        )

    def forward(self, batch: Batch, clock: Clock) -> Output:
        # Each view has a BatchNorm pass of its own.
        h = [self.encoder(x) for x in batch.views]
        z = [self.projector(h_i) for h_i in h]
        p = [self.predictor(z_i) for z_i in z]
        t = [z_i.detach() for z_i in z] if self.stop_gradient else z
        losses = [negative_cosine(p[j], t[i]) for i, j in pairs(len(p))]
        return Output(torch.stack(losses).mean(), embedding=h[0], projections=tuple(z))

    def groups(self) -> list[dict[str, Any]]:
        constant = self.predictor_rate == "constant"
        return apart(super().groups(), self.predictor.parameters(), constant=constant)
