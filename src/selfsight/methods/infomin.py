"""InfoMin: MoCo whose views share less: stronger augmentation, and a jigsaw as a second query.

Tian et al. 2020, https://arxiv.org/abs/2005.10243
Loss: (1 − β) MoCo(q, k) + β MoCo(q′, k), q of an image, q′ of its shuffled pieces, k of a view
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsight.batchnorm import grouped, shuffled
from selfsight.distributed import gather
from selfsight.encoders.base import Encoder
from selfsight.heads import Head, mlp, shape
from selfsight.losses import queue_nce
from selfsight.memory import Queue
from selfsight.methods.base import Batch, Clock, Method, Output
from selfsight.momentum import Teacher
from selfsight.optim import Recipe
from selfsight.patches import PIECES, jigsaw, piece
from selfsight.philox import Purpose
from selfsight.ranges import Count, Positive, Share
from selfsight.views.presets import simclr_view

__all__ = ["InfoMin"]


class InfoMin(Method):
    """What makes for good views for contrastive learning.

    beta: β, the pieces' share of the loss; 0 leaves MoCo v2 on InfoMin's views
    queue: keys that serve as negatives
    head: projector of the image, of its key and of each piece: none, linear or nonlinear
    layers: linear layers of the nonlinear head
    hidden, dim: widths of the nonlinear head's inner layers (None: the encoder's) and of q
    temperature: τ of the loss
    momentum: decay of the key encoder
    norm_groups: parts of the batch that share BatchNorm statistics, as GPUs do in the paper
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        beta: Share = 0.5,
        queue: Count = 65536,
        head: Head = "nonlinear",
        layers: Count = 2,
        hidden: Count | None = None,
        dim: Count = 128,
        temperature: Positive = 0.15,
        momentum: Share = 0.999,
        norm_groups: Count = 8,
    ) -> None:
        super().__init__(encoder)
        widths = shape(head, encoder.dim, hidden, layers, dim)
        self.projector, self.piece = mlp(*widths, norm=False), mlp(*widths, norm=False)
        self.pieces = nn.Linear(PIECES * widths[-1], widths[-1])
        for part in (self.piece, self.pieces):
            part.requires_grad_(beta > 0)
        grouped(encoder, norm_groups)
        self.teacher = Teacher(copy.deepcopy(nn.Sequential(encoder, self.projector)))
        self.queue = Queue.random(queue, widths[-1])
        self.beta, self.temperature, self.momentum = beta, temperature, momentum
        # Differs from the paper: RandAugment is left out, but for two of its operators: one
        # image in ten is solarized and one in ten equalised.
        view = simclr_view(crop=(0.2, 1.0), solarize=0.1, equalize=0.1, count=2)
        colourless = {"jitter_p": 0.0, "gray": 0.0, "blur": 0.0}
        self.views = [view, simclr_view(size=255, crop=(0.6, 1.0), **colourless)]
        # Differs from the paper: the rate changes with each step, not with each epoch.
        self.recipe = Recipe(
            optimizer="sgd", lr=0.03, weight_decay=1e-4, warmup=0, exempt="none", epochs=200,
        )  # fmt: skip

    def forward(self, batch: Batch, clock: Clock) -> Output:
        x_q, x_k, whole = batch.views
        h = self.encoder(x_q)
        q = self.projector(h)
        k = shuffled(self.teacher, x_k, batch.key.seed, batch.key.step)
        loss = queue_nce(q, k, self.queue.rows, self.temperature)
        if self.beta:
            u = batch.key.per_sample(Purpose.PATCH, 3 * PIECES).view(-1, 3, PIECES)
            parts = self.encoder(jigsaw(whole, u, self.encoder.multiple))
            q_parts = self.pieces(self.piece(parts).reshape(len(h), -1))
            pieces = queue_nce(q_parts, k, self.queue.rows, self.temperature)
            loss = torch.lerp(loss, pieces, self.beta)
        return Output(loss, embedding=h, projections=(q, k), carry={"k": F.normalize(k, dim=1)})

    @property
    def smallest(self) -> int:
        return min(super().smallest, piece(self.views[-1].size, self.encoder.multiple))

    def after_step(self, carry: dict[str, Tensor], clock: Clock) -> None:
        self.queue.push(gather(carry["k"]))
        # The official code moves the key encoder before its next use: the same weights.
        self.teacher.update(nn.Sequential(self.encoder, self.projector), self.momentum)
