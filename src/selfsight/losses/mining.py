"""Contrast with negatives that are chosen, moved or made up for each query.

Many queries are taken in chunks, so that no matrix of queries by negatives is held.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from selfsight.losses.chunks import in_chunks
from selfsight.losses.precision import full_precision

__all__ = [
    "extrapolated",
    "hard_mixes",
    "interpolated",
    "mixed_nce",
    "ring_nce",
    "score_moments",
    "score_nce",
]


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

    def each(q: Tensor, k: Tensor) -> Tensor:
        s = q @ queue.T
        if stop < len(queue):
            s = s.topk(stop, dim=1, sorted=False).values
        if start:
            s = s.topk(stop - start, dim=1, largest=False, sorted=False).values
        return _nce(q, k, s, temperature)

    return in_chunks(each, q, k, width=len(queue)).mean()


@full_precision
def extrapolated(q: Tensor, k: Tensor, by: Tensor | float) -> tuple[Tensor, Tensor]:
    """λq̂ + (1−λ)k̂ and λk̂ + (1−λ)q̂, which are farther apart (Zhu et al. 2021).

    q, k: (N, D), row for row a query and its key; by: λ ≥ 1, which may have one value for each
    entry. Nothing is normalised again.
    """
    q, k = F.normalize(q, dim=1), F.normalize(k, dim=1)
    return k + by * (q - k), q + by * (k - q)


@full_precision
def interpolated(queue: Tensor, by: Tensor | float, partners: Tensor) -> Tensor:
    """μn̂ + (1−μ)m̂, between rows n of the queue and m, its rows `partners` (Zhu et al. 2021).

    queue: (K, D); partners: (K,); by: μ, which may have one value for each entry. Nothing is
    normalised again.
    """
    n = F.normalize(queue, dim=1)
    m = n[partners]
    return m + by * (n - m)


@full_precision
def score_nce(q: Tensor, k: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """Mean of −log softmax_0([q·k, q·n]/τ), of the rows as they are.

    q, k: (N, D), row for row a query and its key; negatives: (K, D)
    """

    def each(q: Tensor, k: Tensor) -> Tensor:
        return _nce(q, k, q @ negatives.T, temperature)

    return in_chunks(each, q, k, width=len(negatives)).mean()


@full_precision
@torch.no_grad()
def score_moments(q: Tensor, k: Tensor, negatives: Tensor) -> dict[str, Tensor]:
    """What Zhu et al. (2021) plot of the scores q·k and q·n in training.

    q, k: (N, D), row for row a query and its key; negatives: (K, D). The negatives' variance is
    that of one query's, averaged over the queries.
    """
    positive, mean = (q * k).sum(1), negatives.mean(0)
    apart = negatives - mean
    covariance = apart.T @ apart / len(negatives)  # of q·n it is q·Cq, without a score formed
    return {
        "positive_mean": positive.mean(),
        "positive_variance": positive.var(correction=0),
        "negative_mean": (q @ mean).mean(),
        "negative_variance": (q @ covariance * q).sum(1).mean(),
    }


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

    def each(q: Tensor, k: Tensor, draws: Tensor) -> Tensor:
        mixes = hard_mixes(q, queue, draws, hardest=hardest, pairs=pairs, queries=queries)
        s = torch.cat([q @ queue.T, torch.einsum("nd,nmd->nm", q, mixes)], 1)
        return _nce(q, k, s, temperature)

    width = len(queue) + (pairs + queries) * q.shape[1]
    return in_chunks(each, q, k, draws, width=width).mean()


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
    n1, n2, n3 = (queue[near.gather(1, (pick * hardest).long())] for pick in picks)
    alpha, beta = alpha[:, :, None], beta[:, :, None] / 2
    between = alpha * n1 + (1 - alpha) * n2
    towards = beta * q[:, None] + (1 - beta) * n3
    return F.normalize(torch.cat([between, towards], 1), dim=2)


def _nce(q: Tensor, k: Tensor, negative: Tensor, temperature: float) -> Tensor:
    """(N,) −log softmax_0([q·k, s]/τ). negative: (N, M) the s."""
    odds = (negative / temperature).logsumexp(1) - (q * k).sum(1) / temperature
    return torch.logaddexp(odds, torch.zeros_like(odds))
