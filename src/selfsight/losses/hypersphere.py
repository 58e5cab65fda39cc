"""Losses of unit vectors: how near partners are, and how evenly all are spread."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from selfsight.errors import ConfigError
from selfsight.losses.chunks import in_chunks
from selfsight.losses.precision import full_precision

__all__ = ["alignment", "uniformity"]


@full_precision
def alignment(z1: Tensor, z2: Tensor, alpha: float = 2.0) -> Tensor:
    """Mean of ‖ẑ₁ − ẑ₂‖^α: 0 aligned; 2 unrelated where α = 2.

    Wang and Isola 2020, https://arxiv.org/abs/2005.10242. z1, z2: (N, D), rows that belong
    together.
    """
    squared = (F.normalize(z1, dim=1) - F.normalize(z2, dim=1)).square().sum(1)
    # Of a distance of 0 a power below 2 has no derivative; behind the clamp it is 0.
    return squared.clamp_min(torch.finfo(squared.dtype).tiny).pow(alpha / 2).mean()


@full_precision
def uniformity(z: Tensor, t: float = 2.0, others: Tensor | None = None) -> Tensor:
    """log of the mean of exp(−t ‖ẑᵢ − ẑⱼ‖²) over pairs i < j: 0 collapsed, about −2t for many
    samples on a sphere of many dimensions.

    Wang and Isola 2020, https://arxiv.org/abs/2005.10242. z: (N, D), N ≥ 2, of all ranks;
    others: (K, D), whose pairs with z count too. The mean is inside of the logarithm, so parts
    of a batch do not add up. Many pairs are taken in chunks.
    """
    if len(z) < 2 and others is None:
        raise ConfigError("an image alone is not spread; use a --batch of 2 images or more")
    z = F.normalize(z, dim=1)
    n, pairs = len(z), len(z) * (len(z) - 1) / 2

    # −t ‖ẑᵢ − ẑⱼ‖² = 2t ẑᵢ·ẑⱼ − 2t
    def within(a: Tensor, own: Tensor) -> Tensor:
        return (2 * t * a @ z.T).scatter(1, own[:, None], -torch.inf).logsumexp(1)

    # Every pair is met from both sides.
    potentials = [in_chunks(within, z, torch.arange(n, device=z.device), width=n) - math.log(2)]
    if others is not None:
        c = F.normalize(others, dim=1)
        potentials.append(in_chunks(lambda a: (2 * t * a @ c.T).logsumexp(1), z, width=len(c)))
        pairs += n * len(c)
    return torch.cat(potentials).logsumexp(0) - 2 * t - z.new_tensor(pairs).log()
