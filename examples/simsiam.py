"""SimSiam: predict the other view's projection behind a stop-gradient.

Chen and He 2020, https://arxiv.org/abs/2011.10566
"""

from typing import Any

import torch

from selfsight.encoders import Encoder
from selfsight.heads import mlp
from selfsight.losses import negative_cosine
from selfsight.methods.base import Batch, Clock, Method, Output, pairs
from selfsight.optim import Recipe
from selfsight.views import View


class SimSiam(Method):
    """Siamese networks without negatives and without a teacher.

    hidden, dim: widths of the predictor's bottleneck and of everything else
    """

    def __init__(self, encoder: Encoder, *, hidden: int = 512, dim: int = 2048) -> None:
        super().__init__(encoder)
        self.projector = mlp(
            encoder.dim, dim, dim, dim, bias=False, last_bias=False, last_norm="plain"
        )
        self.predictor = mlp(dim, hidden, dim, bias=False)
        self.views = [View(crop=(0.2, 1.0), jitter=(0.4, 0.4, 0.4, 0.1), count=2)]
        self.recipe = Recipe(optimizer="sgd", lr=0.05, weight_decay=1e-4, warmup=0, exempt="none")

    def forward(self, batch: Batch, clock: Clock) -> Output:
        h = [self.encoder(x) for x in batch.views]
        z = [self.projector(h_i) for h_i in h]
        p = [self.predictor(z_i) for z_i in z]
        losses = [negative_cosine(p[j], z[i].detach()) for i, j in pairs(len(z))]
        return Output(torch.stack(losses).mean(), embedding=h[0], projections=tuple(z))

    def groups(self) -> list[dict[str, Any]]:
        """The predictor's rate does not decay (section 4.2)."""
        base = [*self.encoder.parameters(), *self.projector.parameters()]
        return [{"params": base}, {"params": [*self.predictor.parameters()], "constant": True}]
