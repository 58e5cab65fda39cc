"""DeepCluster-v2: classify every view into the clusters of the last epoch's embeddings.

Caron et al. 2020, appendix D of https://arxiv.org/abs/2006.09882
Loss: −log softmax(ẑ·c/τ) at the cluster of the last epoch's embedding, mean over views, heads
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsight.distributed import broadcast, gather, rank
from selfsight.encoders.base import Encoder
from selfsight.errors import ConfigError
from selfsight.heads import cosines, mlp
from selfsight.kmeans import spherical_kmeans
from selfsight.memory import Bank
from selfsight.methods.base import Batch, Clock, Method, Output, Sweep, per_resolution
from selfsight.optim import Recipe
from selfsight.ranges import Count, Positive, Several, Whole
from selfsight.views.presets import crops, simclr_view

__all__ = ["DeepClusterV2"]


class DeepClusterV2(Method):
    """Alternate k-means over banks of embeddings with classification into its clusters.

    clusters, heads: k of each clustering, and how many clusterings are classified at once
    hidden, dim: widths of the projector
    temperature: τ of the classification
    iterations: of spherical k-means, once per epoch
    multi_crop: small crops beside the two large ones
    """

    centroids: Tensor
    assignments: Tensor

    def __init__(
        self,
        encoder: Encoder,
        *,
        samples: int,
        clusters: Several = 3000,
        heads: Count = 3,
        hidden: Count = 2048,
        dim: Count = 128,
        temperature: Positive = 0.1,
        iterations: Count = 10,
        multi_crop: Whole = 6,
    ) -> None:
        super().__init__(encoder)
        if clusters > samples:
            raise ConfigError(f"deepcluster_v2 cannot make {clusters} clusters of {samples} "
                              "images; lower --method.clusters")  # fmt: skip
        self.projector = mlp(encoder.dim, hidden, dim)
        self.bank = Bank(samples, 2, dim)
        self.register_buffer("centroids", torch.zeros(heads, clusters, dim))
        self.register_buffer("assignments", torch.zeros(heads, samples, dtype=torch.int64))
        self.temperature, self.iterations = temperature, iterations
        self.views = crops(simclr_view(), multi_crop)
        self.recipe = Recipe(
            optimizer="larc", lr=4.8, batch=4096, weight_decay=1e-6, warmup_from=1 / 16,
            last=1e-3, exempt="none", epochs=800,
        )  # fmt: skip

    def forward(self, batch: Batch, clock: Clock) -> Output:
        h = per_resolution(self.encoder, batch.views)
        z = [F.normalize(z_i, dim=1) for z_i in self.projector(torch.cat(h)).chunk(len(h))]
        losses = []
        for centroids, assignment in zip(self.centroids, self.assignments, strict=True):
            logits = cosines(torch.cat(z), centroids) / self.temperature
            target = assignment[batch.index].repeat(len(z))
            losses.append(F.cross_entropy(logits, target))
        carry = {"index": batch.index, "z": torch.stack(z[:2], 1).detach()}
        loss = torch.stack(losses).mean()
        return Output(loss, embedding=h[0], projections=tuple(z), carry=carry)

    def prepare(self, clock: Clock, sweep: Sweep) -> None:
        if clock.step % clock.per_epoch:
            return
        if clock.step == 0:
            # Differs from the paper: the banks start from one crop of each image in
            # evaluation mode, not from two in training mode.
            network = nn.Sequential(self.encoder, self.projector)
            for index, z in sweep(network, self.views[0]):
                self.bank.write(index, F.normalize(z, dim=1)[:, None])
        for head in range(len(self.centroids)):
            if rank() == 0:  # the heads take turns between the banks of the two large crops
                found = spherical_kmeans(
                    self.bank.rows[:, head % 2], self.centroids.shape[1],
                    iterations=self.iterations, seed=clock.seed,
                    draw=clock.epoch * len(self.centroids) + head,
                )  # fmt: skip
                self.centroids[head], self.assignments[head] = found
        broadcast(self.centroids)
        broadcast(self.assignments)

    def after_step(self, carry: dict[str, Tensor], clock: Clock) -> None:
        self.bank.write(gather(carry["index"]), gather(carry["z"]))
