"""SwAV: predict a view's cluster assignment from another view.

Caron et al. 2020, https://arxiv.org/abs/2006.09882
Loss: mean over pairs of −Σ_k q_k log softmax(ẑ·c/τ)_k, q balanced by Sinkhorn and Knopp
"""

import torch
from torch import Tensor

from selfsight.distributed import all_sum, gather, rank, world
from selfsight.encoders.base import Encoder
from selfsight.heads import Prototypes, mlp
from selfsight.losses import assignment_cross_entropy, sinkhorn
from selfsight.memory import Queue
from selfsight.methods.base import Batch, Clock, Method, Output, pairs, per_resolution
from selfsight.optim import Recipe
from selfsight.ranges import Count, Positive, Several, Weight, Whole
from selfsight.views.presets import crops, simclr_view

__all__ = ["SwAV"]


class SwAV(Method):
    """Swapping assignments between views.

    prototypes: clusters
    hidden, dim: widths of the projector
    temperature: τ of the predicted assignment
    epsilon: smoothness of the target assignment
    iterations: of Sinkhorn and Knopp; 0 leaves the assignments unbalanced
    multi_crop: small crops beside the two large ones
    queue: embeddings per large crop that join the assignment problem of small batches
    queue_from: epoch at which the queue starts to fill
    freeze: epochs during which the prototypes rest
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        prototypes: Several = 3000,
        hidden: Count = 2048,
        dim: Count = 128,
        temperature: Positive = 0.1,
        epsilon: Positive = 0.05,
        iterations: Whole = 3,
        multi_crop: Whole = 6,
        queue: Whole = 0,
        queue_from: Whole = 15,
        freeze: Weight = 1.0,
    ) -> None:
        super().__init__(encoder)
        self.projector = mlp(encoder.dim, hidden, dim)
        self.prototypes = Prototypes(dim, prototypes)
        # Differs from the paper: one queue for all ranks, where the official code has one each.
        self.queue = Queue(queue, 2, dim)
        self.temperature, self.epsilon, self.iterations = temperature, epsilon, iterations
        self.queue_from, self.freeze = queue_from, freeze
        self.views = crops(simclr_view(), multi_crop)
        # Rests 313 iterations at batch 4096, 5005 at 256: an epoch of ImageNet either way.
        self.recipe = Recipe(
            optimizer="larc", lr=4.8, batch=4096, weight_decay=1e-6, warmup_from=1 / 16,
            last=1e-3, exempt="none", epochs=800,
        )  # fmt: skip

    def forward(self, batch: Batch, clock: Clock) -> Output:
        h = per_resolution(self.encoder, batch.views)
        z = self.projector(torch.cat(h)).chunk(len(h))
        scores = [self.prototypes(z_i) for z_i in z]
        q = [self.assign(scores[i], i) for i in range(2)]
        # Differs from the paper: the official code averages over views where it sums.
        losses = [assignment_cross_entropy(scores[j], q[i], self.temperature)
                  for i, j in pairs(len(z))]  # fmt: skip
        carry = {"z": torch.stack(z[:2], 1).detach()}
        return Output(torch.stack(losses).mean(), embedding=h[0], projections=z, carry=carry)

    @torch.no_grad()
    def assign(self, scores: Tensor, crop: int) -> Tensor:
        """Balanced targets (N, K) for this rank's samples of one large crop."""
        own = len(scores)
        if self.queue.full:
            # Each rank brings its share of the queue to the common assignment problem.
            older = self.prototypes(self.queue.rows[rank() :: world(), crop])
            scores = torch.cat([scores, older.to(scores.dtype)])
        return sinkhorn(scores, self.epsilon, self.iterations, all_sum=all_sum)[:own]

    def after_backward(self, clock: Clock) -> None:
        if clock.step < self.freeze * clock.per_epoch:
            self.prototypes.weight.grad = None

    def after_step(self, carry: dict[str, Tensor], clock: Clock) -> None:
        self.prototypes.normalize()
        if clock.epoch >= self.queue_from:
            self.queue.push(gather(carry["z"]))
