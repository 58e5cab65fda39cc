"""PCL: MoCo, and beside it tell an image's cluster from others, at several granularities.

Li et al. 2020, https://arxiv.org/abs/2005.04966
Loss: −log softmax(q·k/τ) at k⁺ + mean over clusterings of −log softmax(q·c/φ) at the own c
"""

import copy
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsight.batchnorm import grouped, shuffled
from selfsight.clusters import Clusters
from selfsight.distributed import gather
from selfsight.encoders.base import Encoder
from selfsight.errors import ConfigError
from selfsight.heads import Head, mlp, shape
from selfsight.losses import queue_nce
from selfsight.memory import Queue
from selfsight.methods.base import Batch, Clock, Method, Output, Sweep
from selfsight.momentum import Teacher
from selfsight.optim import Recipe
from selfsight.ranges import Count, Positive, Range, Several, Share, Whole
from selfsight.views.presets import crops, moco_view, plain

__all__ = ["PCL"]


class PCL(Method):
    """Prototypical contrastive learning, as v2; v1 is head linear, augment v1, schedule steps.

    queue: keys that serve as negatives
    negatives: r, prototypes of no image of the batch that serve as negatives; all of them where
        there are fewer
    clusters, granularities: k of the first clustering, and how many there are, each of twice as
        many clusters as the one before; None: 25000, or of a data set smaller than ImageNet as
        many as leave 12 images to a cluster of the last
    iterations: of k-means, once per epoch
    warmup_share: of the run, before there are prototypes: 20 of the paper's 200 epochs
    temperature: τ of the loss on the queue, and the mean of the prototypes' φ
    momentum: decay of the key encoder
    head: projector behind the encoder: none, linear (v1) or nonlinear (v2)
    layers: linear layers of the nonlinear head
    hidden, dim: widths of the nonlinear head's inner layers (None: the encoder's) and of q
    augment: MoCo v1's views, or v2's with blur and stronger colours
    schedule: of the learning rate: steps (v1) or a cosine
    norm_groups: parts of the batch that share BatchNorm statistics, as GPUs do in the paper
    multi_crop: small crops, all of them queries, beside the two large ones
    """

    def __init__(
        self, encoder: Encoder, *, samples: int,
        queue: Count = 16384, negatives: Whole = 16384,
        clusters: Several | None = None, granularities: Annotated[int, Range(1, 10)] = 3,
        iterations: Count = 20,
        warmup_share: Share = 0.1, temperature: Positive = 0.2, momentum: Share = 0.999,
        head: Head = "nonlinear", layers: Count = 2, hidden: Count | None = None, dim: Count = 128,
        augment: Literal["v1", "v2"] = "v2", schedule: Literal["steps", "cosine"] = "cosine",
        norm_groups: Count = 8, multi_crop: Whole = 0,
    ) -> None:  # fmt: skip
        super().__init__(encoder)
        finest = 2 ** (granularities - 1)
        clusters = clusters or min(25000, max(2, samples // (12 * finest)))
        sizes = [clusters * 2**g for g in range(granularities)]
        if sizes[-1] > samples:
            raise ConfigError(f"pcl cannot make {sizes[-1]} clusters of {samples} images; lower "
                              "--method.clusters or --method.granularities")  # fmt: skip
        widths = shape(head, encoder.dim, hidden, layers, dim)
        self.projector = mlp(*widths, norm=False)
        grouped(encoder, norm_groups)
        self.teacher = Teacher(copy.deepcopy(nn.Sequential(encoder, self.projector)))
        self.queue = Queue.random(queue, widths[-1])
        self.clusters = Clusters(samples, sizes, widths[-1])
        self.negatives, self.iterations = negatives, iterations
        self.temperature, self.momentum = temperature, momentum
        self.warmup_share = warmup_share
        self.views = crops(moco_view(1 if augment == "v1" else 2), multi_crop)
        self.recipe = Recipe(
            optimizer="sgd", lr=0.03, weight_decay=1e-4, warmup=0, exempt="none", epochs=200,
            drops=(0.6, 0.8) if schedule == "steps" else (),
        )  # fmt: skip

    def forward(self, batch: Batch, clock: Clock) -> Output:
        x_q, x_k = [batch.views[0], *batch.views[2:]], batch.views[1]
        h = [self.encoder(x) for x in x_q]
        q = self.projector(torch.cat(h))
        k = shuffled(self.teacher, x_k, batch.key.seed, batch.key.step)
        losses = {"info_nce": queue_nce(q, k.repeat(len(h), 1), self.queue.rows, self.temperature)}
        if self.clustered(clock):
            # Differs from the paper: other images' prototypes are those of the global batch,
            # not of one GPU's; and where two images share theirs it is a negative of neither,
            # while the official code has it among both positives and negatives.
            losses["proto_nce"] = self.clusters.contrast(
                q, batch.index, self.negatives, batch.key.seed, batch.key.step
            )
        return Output(
            torch.stack(list(losses.values())).sum(),
            embedding=h[0],
            projections=(q[: len(k)], k),
            carry={"k": F.normalize(k, dim=1)},
            metrics={name: value.detach() for name, value in losses.items()},
        )

    def clustered(self, clock: Clock) -> bool:
        """Whether this epoch has clusters: it began after the warm-up."""
        return clock.epoch * clock.per_epoch >= self.warmup_share * clock.total

    def prepare(self, clock: Clock, sweep: Sweep) -> None:
        if clock.step % clock.per_epoch or not self.clustered(clock):
            return
        # Differs from the paper: one start of k-means, not the best of five; an empty cluster
        # stays where it is.
        x = torch.cat([F.normalize(k, dim=1) for _, k in sweep(self.teacher, plain(self.views[0]))])
        self.clusters.fit(
            x, self.temperature, iterations=self.iterations, seed=clock.seed, epoch=clock.epoch
        )

    def after_step(self, carry: dict[str, Tensor], clock: Clock) -> None:
        self.queue.push(gather(carry["k"]))
        self.teacher.update(nn.Sequential(self.encoder, self.projector), self.momentum)
