"""PIC: classify each image as itself, against one learned vector for every image of the data set.

Cao et al. 2020, https://arxiv.org/abs/2006.14618
Loss: mean over views of −log softmax(ẑ·ŵ/τ) at the image's own w
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from selfsight.encoders.base import Encoder
from selfsight.heads import Head, mlp, shape
from selfsight.losses import info_nce
from selfsight.methods.base import Batch, Clock, Method, Output
from selfsight.optim import Recipe
from selfsight.ranges import Count, Positive, Weight, Whole
from selfsight.views.presets import crops, simclr_view

__all__ = ["PIC"]


class PIC(Method):
    """Parametric instance classification, of one view per image and step.

    The vectors hold images × dim numbers, and the optimizer's momentum as many again; every one
    of them has a gradient, decays and moves in each step, whether its image is in the batch or
    not, and ranks exchange that gradient whole: 0.6 GB for ImageNet.

    temperature: τ of the loss
    head: projector behind the encoder: none, linear or nonlinear
    layers: linear layers of the nonlinear head
    hidden, dim: widths of the nonlinear head's inner layers (None: the encoder's) and of z
    strength: of SimCLR's colour jitter
    multi_crop: small crops beside one of 160/224 (the official code's has 3); 0 for one full view
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        samples: int,
        temperature: Positive = 0.2,
        head: Head = "nonlinear",
        layers: Count = 2,
        hidden: Count | None = None,
        dim: Count = 128,
        strength: Weight = 1.0,
        multi_crop: Whole = 0,
    ) -> None:
        super().__init__(encoder)
        widths = shape(head, encoder.dim, hidden, layers, dim)
        self.projector = mlp(*widths, norm=False)
        self.instances = nn.Parameter(0.01 * torch.randn(samples, widths[-1]))
        self.temperature = temperature
        # Differs from the paper: the smallest crops are of 0.05 of the image, not of 0.08.
        view = simclr_view(strength, size=160 if multi_crop else 224)
        self.views = crops([replace(view, count=1)], multi_crop)
        # Differs from the paper: images come in epochs, not in a window that slides over the
        # data and shows an image several times before it moves on; and all other images are
        # negatives, as in the official code, not only those of recent batches.
        self.recipe = Recipe(
            optimizer="sgd", lr=0.03, weight_decay=1e-4, warmup=5, warmup_from=0.01,
            exempt="none", epochs=200,
        )  # fmt: skip

    def forward(self, batch: Batch, clock: Clock) -> Output:
        # Each view has a BatchNorm pass of its own.
        h = [self.encoder(x) for x in batch.views]
        z = [self.projector(h_i) for h_i in h]
        # Small crops move the encoder alone.
        w = [self.instances, *(self.instances.detach() for _ in z[1:])]
        losses = [self.classify(z_i, w_i, batch.index) for z_i, w_i in zip(z, w, strict=True)]
        return Output(torch.stack(losses).mean(), embedding=h[0], projections=tuple(z))

    def classify(self, z: Tensor, w: Tensor, index: Tensor) -> Tensor:
        return info_nce(z, w, index, temperature=self.temperature)
