"""Losses that follow a target representation."""

import torch.nn.functional as F
from torch import Tensor

from selfsight.losses.precision import full_precision

__all__ = ["negative_cosine"]


@full_precision
def negative_cosine(p: Tensor, z: Tensor) -> Tensor:
    """Mean of −cos(p, z). p, z: (N, D). Stop the target's gradient yourself."""
    return -(F.normalize(p, dim=1) * F.normalize(z, dim=1)).sum(1).mean()
