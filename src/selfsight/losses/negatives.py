"""Losses that choose, weigh or correct the negatives of a batch.

Throughout, row for row, `anchors` and `positives`: (N, D) are two views of an image;
`candidates`: (M, D) are two views of every image of the batch, whichever rank holds it; `own`:
(N,) and `owners`: (M,) say whose each row is. An anchor's negatives are the candidates of other
owners. Owners are images, of which each has M − 2 negatives, or classes where labels are known.
Many anchors are taken in chunks, so that no N×M matrix is held.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from selfsight.errors import ConfigError
from selfsight.losses.chunks import in_chunks
from selfsight.losses.precision import full_precision

__all__ = [
    "cosine",
    "coupling",
    "debiased_nce",
    "decoupled_nce",
    "hard_nce",
    "mises_fisher",
    "simple_contrast",
    "variation",
]


@full_precision
def cosine(a: Tensor, b: Tensor) -> Tensor:
    """(N,) cosines, row for row. a, b: (N, D)."""
    return (F.normalize(a, dim=1) * F.normalize(b, dim=1)).sum(1)


@full_precision
def decoupled_nce(
    anchors: Tensor,
    positives: Tensor,
    candidates: Tensor,
    own: Tensor,
    owners: Tensor,
    *,
    temperature: float = 0.1,
    weight: Tensor | None = None,
) -> Tensor:
    """Mean over anchors of −w s⁺/τ + log Σ_negatives exp(s/τ) (Yeh et al. 2021).

    weight: (N,) the w, as from `mises_fisher`; None: 1
    """
    _negatives(candidates)  # without any the loss has no lower bound
    a, c, s = _cosines(anchors, positives, candidates)
    pull = s if weight is None else weight * s
    return (_log_sum(a / temperature, c, own, owners) - pull / temperature).mean()


@full_precision
def mises_fisher(s: Tensor, everyone: Tensor, sigma: float = 0.5) -> Tensor:
    """(N,) weights 2 − M softmax(s⁺/σ), of mean 1 over the batch: large where a pair is apart.

    s: (N,) s⁺ of the anchors; everyone: (M,) those of the whole batch
    """
    return 2 - len(everyone) * (s / sigma - (everyone / sigma).logsumexp(0)).exp()


@full_precision
@torch.no_grad()
def coupling(
    anchors: Tensor,
    positives: Tensor,
    candidates: Tensor,
    own: Tensor,
    owners: Tensor,
    *,
    temperature: float = 0.1,
) -> Tensor:
    """(N,) q = 1 − p⁺, p⁺ the positive's probability under InfoNCE.

    InfoNCE's gradient is q times that of the decoupled loss (Yeh et al. 2021, proposition 1):
    where it is near 0 an anchor teaches nothing, be its negatives ever so hard.
    """
    a, c, s = _cosines(anchors, positives, candidates)
    return torch.sigmoid(_log_sum(a / temperature, c, own, owners) - s / temperature)


@full_precision
def variation(q: Tensor) -> Tensor:
    """Deviation of q: (N,) ≥ 0 over its mean; 0 where all are 0."""
    return q.std(correction=0) / q.mean().clamp_min(torch.finfo(q.dtype).tiny)


@full_precision
def debiased_nce(
    anchors: Tensor,
    positives: Tensor,
    candidates: Tensor,
    own: Tensor,
    owners: Tensor,
    *,
    temperature: float = 0.5,
    tau_plus: float = 0.1,
    beta: float = 0.0,
    known: Tensor | None = None,
) -> Tensor:
    """Mean over anchors of −log e^{s⁺/τ} / (e^{s⁺/τ} + G), where negatives may be of the
    anchor's class unseen (Chuang et al. 2020) and the hard ones count more (Robinson et al. 2021).

    G = (M − 2) max{(E₋ − τ⁺ E₊) / (1 − τ⁺), e^{−1/τ}}; E₋: mean of e^{s/τ} over the negatives,
    weighted by e^{βs/τ}, whose gradient is not stopped; E₊: mean of e^{s/τ} over what is known
    to be of the anchor's class.

    tau_plus: probability that a negative is of the anchor's class, below 1
    known: (N, K, D) views averaged in E₊; None: the positive alone
    """
    count = _negatives(candidates)
    a, c, s = _cosines(anchors, positives, candidates)
    a, positive = a / temperature, s / temperature
    floor = -1 / temperature
    # In a batch of one class nobody has negatives: all are taken, and then the floor.
    alone = (owners == owners[0]).all()
    own = torch.where(alone, -1, own)
    weights = _log_sum(beta * a, c, own, owners) if beta else _others(own, owners).to(a).log()
    negative = _log_sum((1 + beta) * a, c, own, owners) - weights
    negative = torch.where(alone, floor, negative)
    pulled = positive
    if known is not None:
        each = (F.normalize(known, dim=2) @ a[:, :, None])[:, :, 0]
        pulled = each.logsumexp(1) - math.log(known.shape[1])
    # log (E₋ − τ⁺E₊) = log E₋ + log (1 − e^gap); where nothing is left, the floor stands.
    gap = pulled - negative + (math.log(tau_plus) if tau_plus else -math.inf)
    least = -torch.finfo(gap.dtype).eps
    left = negative + (-torch.expm1(gap.clamp_max(least))).log() - math.log1p(-tau_plus)
    estimate = torch.where(gap < least, left, floor).clamp_min(floor)
    odds = math.log(count) + estimate - positive
    return torch.logaddexp(odds, torch.zeros_like(odds)).mean()


@full_precision
def hard_nce(
    anchors: Tensor,
    positives: Tensor,
    candidates: Tensor,
    own: Tensor,
    owners: Tensor,
    *,
    temperature: float = 0.1,
    hardest: float = 1.0,
) -> Tensor:
    """InfoNCE over an anchor's positive and its most similar negatives (Wang and Liu 2021).

    hardest: share of the negatives that is kept, one at least; with all of them it is InfoNCE
    """
    a, c, s = _cosines(anchors, positives, candidates)
    count = _negatives(c, hardest)

    def pushed(a: Tensor, own: Tensor) -> Tensor:
        return (_nearest(a, c, own, owners, count) / temperature).logsumexp(1)

    odds = in_chunks(pushed, a, own, width=len(c)) - s / temperature
    return torch.logaddexp(odds, torch.zeros_like(odds)).mean()


@full_precision
def simple_contrast(
    anchors: Tensor,
    positives: Tensor,
    candidates: Tensor,
    own: Tensor,
    owners: Tensor,
    *,
    weight: float | None = None,
    hardest: float = 1.0,
) -> Tensor:
    """Mean over anchors of −s⁺ + λ Σ s over the most similar negatives (Wang and Liu 2021).

    weight: λ; None: one over the number of negatives in the sum, which makes the two pulls equal
    hardest: share of the negatives that is kept, one at least
    """
    a, c, s = _cosines(anchors, positives, candidates)
    count = _negatives(c, hardest)

    def pushed(a: Tensor, own: Tensor) -> Tensor:
        near = _nearest(a, c, own, owners, count)
        return near.masked_fill(near.isneginf(), 0).sum(1)

    scale = 1 / count if weight is None else weight
    return (scale * in_chunks(pushed, a, own, width=len(c)) - s).mean()


def _cosines(
    anchors: Tensor, positives: Tensor, candidates: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Unit anchors and candidates, and (N,) s⁺."""
    a = F.normalize(anchors, dim=1)
    c = a if candidates is anchors else F.normalize(candidates, dim=1)
    return a, c, (a * F.normalize(positives, dim=1)).sum(1)


