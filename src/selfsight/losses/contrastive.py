"""Losses that tell a sample's other view from the rest."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from selfsight.losses.chunks import at_once
from selfsight.losses.precision import full_precision

__all__ = ["info_nce", "nt_xent", "proto_nce", "queue_nce"]


@full_precision
def info_nce(
    anchors: Tensor,
    candidates: Tensor,
    positive: Tensor,
    *,
    temperature: float = 0.1,
    exclude: Tensor | None = None,
    normalize: bool = True,
) -> Tensor:
    """Mean over anchors of −log softmax(â·ĉ/τ) at the positive (van den Oord et al. 2018).

    anchors: (N, D); candidates: (M, D); positive: (N,) the positive's row in candidates;
    exclude: (N,) a row of candidates that is no candidate for this anchor: itself;
    normalize: compare by cosines, else by products of the vectors as they are.
    Many anchors are taken in chunks, so that no N×M matrix is held; that form has a first
    derivative only.
    """
    a, c = anchors, candidates
    if normalize:
        c = F.normalize(candidates, dim=1)
        a = c if anchors is candidates else F.normalize(anchors, dim=1)
    return _cross_entropy(a, c, positive, temperature, exclude=exclude)


@full_precision
def nt_xent(z1: Tensor, z2: Tensor, temperature: float = 0.1) -> Tensor:
    """SimCLR's loss, the mean over 2N anchors. z1, z2: (N, D)."""
    z = torch.cat([z1, z2])
    own = torch.arange(len(z), device=z.device)
    return info_nce(z, z, own.roll(len(z1)), temperature=temperature, exclude=own)


@full_precision
def queue_nce(
    q: Tensor, k: Tensor, queue: Tensor, temperature: float = 0.07, exclude: Tensor | None = None
) -> Tensor:
    """MoCo's loss (He et al. 2020): mean of −log softmax_0([q̂·k̂, q̂·Q̂]/τ).

    q, k: (N, D), row for row a query and its key; queue: (K, D), the negatives of all;
    exclude: (N,) a row of the queue that is no negative for this query: its own key.
    """
    q = F.normalize(q, dim=1)
    own = (q * F.normalize(k, dim=1)).sum(1, keepdim=True)
    first = torch.zeros(len(q), dtype=torch.long, device=q.device)
    c = F.normalize(queue, dim=1)
    return _cross_entropy(q, c, first, temperature, exclude=exclude, own=own)


@full_precision
def proto_nce(q: Tensor, prototypes: Tensor, phi: Tensor, positive: Tensor) -> Tensor:
    """PCL's loss on one clustering (Li et al. 2020): mean of −log softmax(q̂·c/φ) at the positive.

    q: (N, D); prototypes: (M, D) unit vectors; phi: (M,) the prototypes' own temperatures;
    positive: (N,) rows of prototypes.
    """
    return _cross_entropy(F.normalize(q, dim=1), prototypes / phi[:, None], positive, 1.0)


def _cross_entropy(
    a: Tensor,
    c: Tensor,
    positive: Tensor,
    temperature: float,
    *,
    exclude: Tensor | None = None,
    own: Tensor | None = None,
) -> Tensor:
    if len(a) <= at_once(len(c)):
        return F.cross_entropy(_logits(a, c, temperature, exclude, own), positive)
    loss: Tensor = _Chunked.apply(a, c, own, positive, exclude, temperature)
    return loss


def _logits(
    a: Tensor, c: Tensor, temperature: float, exclude: Tensor | None, own: Tensor | None
) -> Tensor:
    """(N, M) cosines over τ, or (N, 1 + M) where each row begins with one of its own."""
    s = (a / temperature) @ c.T
    if exclude is not None:
        # −inf, not a large negative number: at low temperature that number is in range.
        s = s.scatter_(1, exclude[:, None], -torch.inf)
    return s if own is None else torch.cat([own / temperature, s], 1)


class _Chunked(torch.autograd.Function):
    """Cross-entropy of the logits, a few anchors at a time.

    The gradient is formed in the same sweep: backward only scales it.
    """

    @staticmethod
    def forward(
        ctx: Any,
        a: Tensor,
        c: Tensor,
        own: Tensor | None,
        positive: Tensor,
        exclude: Tensor | None,
        temperature: float,
    ) -> Tensor:
        n, m = len(a), len(c)
        da, dc, down = (
            torch.zeros_like(x) if x is not None and needed else None
            for x, needed in zip((a, c, own), ctx.needs_input_grad, strict=False)
        )
        if c is a:
            dc = da  # one tensor has one gradient, handed back for the first of its two places
        loss = a.new_zeros(())
        size = at_once(m)
        for start in range(0, n, size):
            rows = slice(start, start + size)
            at = positive[rows, None]
            log_p = _logits(
                a[rows],
                c,
                temperature,
                None if exclude is None else exclude[rows],
                None if own is None else own[rows],
            ).log_softmax(1)
            hit = log_p.gather(1, at)
            loss -= hit.sum()
            # The gradient with respect to the logits: p − 1 at the positive, p elsewhere.
            g = log_p.exp_().scatter_(1, at, hit.expm1())
            if da is not None:
                da[rows].addmm_(g[:, -m:], c)
            if dc is not None:
                dc.addmm_(g[:, -m:].T, a[rows])
            if down is not None:
                down[rows] = g[:, :1]
            del log_p, g  # else two chunks' worth meets the next one's
        ctx.save_for_backward(da, None if c is a else dc, down)
        ctx.divisor = n * temperature
        return loss / n

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        scale = grad / ctx.divisor
        da, dc, down = (d if d is None else d * scale for d in ctx.saved_tensors)
        return da, dc, down, None, None, None
