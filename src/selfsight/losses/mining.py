"""Contrast with negatives that are chosen, moved or made up for each query."""

import torch
import torch.nn.functional as F
from torch import Tensor

from selfsight.losses.precision import full_precision

__all__ = [
    "hard_mixes",
    "mixed_nce",
    "ring_nce",
    "score_moments",
    "score_nce",
    "transformed_scores",
]


@full_precision
def score_nce(positive: Tensor, negative: Tensor, temperature: float) -> Tensor:
    """Mean of −log softmax_0([s⁺, s⁻]/τ). positive: (N, 1); negative: (N, M)."""
    scores = torch.cat([positive, negative], 1)
    first = torch.zeros(len(scores), dtype=torch.long, device=scores.device)
    return F.cross_entropy(scores / temperature, first)


@torch.no_grad()
def score_moments(positive: Tensor, negative: Tensor) -> dict[str, Tensor]:
    """What Zhu et al. (2021) plot of the scores in training. positive: (N, 1); negative: (N, M),
    whose variance is that of one query's, averaged over the queries."""
    return {
        "positive_mean": positive.mean(),
        "positive_variance": positive.var(correction=0),
        "negative_mean": negative.mean(),
        "negative_variance": negative.var(1, correction=0).mean(),
    }


@full_precision
def ring_nce(
    q: Tensor, k: Tensor, queue: Tensor, temperature: float, inner: float, outer: float
) -> Tensor:
    """InfoNCE over a ring of negatives around each query (Wu et al. 2021).

    q, k: (N, D), row for row a query and its key; queue: (K, D)
    outer: fraction of the queue, the nearest to the query, that may be negatives
    inner: fraction of these, the nearest of all, that is left out; one negative always stays
    """
    q, k, queue = (F.normalize(x, dim=1) for x in (q, k, queue))
    stop = max(1, int(outer * len(queue)))
    start = min(int(inner * stop), stop - 1)
    negative = q @ queue.T
    if stop - start < len(queue):
        negative = negative.topk(stop, dim=1).values[:, start:]
    return score_nce((q * k).sum(1, keepdim=True), negative, temperature)


@full_precision
def transformed_scores(
    q: Tensor,
    k: Tensor,
    queue: Tensor,
    *,
    extrapolation: Tensor | float = 1.0,
    interpolation: Tensor | float = 1.0,
    partners: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(N, 1) positive and (N, K) negative scores after Zhu et al.'s (2021) transformation.

    extrapolation: λ ≥ 1, which draws q and k apart: q ← λq + (1−λ)k, and k with q in turn
    interpolation: μ, which mixes the queue with its rows `partners`: (K,)
    Both may have one value for each entry. Nothing is normalised again.
    """
    q, k, queue = (F.normalize(x, dim=1) for x in (q, k, queue))
    q, k = k + extrapolation * (q - k), q + extrapolation * (k - q)
    if partners is not None:
        other = queue[partners]
        queue = other + interpolation * (queue - other)
    return (q * k).sum(1, keepdim=True), q @ queue.T


@full_precision
def mixed_nce(
    q: Tensor,
    k: Tensor,
    queue: Tensor,
    draws: Tensor,
    temperature: float,
    *,
    hardest: int,
    pairs: int,
    queries: int,
) -> Tensor:
    """InfoNCE over the queue and `hard_mixes` of it (Kalantidis et al. 2020).

    q, k: (N, D), row for row a query and its key; queue: (K, D)
    """
    q, k, queue = (F.normalize(x, dim=1) for x in (q, k, queue))
    mixes = hard_mixes(q, queue, draws, hardest=hardest, pairs=pairs, queries=queries)
    negative = torch.cat([q @ queue.T, torch.einsum("nd,nmd->nm", q, mixes)], 1)
    return score_nce((q * k).sum(1, keepdim=True), negative, temperature)


@full_precision
@torch.no_grad()
def hard_mixes(
    q: Tensor, queue: Tensor, draws: Tensor, *, hardest: int, pairs: int, queries: int
) -> Tensor:
    """(N, pairs + queries, D) unit rows between each query's `hardest` negatives, then
    between one of these and the query, which has less than half of the weight.

    q: (N, D) and queue: (K, D) are unit rows; draws: (N, 3 · pairs + 2 · queries) uniforms
    """
    near = (q @ queue.T).topk(hardest, dim=1).indices
    sizes = [pairs, queries, pairs, pairs, queries]
    alpha, beta, *picks = torch.split(draws.to(q), sizes, 1)
    # A uniform of 24 bits times `hardest` may be rounded up to it.
    picks = [(pick * hardest).long().clamp_max(hardest - 1) for pick in picks]
    n1, n2, n3 = (queue[near.gather(1, pick)] for pick in picks)
    alpha, beta = alpha[:, :, None], beta[:, :, None] / 2
    between = alpha * n1 + (1 - alpha) * n2
    towards = beta * q[:, None] + (1 - beta) * n3
    return F.normalize(torch.cat([between, towards], 1), dim=2)
