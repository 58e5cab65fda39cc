"""Noise-contrastive estimation: tell a sample's own row from rows drawn at random."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from selfsight.losses.precision import full_precision

__all__ = ["binary_nce", "noise_scores"]


@full_precision
def noise_scores(z: Tensor, own: Tensor, noise: Tensor, temperature: float = 0.07) -> Tensor:
    """(N, 1 + K) cosines over τ of z: (N, D) with own: (N, D), row for row, then noise: (K, D)."""
    z = F.normalize(z, dim=1) / temperature
    first = (z * F.normalize(own, dim=1)).sum(1, keepdim=True)
    return torch.cat([first, z @ F.normalize(noise, dim=1).T], 1)


@full_precision
def binary_nce(scores: Tensor, log_mean: Tensor) -> Tensor:
    """Wu et al. 2018's loss (equation 7): is a row the sample's own or one of K of noise?

    scores: (N, 1 + K), own first; log_mean: of exp(scores), frozen.
    With P = exp(s)/Z, Z = n · mean exp(s) over n rows and noise that draws each with 1/n, the
    odds P : K/n are exp(s) : K · mean exp(s). The number of rows cancels.
    """
    odds = scores - log_mean - math.log(scores.shape[1] - 1)
    return -(F.logsigmoid(odds[:, 0]) + F.logsigmoid(-odds[:, 1:]).sum(1)).mean()
