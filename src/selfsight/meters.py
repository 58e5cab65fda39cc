"""How an embedding fills its space: pure functions of (N, D) tensors, N ≥ 2.

All of them compute in at least float32 and give nan, not an error, for rows that are not
finite: a watcher must not stop the run that it watches.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from selfsight import losses
from selfsight.losses import alignment, full_precision

__all__ = [
    "alignment",
    "correlation",
    "effective_rank",
    "entropy",
    "scale",
    "spread",
    "uniformity",
]

# Rounding of a constant float32 channel leaves a relative deviation of about 1e-7.
_CONSTANT = 1e-6
_BLOCK = 1024


@full_precision
def spread(z: Tensor) -> Tensor:
    """z: (N, D). Mean over channels of ẑ's standard deviation: 1/√D isotropic, 0 collapsed."""
    return F.normalize(z, dim=1).std(dim=0).mean()


@full_precision
def scale(z: Tensor) -> Tensor:
    """z: (N, D). Mean over channels of z's own standard deviation, which means something only
    beside another: a loss that does not normalise z can shrink it to nothing."""
    return z.std(dim=0).mean()


@full_precision
def effective_rank(z: Tensor, *, centred: bool = False, eps: float = 1e-7) -> Tensor:
    """z: (N, D). RankMe: exp of the entropy of the singular values p = σ/Σσ + eps.

    Garrido et al. 2023, https://arxiv.org/abs/2210.02885. Uncentred by default, as
    published, so that numbers compare. Centred, it counts the directions in which samples
    differ: a non-negative h, whose mean outweighs them all, is judged fairly, but noise
    about a constant then has full rank, so ask `spread` too.
    """
    if not z.isfinite().all():
        return z.new_full((), torch.nan)
    singular = torch.linalg.svdvals(z - z.mean(dim=0) if centred else z)
    p = singular / singular.sum().clamp_min(torch.finfo(z.dtype).tiny) + eps
    rank: Tensor = torch.special.entr(p).sum().exp()
    return rank


@full_precision
def correlation(z: Tensor) -> Tensor:
    """z: (N, D). Mean |correlation| of two different channels; constant channels are left
    out, and with fewer than two others it is 0."""
    deviation = z - z.mean(dim=0)
    norm = deviation.norm(dim=0)
    # A nan is kept, so that it shows.
    columns = (deviation / norm)[:, ~(norm <= _CONSTANT * z.norm(dim=0))]
    alive = columns.shape[1]
    if alive < 2:
        return z.new_zeros(())
    blocks = [columns[:, start : start + _BLOCK] for start in range(0, alive, _BLOCK)]
    total = torch.stack([(block.T @ columns).abs().sum() for block in blocks]).sum()
    mean: Tensor = (total - columns.square().sum()) / (alive * (alive - 1))
    return mean


def uniformity(z: Tensor, t: float = 2.0) -> Tensor:
    """The loss of the same name; nan, not an error, of one row."""
    return losses.uniformity(z, t) if len(z) > 1 else z.new_full((), torch.nan)


@full_precision
def entropy(p: Tensor) -> Tensor:
    """p: (..., K) probabilities. −Σ p log p of each, in nats: 0 certain, log K uniform."""
    each: Tensor = torch.special.entr(p)
    return each.sum(dim=-1)
