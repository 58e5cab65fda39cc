"""Losses of images whose labels are known."""

import torch
import torch.nn.functional as F
from torch import Tensor

from selfsight.losses.chunks import in_chunks
from selfsight.losses.precision import full_precision

__all__ = ["supcon"]


@full_precision
def supcon(
    z: Tensor,
    labels: Tensor,
    anchors: Tensor | None = None,
    *,
    temperature: float = 0.1,
    base_temperature: float = 0.07,
    inside: bool = False,
) -> Tensor:
    """τ/τ₀ times the mean over anchors of −log softmax(ẑ·ẑ'/τ), averaged over all others of the
    anchor's label (Khosla et al. 2020). With image numbers as labels it is InfoNCE of any number
    of views, and NT-Xent of two.

    z: (M, D); labels: (M,); anchors: (N,) rows of z, by default all
    inside: average the others' probabilities, not their logarithms (equation 3)
    An anchor that has no other of its label counts as 0. Many anchors are taken in chunks, so
    that no N×M matrix is held.
    """
    c = F.normalize(z, dim=1)

    def log_likelihood(rows: Tensor) -> Tensor:
        positive = (labels[rows, None] == labels).scatter_(1, rows[:, None], False)
        count = positive.sum(1, dtype=c.dtype)
        s = (c[rows] / temperature) @ c.T
        # −inf, not a large negative number: at low temperature that number is in range.
        log_p = s.scatter_(1, rows[:, None], -torch.inf).log_softmax(1)
        if not inside:
            return log_p.masked_fill(~positive, 0).sum(1) / count.clamp(min=1)
        alone = count == 0  # whose gradient would be undefined, not 0
        p = log_p.masked_fill(~(positive | alone[:, None]), -torch.inf).logsumexp(1)
        return (p - count.log()).masked_fill(alone, 0)

    rows = torch.arange(len(z), device=z.device) if anchors is None else anchors
    each = in_chunks(log_likelihood, rows, width=len(z))
    return -temperature / base_temperature * each.mean()
