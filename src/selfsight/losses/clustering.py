"""Losses against assignments to prototypes, and how assignments are balanced."""

from collections.abc import Callable

import torch
from torch import Tensor

from selfsight.losses.precision import full_precision

__all__ = ["assignment_cross_entropy", "sinkhorn"]


def _alone(x: Tensor) -> Tensor:
    return x


@torch.no_grad()
@full_precision
def sinkhorn(
    scores: Tensor,
    epsilon: float = 0.05,
    iterations: int = 3,
    *,
    all_sum: Callable[[Tensor], Tensor] = _alone,
) -> Tensor:
    """Balanced soft assignments of N samples to K prototypes (Cuturi 2013; SwAV eq. 3).

    scores: (N, K) cosines → (N, K); every row sums to 1, columns nearly to N/K. `all_sum`
    adds a tensor over the ranks that each hold some of the samples. iterations=0: the plain
    softmax(scores / ε), not balanced.
    """
    # The answer is diag(u) Q diag(v), Q = exp(scores / ε): only the vectors are iterated.
    # Q's rows are held relative to their largest entry, and u to that of a cosine, 1, so
    # that nothing leaves float32's range at small ε.
    top = scores.amax(1, keepdim=True)
    q = torch.add(-top / epsilon, scores, alpha=1 / epsilon).exp_()
    if not iterations:
        return q / q.sum(1, keepdim=True)
    u = torch.exp((top[:, 0] - 1) / epsilon)
    for _ in range(iterations):
        v = 1 / all_sum(u @ q).clamp_min(torch.finfo(q.dtype).tiny)
        u = 1 / (q @ v)
    return q.mul_(u[:, None]).mul_(v)


@full_precision
def assignment_cross_entropy(logits: Tensor, target: Tensor, temperature: float = 0.1) -> Tensor:
    """Mean of −Σ_k q_k log softmax(logits/τ)_k. logits, target: (N, K)."""
    return -(target * torch.log_softmax(logits / temperature, 1)).sum(1).mean()
