"""SupCon: pull all views of all images of a class together, push the other classes away.

Khosla et al. 2020, https://arxiv.org/abs/2004.11362
Loss: −τ/τ₀ · mean of log exp(s(i,p)/τ) / Σ_{k≠i} exp(s(i,k)/τ) over the p ≠ i of i's label
"""

from dataclasses import replace
from typing import Literal

import torch

from selfsight.distributed import gather, places
from selfsight.encoders.base import Encoder
from selfsight.heads import Head, mlp, shape
from selfsight.losses import supcon
from selfsight.methods.base import Batch, Clock, Method, Output, per_resolution
from selfsight.optim import Recipe
from selfsight.ranges import Count, Positive, Whole
from selfsight.views.presets import crops, moco_view

__all__ = ["SupCon"]


class SupCon(Method):
    """Supervised contrastive learning: needs labels, and shows what they are worth.

    temperature: τ of the loss
    base_temperature: τ₀, by which the loss keeps its scale at another temperature
    inside: average the positives' probabilities, not their logarithms (equation 3, table 1)
    anchors: the crops that look for their class: all, or each image's first
    head: projector behind the encoder: none, linear or nonlinear
    layers: linear layers of the nonlinear head, which has no BatchNorm
    hidden, dim: widths of its inner layers (None: the encoder's) and of z
    multi_crop: small crops beside two crops of 160/224; each is as much an anchor as these
    """

    supervised = True

    def __init__(
        self,
        encoder: Encoder,
        *,
        temperature: Positive = 0.1,
        base_temperature: Positive = 0.07,
        inside: bool = False,
        anchors: Literal["all", "first"] = "all",
        head: Head = "nonlinear",
        layers: Count = 2,
        hidden: Count | None = None,
        dim: Count = 128,
        multi_crop: Whole = 0,
    ) -> None:
        super().__init__(encoder)
        self.projector = mlp(*shape(head, encoder.dim, hidden, layers, dim), norm=False)
        self.temperature, self.base_temperature = temperature, base_temperature
        self.inside, self.anchors = inside, anchors
        # Differs from the paper: as in the official code for CIFAR, crops and colours instead of
        # AutoAugment.
        view = replace(moco_view(2), blur=0.0, size=160 if multi_crop else 224)
        self.views = crops(view, multi_crop)
        self.recipe = Recipe(
            optimizer="sgd", lr=0.5, batch=1024, weight_decay=1e-4, warmup_from=0.02, last=1e-3,
            exempt="none", epochs=1000,
        )  # fmt: skip

    def forward(self, batch: Batch, clock: Clock) -> Output:
        assert batch.labels is not None, "a supervised method's batch has labels"
        h = per_resolution(self.encoder, batch.views)
        z = self.projector(torch.cat(h))
        own = places(z)
        loss = supcon(
            gather(z), gather(batch.labels.repeat(len(h))),
            own[: len(h[0])] if self.anchors == "first" else own, temperature=self.temperature,
            base_temperature=self.base_temperature, inside=self.inside,
        )  # fmt: skip
        return Output(loss, embedding=h[0], projections=z.chunk(len(h)))
