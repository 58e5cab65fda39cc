"""Losses that follow a target representation."""

import torch.nn.functional as F
from torch import Tensor

from selfsight.losses.chunks import in_chunks
from selfsight.losses.precision import full_precision

__all__ = ["negative_cosine", "relation_consistency"]


@full_precision
def negative_cosine(p: Tensor, z: Tensor) -> Tensor:
    """Mean of −cos(p, z). p, z: (N, D). Stop the target's gradient yourself."""
    return -(F.normalize(p, dim=1) * F.normalize(z, dim=1)).sum(1).mean()


@full_precision
def relation_consistency(
    z: Tensor,
    target: Tensor,
    queue: Tensor,
    temperature: float = 0.1,
    teacher_temperature: float = 0.04,
) -> Tensor:
    """ReSSL's loss (Zheng et al. 2021): mean of −Σ_k p_k log softmax(ẑ·Q̂/τ_s)_k, where
    p = softmax(t̂·Q̂/τ_t).

    z, target: (N, D), row for row a student's output and a teacher's, whose gradient you stop
    yourself; queue: (K, D), to which both are compared. Many rows are taken in chunks.
    """
    c = F.normalize(queue, dim=1)

    def cross_entropy(z: Tensor, t: Tensor) -> Tensor:
        p = (t / teacher_temperature @ c.T).softmax(1)
        return -(p * (z / temperature @ c.T).log_softmax(1)).sum(1)

    rows = F.normalize(z, dim=1), F.normalize(target, dim=1)
    return in_chunks(cross_entropy, *rows, width=2 * len(c)).mean()
