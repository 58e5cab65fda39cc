"""MoCHi: MoCo with further negatives, mixed from those that are hardest for each query.

Kalantidis et al. 2020, https://arxiv.org/abs/2010.01028
Loss: −log exp(q·k⁺/τ) / (exp(q·k⁺/τ) + Σ exp(q·n/τ)), n from the queue, from mixes of pairs of
the query's hardest n, and from mixes of one of these with q
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsight.batchnorm import grouped, shuffled
from selfsight.distributed import gather
from selfsight.encoders.base import Encoder
from selfsight.errors import ConfigError
from selfsight.heads import Head, mlp, shape
from selfsight.losses import mixed_nce, queue_nce
from selfsight.memory import Queue
from selfsight.methods.base import Batch, Clock, Key, Method, Output
from selfsight.momentum import Teacher
from selfsight.optim import Recipe
from selfsight.philox import Purpose
from selfsight.ranges import Count, Positive, Share, Whole
from selfsight.views.presets import crops, moco_view

__all__ = ["MoCHi"]


class MoCHi(Method):
    """Mixing of contrastive hard negatives, on MoCo v2.

    queue: keys that serve as negatives
    hardest: N, the keys of the queue nearest to the query, from which the mixes are made
    mixed_pairs, mixed_queries: s mixes of two of these and s′ of one with the query (table 2)
    warmup_share: of the run, before there are mixes: 15 of the paper's 200 epochs
    temperature: τ of the loss
    momentum: decay of the key encoder
    head: projector behind the encoder: none, linear or nonlinear
    layers: linear layers of the nonlinear head
    hidden, dim: widths of the nonlinear head's inner layers (None: the encoder's) and of q and k
    norm_groups: parts of the batch that share BatchNorm statistics, as GPUs do in the paper
    symmetric: let each view be the query once, and add the two losses
    multi_crop: small crops beside the two large ones, each a query too (SwAV table 3)
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        queue: Count = 65536,
        hardest: Count = 1024,
        mixed_pairs: Whole = 1024,
        mixed_queries: Whole = 128,
        warmup_share: Share = 0.075,
        temperature: Positive = 0.2,
        momentum: Share = 0.999,
        head: Head = "nonlinear",
        layers: Count = 2,
        hidden: Count | None = None,
        dim: Count = 128,
        norm_groups: Count = 8,
        symmetric: bool = False,
        multi_crop: Whole = 0,
    ) -> None:
        super().__init__(encoder)
        if hardest > queue:
            raise ConfigError(f"mochi cannot mix the {hardest} hardest keys of a queue of {queue}; "
                              "lower --method.hardest or raise --method.queue")  # fmt: skip
        widths = shape(head, encoder.dim, hidden, layers, dim)
        self.projector = mlp(*widths, norm=False)
        grouped(encoder, norm_groups)
        self.teacher = Teacher(copy.deepcopy(nn.Sequential(encoder, self.projector)))
        self.queue = Queue.random(queue, widths[-1])
        self.mixes = {"hardest": hardest, "pairs": mixed_pairs, "queries": mixed_queries}
        self.draws, self.warmup_share = 3 * mixed_pairs + 2 * mixed_queries, warmup_share
        self.temperature, self.momentum = temperature, momentum
        self.key_views = (1, 0) if symmetric else (1,)  # views that give keys
        self.views = crops(moco_view(2), multi_crop)
        self.recipe = Recipe(optimizer="sgd", lr=0.03, weight_decay=1e-4, warmup=0, exempt="none",
                             epochs=200)  # fmt: skip

    def forward(self, batch: Batch, clock: Clock) -> Output:
        ways = [(i, j) for j in self.key_views for i in range(len(batch.views)) if i != j]
        h = {i: self.encoder(batch.views[i]) for i in sorted({i for i, _ in ways})}
        q = {i: self.projector(h_i) for i, h_i in h.items()}
        at = batch.key.seed, batch.key.step
        k = {j: shuffled(self.teacher, batch.views[j], *at) for j in self.key_views}
        mixing = clock.progress >= self.warmup_share and self.draws > 0
        losses = [self.contrast(q[i], k[j], batch.key if mixing else None) for i, j in ways]
        loss = len(k) * torch.stack(losses).mean()
        carry = {"k": F.normalize(torch.stack(list(k.values()), 1), dim=2)}
        return Output(loss, embedding=h[0], projections=(q[0], q.get(1, k[1])), carry=carry)

    def contrast(self, q: Tensor, k: Tensor, key: Key | None) -> Tensor:
        """With mixes that `key` draws, if given."""
        if key is None:
            return queue_nce(q, k, self.queue.rows, self.temperature)
        draws = key.per_sample(Purpose.MIX, self.draws)
        return mixed_nce(q, k, self.queue.rows, draws, self.temperature, **self.mixes)

    def after_step(self, carry: dict[str, Tensor], clock: Clock) -> None:
        self.queue.push(gather(carry["k"]).flatten(0, 1))
        self.teacher.update(nn.Sequential(self.encoder, self.projector), self.momentum)
