"""k-means, seeded, on one device: on the sphere or by Euclidean distance."""

import torch
import torch.nn.functional as F
from torch import Tensor

from selfsight import philox
from selfsight.philox import Purpose

__all__ = ["euclidean_kmeans", "nearest", "spherical_kmeans", "sums"]

_HELD = 1 << 24  # similarities to centroids held at once


def nearest(x: Tensor, centroids: Tensor, *, cosine: bool = False) -> Tensor:
    """(N,) the number of each row's nearest centroid; by cosine, which takes unit centroids."""
    half = 0 if cosine else centroids.square().sum(1) / 2  # ‖x − c‖² = ‖x‖² − 2 (x·c − ‖c‖²/2)
    parts = torch.split(x, max(1, _HELD // len(centroids)))
    return torch.cat([(rows @ centroids.T).sub_(half).argmax(1) for rows in parts])


def _start(x: Tensor, clusters: int, seed: int, draw: int) -> Tensor:
    """Distinct rows of x."""
    start = philox.permutation(seed, draw, Purpose.KMEANS, len(x))[:clusters].copy()
    return x[torch.from_numpy(start).to(x.device)]


def sums(x: Tensor, assignment: Tensor, clusters: int) -> tuple[Tensor, Tensor]:
    """(K, D) sums of the clusters' rows, and how many rows there are, (K, 1)."""
    count = torch.bincount(assignment, minlength=clusters)
    # Row after row: a GPU's index_add_ adds in any order, and no run could be repeated to the bit.
    ordered = x[assignment.argsort(stable=True)]
    return torch.segment_reduce(ordered, "sum", lengths=count), count[:, None]


@torch.no_grad()
def spherical_kmeans(
    x: Tensor, clusters: int, *, iterations: int = 10, seed: int = 0, draw: int = 0
) -> tuple[Tensor, Tensor]:
    """Unit centroids (K, D) and assignments (N,) of the rows of x by cosine.

    Starts from K distinct rows chosen by (seed, draw); an empty cluster keeps its centroid.
    """
    x = F.normalize(x, dim=1)
    centroids = _start(x, clusters, seed, draw)
    for _ in range(iterations):
        total, count = sums(x, nearest(x, centroids, cosine=True), clusters)
        centroids = torch.where(count > 0, F.normalize(total, dim=1), centroids)
    return centroids, nearest(x, centroids, cosine=True)


@torch.no_grad()
def euclidean_kmeans(
    x: Tensor, clusters: int, *, iterations: int = 10, seed: int = 0, draw: int = 0
) -> tuple[Tensor, Tensor]:
    """Centroids (K, D), each the mean of its rows of x, and the rows' nearest centroids (N,).

    Starts, and treats an empty cluster, as `spherical_kmeans` does.
    """
    centroids = _start(x, clusters, seed, draw)
    for _ in range(iterations):
        total, count = sums(x, nearest(x, centroids), clusters)
        centroids = torch.where(count > 0, total / count.clamp_min(1), centroids)
    return centroids, nearest(x, centroids)