def _products(a: Tensor, c: Tensor, own: Tensor, owners: Tensor) -> Tensor:
    """(N, M) products, −∞ where the owner is the same."""
    return (a @ c.T).masked_fill_(own[:, None] == owners, -torch.inf)


def _nearest(a: Tensor, c: Tensor, own: Tensor, owners: Tensor, count: int) -> Tensor:
    """(N, count) products with the nearest negatives, or (N, M) with −∞ where there is none."""
    products = _products(a, c, own, owners)
    return products if count == len(c) - 2 else products.topk(count, 1).values


def _log_sum(a: Tensor, c: Tensor, own: Tensor, owners: Tensor) -> Tensor:
    """(N,) log Σ exp(a·c) over each anchor's negatives."""

    def each(a: Tensor, own: Tensor) -> Tensor:
        return _products(a, c, own, owners).logsumexp(1)

    return in_chunks(each, a, own, width=len(c))


def _others(own: Tensor, owners: Tensor) -> Tensor:
    """(N,) how many candidates are of other owners."""
    owners = owners.sort().values
    same = torch.searchsorted(owners, own, right=True) - torch.searchsorted(owners, own)
    return len(owners) - same


def _negatives(candidates: Tensor, share: float = 1.0) -> int:
    """How many of the batch's other images' views a share is, one at least."""
    others = len(candidates) - 2
    if others < 1:
        raise ConfigError("an image alone has no negatives; use a --batch of 2 images or more")
    return max(1, math.ceil(share * others))
