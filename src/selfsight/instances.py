"""Every image its own class, by a memory bank (Wu et al. 2018)."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from selfsight.distributed import gather, world
from selfsight.losses import binary_nce, info_nce, noise_scores
from selfsight.memory import Bank

__all__ = ["Instances"]

_FEW = 65536


class Instances(nn.Module):
    """Finds a sample's own row of a bank among `negatives` others, drawn anew in each step.

    loss: "nce" asks of each row whether it is the sample's own, as noise may be too; "softmax"
        asks which one it is, among the batch's rows and others; None: softmax for few images,
        where noise-contrastive estimation, whose constant is the first batch's, takes long to
        begin
    negatives: at most all of the bank
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
        loss: Literal["nce", "softmax"] | None,
        temperature: float,
        momentum: float,
    ) -> None:
        super().__init__()
        self.bank = Bank.random(samples, dim)
        self.register_buffer("log_mean", torch.full((), -torch.inf))
        self.negatives = min(negatives, samples)
        self.loss = loss or ("softmax" if samples <= _FEW else "nce")
        self.temperature, self.momentum = temperature, momentum

    def forward(
        self, z: Tensor, index: Tensor, seed: int, step: int, log_mean: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The loss of z: (N, D), a row for each sample, and log_mean: this batch's if there is
        none yet and none is given; 0 for softmax, which needs none.

        index: (N,) the samples of this rank
        """
        rows = self.bank.rows
        if self.loss == "softmax":
            return self._softmax(z, index, seed, step), torch.zeros_like(self.log_mean)
        noise = rows[self.bank.drawn(seed, step, self.negatives)]
        scores = noise_scores(z, rows[index], noise, self.temperature)
        total = gather(scores.detach().flatten().logsumexp(0, keepdim=True)).logsumexp(0)
        first = total - math.log(scores.numel() * world())
        known = self.log_mean if log_mean is None else log_mean
        known = torch.where(known.isfinite(), known, first)
        return binary_nce(scores, known), known

    def _softmax(self, z: Tensor, index: Tensor, seed: int, step: int) -> Tensor:
        rows = self.bank.rows
        if self.negatives < len(rows):
            # Each row once, so that no sample's own is among its negatives.
            drawn = self.bank.drawn(seed, step, self.negatives)
            among: Tensor = torch.unique(torch.cat([gather(index), drawn]))
            rows, index = rows[among], torch.searchsorted(among, index)
        return info_nce(z, rows, index, temperature=self.temperature)

    @torch.no_grad()
    def follow(self, index: Tensor, z: Tensor, log_mean: Tensor) -> None:
        """index, z: of all ranks, z of unit norm; log_mean: as it was returned, one per part."""
        self.bank.follow(index, z, self.momentum)
        first = log_mean.logsumexp(0) - math.log(len(log_mean))
        self.log_mean.copy_(torch.where(self.log_mean.isfinite(), self.log_mean, first))
