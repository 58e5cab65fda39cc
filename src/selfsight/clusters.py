"""Clusterings of the data set, and how loose each cluster is (Li et al. 2020)."""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsight import philox
from selfsight.distributed import broadcast, gather, places, rank
from selfsight.kmeans import euclidean_kmeans, sums
from selfsight.losses import proto_nce
from selfsight.philox import Purpose

__all__ = ["Clusters", "concentrations"]


@torch.no_grad()
def concentrations(x: Tensor, centroids: Tensor, assignment: Tensor, temperature: float) -> Tensor:
    """φ of each cluster, (K,) of mean `temperature`: its n rows' mean distance from the centroid
    over log(n + 10), so that a loose cluster is a soft target.

    x: (N, D); centroids: (K, D); assignment: (N,). A cluster of less than two rows has the
    largest φ; all are bounded by the first and the last tenth.
    """
    distance = (x - centroids[assignment]).norm(dim=1, keepdim=True)
    total, n = (part[:, 0].to(x.dtype) for part in sums(distance, assignment, len(centroids)))
    phi = torch.where(n > 1, total / n.clamp_min(1) / (n + 10).log(), 0.0)
    phi = torch.where(n > 1, phi, phi.max())
    low, high = phi.quantile(torch.tensor([0.1, 0.9], dtype=phi.dtype, device=phi.device))
    # Clusters of copies have no spread at all, and nothing is divided by 0.
    phi = phi.clamp(low, high).clamp_min(1e-3)
    return temperature * phi / phi.mean()


class Clusters(nn.Module):
    """Several clusterings, of `sizes` clusters each, that tell a sample's prototype from others.

    prototypes: (ΣK, D) unit vectors of all clusterings; phi: (ΣK,), the temperature of each;
    assignment: (G, samples), the sample's own in each clustering
    """

    prototypes: Tensor
    phi: Tensor
    assignment: Tensor

    def __init__(self, samples: int, sizes: Sequence[int], dim: int) -> None:
        super().__init__()
        self.sizes = tuple(sizes)
        self.register_buffer("prototypes", torch.zeros(sum(sizes), dim))
        self.register_buffer("phi", torch.ones(sum(sizes)))
        self.register_buffer("assignment", torch.zeros(len(sizes), samples, dtype=torch.int64))

    @torch.no_grad()
    def fit(self, x: Tensor, temperature: float, *, iterations: int, seed: int, epoch: int) -> None:
        """x: (samples, D) unit vectors, the same on all ranks."""
        if rank() == 0:
            for g, (start, size) in enumerate(self._parts()):
                centroids, assignment = euclidean_kmeans(
                    x, size, iterations=iterations, seed=seed, draw=epoch * len(self.sizes) + g
                )
                phi = concentrations(x, centroids, assignment, temperature)
                self.prototypes[start : start + size] = F.normalize(centroids, dim=1)
                self.phi[start : start + size] = phi
                self.assignment[g] = start + assignment
        for buffer in self.buffers():
            broadcast(buffer)

    def contrast(self, q: Tensor, index: Tensor, negatives: int, seed: int, step: int) -> Tensor:
        """The mean over clusterings of q: (V·N, D), view by view, against the prototypes of the
        samples index: (N,) of all ranks and at most `negatives` prototypes of none of them.

        A prototype that samples share counts once.
        """
        local = places(index).repeat(len(q) // len(index))
        everyone = gather(index)
        losses = []
        for g, (start, size) in enumerate(self._parts()):
            own, place = torch.unique(self.assignment[g, everyone], return_inverse=True)
            # Of all prototypes by lot, the batch's own last.
            lots = philox.integers(seed, step * len(self.sizes) + g, Purpose.NEGATIVES, size)
            lots = torch.from_numpy(lots * size + np.arange(size)).to(own.device)  # no two equal
            lots[own - start] = torch.iinfo(lots.dtype).max
            others = lots.topk(min(negatives, size - len(own)), largest=False).indices
            chosen = torch.cat([own, start + others])
            losses.append(proto_nce(q, self.prototypes[chosen], self.phi[chosen], place[local]))
        return torch.stack(losses).mean()

    def _parts(self) -> Iterator[tuple[int, int]]:
        """First prototype and size of each clustering."""
        return zip(itertools.accumulate(self.sizes[:-1], initial=0), self.sizes, strict=True)
