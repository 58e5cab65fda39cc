"""k-means on the sphere, seeded, on one device."""

import torch
import torch.nn.functional as F
from torch import Tensor

from selfsight import philox
from selfsight.philox import Purpose

__all__ = ["spherical_kmeans"]

_ROWS = 8192  # rows whose similarities to all centroids are held at once


def _assign(x: Tensor, centroids: Tensor) -> Tensor:
    return torch.cat([(rows @ centroids.T).argmax(1) for rows in torch.split(x, _ROWS)])


@torch.no_grad()
def spherical_kmeans(
    x: Tensor, clusters: int, *, iterations: int = 10, seed: int = 0, draw: int = 0
) -> tuple[Tensor, Tensor]:
    """Unit centroids (K, D) and assignments (N,) of the rows of x by cosine.

    Starts from K distinct rows chosen by (seed, draw); an empty cluster keeps its centroid.
    """
    x = F.normalize(x, dim=1)
    start = philox.permutation(seed, draw, Purpose.KMEANS, len(x))[:clusters].copy()
    centroids = x[torch.from_numpy(start).to(x.device)]
    for _ in range(iterations):
        assignment = _assign(x, centroids)
        sums = torch.zeros_like(centroids).index_add_(0, assignment, x)
        count = torch.bincount(assignment, minlength=clusters)[:, None]
        centroids = torch.where(count > 0, F.normalize(sums, dim=1), centroids)
    return centroids, _assign(x, centroids)
