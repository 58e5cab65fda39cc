"""NNCLR: let the nearest neighbour of one view in a queue be predicted from the other view.

Dwibedi et al. 2021, https://arxiv.org/abs/2104.14548
Loss: mean of both directions of −log exp(n₁·p₂/τ) / Σ_k exp(n₁·p₂ₖ/τ), n₁ the neighbour of z₁
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsight.distributed import gather, places
from selfsight.encoders.base import Encoder
from selfsight.heads import Head, cosines, mlp, shape
from selfsight.losses import info_nce
from selfsight.memory import Queue
from selfsight.methods.base import Batch, Clock, Method, Output, pairs
from selfsight.optim import Recipe
from selfsight.ranges import Count, Positive, Whole
from selfsight.views.presets import byol_views, crops

__all__ = ["NNCLR"]


class NNCLR(Method):
    """Nearest-neighbour contrastive learning: with a little help from my friends.

    temperature: τ of the loss; 0.2 for CIFAR-10
    queue: projections among which neighbours are found
    head: projector behind the encoder: none, linear or nonlinear
    layers: linear layers of the nonlinear head
    hidden, dim: widths of its inner layers and of z
    predictor: from z to what is compared with the neighbours
    predictor_hidden: width of its inner layer
    multi_crop: small crops, which predict the neighbours of the two large ones
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        temperature: Positive = 0.1,
        queue: Count = 65536,
        head: Head = "nonlinear",
        layers: Count = 3,
        hidden: Count = 2048,
        dim: Count = 256,
        predictor: bool = True,
        predictor_hidden: Count = 4096,
        multi_crop: Whole = 0,
    ) -> None:
        super().__init__(encoder)
        widths = shape(head, encoder.dim, hidden, layers, dim)
        self.projector = mlp(*widths, last_norm="none" if head == "none" else "affine")
        d = widths[-1]
        self.predictor = mlp(d, predictor_hidden, d) if predictor else nn.Identity()
        # Strangers at first: the early neighbours are noise.
        self.queue = Queue.random(queue, d)
        self.temperature = temperature
        self.views = crops(byol_views(), multi_crop)
        self.recipe = Recipe(optimizer="lars", lr=0.3, weight_decay=1e-6, epochs=1000)

    def forward(self, batch: Batch, clock: Clock) -> Output:
        # Each view has a BatchNorm pass of its own.
        h = [self.encoder(x) for x in batch.views]
        z = [self.projector(h_i) for h_i in h]
        p = [self.predictor(z_i) for z_i in z]
        n = [self.neighbour(z_i.detach()) for z_i in z[:2]]
        losses = [self.contrast(n[i], p[j]) for i, j in pairs(len(p))]
        carry = {"z": F.normalize(z[0].detach().to(n[0].dtype), dim=1)}
        loss = torch.stack(losses).mean()
        return Output(loss, embedding=h[0], projections=tuple(z), carry=carry)

    def neighbour(self, z: Tensor) -> Tensor:
        """The queue's rows nearest to z: (N, D), in place of it."""
        return self.queue.rows[cosines(z, self.queue.rows).argmax(1)]

    def contrast(self, n: Tensor, p: Tensor) -> Tensor:
        """Which of all predictions is the neighbour's own."""
        # Differs from the paper: as in its pseudo-code, without the term that asks, the other way
        # round, which neighbour is the prediction's own.
        own = places(p)
        return info_nce(n, gather(p), own, temperature=self.temperature)

    def after_step(self, carry: dict[str, Tensor], clock: Clock) -> None:
        self.queue.push(gather(carry["z"]))
