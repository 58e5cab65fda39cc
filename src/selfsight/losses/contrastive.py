"""Losses that tell a sample's other view from the rest."""

import torch
import torch.nn.functional as F
from torch import Tensor

from selfsight.losses.precision import full_precision

__all__ = ["info_nce", "nt_xent"]


@full_precision
def info_nce(
    anchors: Tensor,
    candidates: Tensor,
    positive: Tensor,
    *,
    temperature: float = 0.1,
    exclude: Tensor | None = None,
) -> Tensor:
    """Mean over anchors of −log softmax(â·ĉ/τ) at the positive (van den Oord et al. 2018).

    anchors: (N, D); candidates: (M, D); positive: (N,) the positive's row in candidates;
    exclude: (N,) a row of candidates that is no candidate for this anchor: itself.
    """
    similarity = F.normalize(anchors, dim=1) @ F.normalize(candidates, dim=1).T / temperature
    if exclude is not None:
        # −inf, not a large negative number: at low temperature that number is in range.
        similarity = similarity.scatter(1, exclude[:, None], -torch.inf)
    return F.cross_entropy(similarity, positive)


def nt_xent(z1: Tensor, z2: Tensor, temperature: float = 0.1) -> Tensor:
    """SimCLR's loss, the mean over 2N anchors. z1, z2: (N, D)."""
    z = torch.cat([z1, z2])
    own = torch.arange(len(z), device=z.device)
    return info_nce(z, z, own.roll(len(z1)), temperature=temperature, exclude=own)
