"""PIRL: an image and a jigsaw of its pieces should both be told by the image's row of a memory.

Misra and van der Maaten 2019, https://arxiv.org/abs/1912.01991
Loss: λ NCE(v, g(pieces)) + (1 − λ) NCE(v, f(image)), v the image's row of the memory
"""

from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsight.distributed import gather
from selfsight.encoders.base import Encoder
from selfsight.heads import Head, mlp, shape
from selfsight.instances import Instances
from selfsight.methods.base import Batch, Clock, Method, Output
from selfsight.optim import Recipe
from selfsight.patches import PIECES, jigsaw, piece
from selfsight.philox import Purpose
from selfsight.ranges import Count, Positive, Share
from selfsight.views.spec import View

__all__ = ["PIRL"]


class PIRL(Method):
    """Pretext-invariant representations, with the jigsaw as the pretext.

    weight: λ, the pieces' share of the loss (figure 6); 0 leaves them out
    loss: "nce", which asks of one row at a time, or "softmax" over all that were drawn; None:
        softmax for up to 65,536 images
    negatives: rows of the bank beside an image's own (figure 7)
    temperature: τ of the loss
    momentum: share of the old row when an image's row follows its projection
    head: projector of the image and of each piece: none, linear or nonlinear
    layers: linear layers of the nonlinear head
    hidden, dim: widths of the nonlinear head's inner layers (None: the encoder's) and of z
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        samples: int,
        weight: Share = 0.5,
        loss: Literal["nce", "softmax"] | None = None,
        negatives: Count = 32000,
        temperature: Positive = 0.07,
        momentum: Share = 0.5,
        head: Head = "linear",
        layers: Count = 2,
        hidden: Count | None = None,
        dim: Count = 128,
    ) -> None:
        super().__init__(encoder)
        widths = shape(head, encoder.dim, hidden, layers, dim)
        self.projector, self.piece = mlp(*widths, norm=False), mlp(*widths, norm=False)
        self.pieces = nn.Linear(PIECES * widths[-1], widths[-1])
        for part in (self.piece, self.pieces):
            part.requires_grad_(weight > 0)
        # Differs from the paper: the negatives of a step are the same for all its images.
        self.instances = Instances(
            samples, widths[-1], negatives=negatives, loss=loss, temperature=temperature,
            momentum=momentum,
        )  # fmt: skip
        self.weight = weight
        view = View(jitter=(0.4, 0.4, 0.4, 0.2), jitter_p=1.0, blur=0.0)
        # Differs from the paper: the pieces of an image share one draw of colours, and none is
        # inverted, solarized or equalised.
        self.views = [view, replace(view, size=255, crop=(0.6, 1.0))]
        self.recipe = Recipe(
            optimizer="sgd", lr=0.12, batch=1024, weight_decay=1e-4, warmup=0, last=1e-3,
            epochs=800,
        )  # fmt: skip

    def forward(self, batch: Batch, clock: Clock) -> Output:
        x, whole = batch.views
        h = self.encoder(x)
        z = self.projector(h)
        at = batch.index, batch.key.seed, batch.key.step
        loss, log_mean = self.instances(z, *at)
        carry = {"index": batch.index, "z": F.normalize(z, dim=1), "log_mean": log_mean[None]}
        if not self.weight:
            return Output(loss, embedding=h, projections=(z,), carry=carry)
        u = batch.key.per_sample(Purpose.PATCH, 3 * PIECES).view(-1, 3, PIECES)
        parts = self.encoder(jigsaw(whole, u, self.encoder.multiple))
        p = self.pieces(self.piece(parts).reshape(len(x), -1))
        # The pieces leave the memory alone, and Z is the image's.
        shuffled, _ = self.instances(p, *at, log_mean)
        loss = torch.lerp(loss, shuffled, self.weight)
        return Output(loss, embedding=h, projections=(z, p), carry=carry)

    @property
    def smallest(self) -> int:
        return min(super().smallest, piece(self.views[-1].size, self.encoder.multiple))

    def after_step(self, carry: dict[str, Tensor], clock: Clock) -> None:
        index, z = gather(carry["index"]), gather(carry["z"])
        self.instances.follow(index, z, carry["log_mean"])
