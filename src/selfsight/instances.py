"""Every image its own class, by a memory bank (Wu et al. 2018)."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from selfsight.distributed import gather, world
from selfsight.losses import binary_nce, info_nce, noise_scores, queue_nce
from selfsight.memory import Bank
from selfsight.methods.base import Batch

__all__ = ["Instances"]


class Instances(nn.Module):
    """Finds a sample's own row of a bank among `negatives` others, drawn anew in each step.

    loss: "nce" asks of each row whether it is the sample's own, "softmax" which one it is;
        softmax takes every row if there are no more than `negatives`
    momentum: share of the old row when a row follows its sample
    log_mean: log of mean exp(cosine/τ) over the first batch, −inf before it; for "nce"
    """

    log_mean: Tensor

    def __init__(
        self,
        samples: int,
        dim: int,
        *,
        negatives: int,
        loss: Literal["nce", "softmax"],
        temperature: float,
        momentum: float,
    ) -> None:
        super().__init__()
        self.bank = Bank.random(samples, dim)
        self.register_buffer("log_mean", torch.full((), -torch.inf))
        self.negatives, self.loss = negatives, loss
        self.temperature, self.momentum = temperature, momentum

    def forward(
        self, z: Tensor, batch: Batch, log_mean: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The loss of z: (N, D), a row for each sample of the batch, and log_mean: this batch's
        if there is none yet and none is given; 0 for softmax, which needs none."""
        rows, unused = self.bank.rows, torch.zeros_like(self.log_mean)
        if self.loss == "softmax" and self.negatives >= len(rows):
            return info_nce(z, rows, batch.index, temperature=self.temperature), unused
        noise = self.bank.drawn(batch.key.seed, batch.key.step, self.negatives)
        if self.loss == "softmax":
            return queue_nce(z, rows[batch.index], noise, self.temperature), unused
        scores = noise_scores(z, rows[batch.index], noise, self.temperature)
        total = gather(scores.detach().flatten().logsumexp(0, keepdim=True)).logsumexp(0)
        first = total - math.log(scores.numel() * world())
        known = self.log_mean if log_mean is None else log_mean
        known = torch.where(known.isfinite(), known, first)
        return binary_nce(scores, known), known

    @torch.no_grad()
    def follow(self, index: Tensor, z: Tensor, log_mean: Tensor) -> None:
        """index, z: of all ranks, z of unit norm; log_mean: as it was returned, one per part."""
        self.bank.follow(index, z, self.momentum)
        first = log_mean.logsumexp(0) - math.log(len(log_mean))
        self.log_mean.copy_(torch.where(self.log_mean.isfinite(), self.log_mean, first))
