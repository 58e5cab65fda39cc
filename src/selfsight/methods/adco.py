"""AdCo: contrast with negatives that are learned against the encoder.

Hu et al. 2020, https://arxiv.org/abs/2011.08435
Loss: −log exp(q·k⁺/τ) / (Σ_batch exp(q·k/τ) + Σ_bank exp(q·n/τ)), which the bank's n climb
at a temperature of their own
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsight.batchnorm import grouped, shuffled
from selfsight.distributed import all_sum, gather, places, world
from selfsight.encoders.base import Encoder
from selfsight.heads import Head, mlp, shape
from selfsight.losses import info_nce
from selfsight.memory import Queue
from selfsight.methods.base import Batch, Clock, Method, Output
from selfsight.momentum import Teacher
from selfsight.optim import Recipe
from selfsight.ranges import Count, Positive, Share, Weight, Whole
from selfsight.views.presets import crops, moco_view

__all__ = ["AdCo"]


class AdCo(Method):
    """Adversarial contrast.

    queue: learned negatives; they start as the keys of the first batches
    bank_temperature: τ of the loss that the negatives climb
    bank_lr, bank_momentum, bank_decay: of their steps
    temperature: τ of the encoder's loss
    momentum: decay of the key encoder
    head: projector behind the encoder: none, linear or nonlinear
    layers: linear layers of the nonlinear head
    hidden, dim: widths of the nonlinear head's inner layers (None: the encoder's) and of q and k
    norm_groups: parts of the batch that share BatchNorm statistics, as GPUs do in the paper
    symmetric: let each view be the query once, and average the two losses
    multi_crop: small crops beside the two large ones, each a query too (SwAV table 3)
    """

    velocity: Tensor

    def __init__(
        self,
        encoder: Encoder,
        *,
        queue: Count = 65536,
        bank_temperature: Positive = 0.02,
        bank_lr: Weight = 3.0,
        bank_momentum: Share = 0.9,
        bank_decay: Weight = 1e-4,
        temperature: Positive = 0.12,
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
        widths = shape(head, encoder.dim, hidden, layers, dim)
        self.projector = mlp(*widths, norm=False)
        grouped(encoder, norm_groups)
        self.teacher = Teacher(copy.deepcopy(nn.Sequential(encoder, self.projector)))
        self.bank = Queue.random(queue, widths[-1])
        self.bank.filled.zero_()  # the first keys take the random rows' places
        self.register_buffer("velocity", torch.zeros(queue, widths[-1]))
        self.bank_temperature, self.bank_lr = bank_temperature, bank_lr
        self.bank_momentum, self.bank_decay = bank_momentum, bank_decay
        self.temperature, self.momentum = temperature, momentum
        self.key_views = (1, 0) if symmetric else (1,)  # views that give keys
        # Differs from the paper: small crops are SwAV's, and their losses are averaged.
        self.views = crops(moco_view(2), multi_crop)
        self.recipe = Recipe(optimizer="sgd", lr=0.03, weight_decay=1e-4, warmup=0, last=0.02,
                             exempt="none", epochs=200)  # fmt: skip

    def forward(self, batch: Batch, clock: Clock) -> Output:
        ways = [(i, j) for j in self.key_views for i in range(len(batch.views)) if i != j]
        h = {i: self.encoder(batch.views[i]) for i in sorted({i for i, _ in ways})}
        q = {i: self.projector(h_i) for i, h_i in h.items()}
        at = batch.key.seed, batch.key.step
        k = torch.stack([shuffled(self.teacher, batch.views[j], *at) for j in self.key_views])
        qs = torch.stack([q[i] for i, _ in ways]).view(len(k), -1, *q[0].shape)
        loss = self.contrast(qs, k, self.bank.rows, self.temperature)
        carry = {"q": qs.detach().movedim(2, 0), "k": k.movedim(1, 0)}
        return Output(loss, embedding=h[0], projections=(q[0], q.get(1, k[0])), carry=carry)

    def contrast(self, q: Tensor, k: Tensor, bank: Tensor, temperature: float) -> Tensor:
        """Of queries with the keys of all ranks and the bank. q: (keys, queries of each, N, D);
        k: (keys, N, D)."""
        losses = []
        for queries, keys in zip(q, k, strict=True):
            candidates, own = torch.cat([gather(keys), bank]), places(keys).repeat(len(queries))
            losses += [info_nce(queries.flatten(0, 1), candidates, own, temperature=temperature)]
        return torch.stack(losses).mean()

    def after_step(self, carry: dict[str, Tensor], clock: Clock) -> None:
        q, k, bank = carry["q"].movedim(0, 2), carry["k"].movedim(0, 1), self.bank.rows
        missing = len(bank) - int(self.bank.filled)
        # When the bank is full, the key encoder starts anew from the query encoder.
        decay = 0.0 if 0 < missing <= len(k[0]) * world() else self.momentum
        self.teacher.update(nn.Sequential(self.encoder, self.projector), decay)
        if missing:
            # The official code fills it, and trains meanwhile, in steps before the first epoch.
            # Differs from the paper: while the bank fills, the batch's keys are negatives too.
            self.bank.push(F.normalize(gather(k[0]).to(bank), dim=1))
            return
        n = bank.clone().requires_grad_()
        (g,) = torch.autograd.grad(self.contrast(q, k, n, self.bank_temperature), n)
        # The bank climbs, its decay descends. It is normalised where it is read, as in the
        # official code.
        self.velocity.mul_(self.bank_momentum).add_(self.bank_decay * bank - all_sum(g) / world())
        bank.sub_(self.velocity, alpha=self.bank_lr)
