"""InstDisc: make every image a class of its own, told apart by a memory of all images.

Wu et al. 2018, https://arxiv.org/abs/1805.01978
Loss: −log P/(P + K/n) − Σ_K log (K/n)/(P_k + K/n), P = exp(z·v/τ)/Z; or −log softmax(z·v/τ)
"""

from dataclasses import replace
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from selfsight.distributed import gather
from selfsight.encoders.base import Encoder
from selfsight.heads import Head, mlp, shape
from selfsight.instances import Instances
from selfsight.methods.base import Batch, Clock, Method, Output
from selfsight.optim import Recipe
from selfsight.ranges import Count, Positive, Share
from selfsight.views.presets import moco_view

__all__ = ["InstDisc"]


class InstDisc(Method):
    """Non-parametric instance discrimination.

    loss: "nce", which asks of one row at a time, or "softmax" over all that were drawn, as the
        published weights were trained with 65536 negatives; None: softmax for up to 65,536 images
    negatives: rows of the bank beside an image's own, at most all
    temperature: τ of the loss; 0.1 for CIFAR-10
    momentum: share of the old row when an image's row follows its projection
    head: projector behind the encoder: none, linear or nonlinear, as later versions have it
    layers: linear layers of the nonlinear head
    hidden, dim: widths of the nonlinear head's inner layers (None: the encoder's) and of z
    schedule: of the learning rate: steps, or a cosine as later versions have it
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        samples: int,
        loss: Literal["nce", "softmax"] | None = None,
        negatives: Count = 4096,
        temperature: Positive = 0.07,
        momentum: Share = 0.5,
        head: Head = "linear",
        layers: Count = 2,
        hidden: Count | None = None,
        dim: Count = 128,
        schedule: Literal["steps", "cosine"] = "steps",
    ) -> None:
        super().__init__(encoder)
        widths = shape(head, encoder.dim, hidden, layers, dim)
        self.projector = mlp(*widths, norm=False)
        # Differs from the paper: the negatives of a step are the same for all its images.
        self.instances = Instances(
            samples, widths[-1], negatives=negatives, loss=loss, temperature=temperature,
            momentum=momentum,
        )  # fmt: skip
        self.views = [replace(moco_view(1), count=1)]
        # Differs from the paper: the rate changes with each step, not with each epoch.
        self.recipe = Recipe(
            optimizer="sgd", lr=0.03, weight_decay=1e-4, warmup=0, exempt="none", epochs=200,
            drops=(0.6, 0.8) if schedule == "steps" else (),
        )  # fmt: skip

    def forward(self, batch: Batch, clock: Clock) -> Output:
        h = self.encoder(batch.views[0])
        z = self.projector(h)
        loss, log_mean = self.instances(z, batch.index, batch.key.seed, batch.key.step)
        carry = {"index": batch.index, "z": F.normalize(z, dim=1), "log_mean": log_mean[None]}
        return Output(loss, embedding=h, projections=(z,), carry=carry)

    def after_step(self, carry: dict[str, Tensor], clock: Clock) -> None:
        index, z = gather(carry["index"]), gather(carry["z"])
        self.instances.follow(index, z, carry["log_mean"])
