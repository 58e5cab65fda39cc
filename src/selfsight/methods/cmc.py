"""CMC: an image's lightness should tell its colours from those of others, and the other way.

Tian et al. 2019, https://arxiv.org/abs/1906.05849
Loss: NCE(L, memory of ab) + NCE(ab, memory of L), by one encoder for L and one for a and b
"""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from selfsight.distributed import gather
from selfsight.encoders.base import Encoder
from selfsight.encoders.lab import split
from selfsight.heads import Head, mlp, shape
from selfsight.instances import Instances
from selfsight.methods.base import Batch, Clock, Method, Output
from selfsight.optim import Recipe
from selfsight.ranges import Count, Positive, Share
from selfsight.views.spec import View

__all__ = ["CMC"]


class CMC(Method):
    """Contrastive multiview coding of the Lab colour space.

    The encoder is two of the given architecture: it converts its input to Lab, and its embedding
    is that of L beside that of a and b. timm knows it as lab_pair, after `import
    selfsight.encoders`.

    loss: "nce", which asks of one row at a time, or "softmax" over all that were drawn; None:
        softmax for up to 65,536 images
    negatives: rows of the other's memory beside an image's own
    temperature: τ of the loss
    momentum: share of the old row when an image's row follows its projection
    head: projector behind each encoder: none, linear or nonlinear
    layers: linear layers of the nonlinear head
    hidden, dim: widths of the nonlinear head's inner layers (None: the encoder's) and of z
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        samples: int,
        loss: Literal["nce", "softmax"] | None = None,
        negatives: Count = 16384,
        temperature: Positive = 0.07,
        momentum: Share = 0.5,
        head: Head = "linear",
        layers: Count = 2,
        hidden: Count | None = None,
        dim: Count = 128,
    ) -> None:
        super().__init__(split(encoder))
        widths = shape(head, encoder.dim, hidden, layers, dim)
        self.projector, self.colour_projector = (mlp(*widths, norm=False) for _ in range(2))
        # Differs from the paper: the negatives of a step are the same for all its images.
        self.lightnesses, self.colours = (
            Instances(
                samples, widths[-1], negatives=negatives, loss=loss, temperature=temperature,
                momentum=momentum,
            )
            for _ in range(2)
        )  # fmt: skip
        # The encoder turns RGB into Lab, in training as in use.
        self.views = [View(crop=(0.2, 1.0), jitter_p=0.0, gray=0.0, blur=0.0)]
        # Differs from the paper: the rate changes with each step, not with each epoch.
        self.recipe = Recipe(
            optimizer="sgd", lr=0.03, weight_decay=1e-4, warmup=0, exempt="none", epochs=200,
            drops=(0.6, 0.8),
        )  # fmt: skip

    def forward(self, batch: Batch, clock: Clock) -> Output:
        h = self.encoder(batch.views[0])
        h_l, h_ab = h.chunk(2, 1)
        z_l, z_ab = self.projector(h_l), self.colour_projector(h_ab)
        at = batch.index, batch.key.seed, batch.key.step
        loss_l, mean_ab = self.colours(z_l, *at)
        loss_ab, mean_l = self.lightnesses(z_ab, *at)
        carry = {
            "index": batch.index,
            "l": F.normalize(z_l, dim=1),
            "ab": F.normalize(z_ab, dim=1),
            "mean_l": mean_l[None],
            "mean_ab": mean_ab[None],
        }
        return Output(loss_l + loss_ab, embedding=h, projections=(z_l, z_ab), carry=carry)

    def after_step(self, carry: dict[str, Tensor], clock: Clock) -> None:
        index = gather(carry["index"])
        self.lightnesses.follow(index, gather(carry["l"]), carry["mean_l"])
        self.colours.follow(index, gather(carry["ab"]), carry["mean_ab"])
