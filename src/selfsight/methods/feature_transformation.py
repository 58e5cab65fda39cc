"""Feature transformation: MoCo with positives drawn apart and negatives mixed with each other.

Zhu et al. 2021, https://arxiv.org/abs/2108.02982
Loss: −log exp(q′·k′/τ) / (exp(q′·k′/τ) + Σ_queue exp(q′·n′/τ)), q′ = λq + (1−λ)k,
k′ = λk + (1−λ)q, n′ = μn + (1−μ)m, with λ−1 and μ from symmetric Beta laws and m of the queue
"""

import copy
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsight import philox
from selfsight.batchnorm import grouped, shuffled
from selfsight.distributed import gather
from selfsight.encoders.base import Encoder
from selfsight.heads import Head, mlp, shape
from selfsight.losses import extrapolated, interpolated, score_moments, score_nce
from selfsight.memory import Queue
from selfsight.methods.base import Batch, Clock, Key, Method, Output
from selfsight.momentum import Teacher
from selfsight.optim import Recipe
from selfsight.philox import Purpose
from selfsight.ranges import Count, Positive, Range, Share, Whole
from selfsight.views.presets import crops, moco_view

__all__ = ["FeatureTransformation"]

Shape = Annotated[float, Range(0.5, above=True)]


class FeatureTransformation(Method):
    """Positive extrapolation and negative interpolation, on MoCo v2.

    queue: keys that serve as negatives
    extrapolate, interpolate: α of the laws Beta(α, α) of λ − 1, for the positives, and of μ, for
        the negatives; none: they stay as they are
    draw: λ and μ once for a step, or for each dimension of each row
    temperature: τ of the loss
    momentum: decay of the key encoder
    head: projector behind the encoder: none, linear or nonlinear
    layers: linear layers of the nonlinear head
    hidden, dim: widths of the nonlinear head's inner layers (None: the encoder's) and of q and k
    norm_groups: parts of the batch that share BatchNorm statistics, as GPUs do in the paper
    symmetric: let each view be the query once, and add the two losses
    multi_crop: small crops beside the two large ones, each a query too (SwAV table 3)
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        queue: Count = 65536,
        extrapolate: Shape | None = 2.0,
        interpolate: Shape | None = 1.6,
        draw: Literal["step", "dimension"] = "step",
        temperature: Positive = 0.2,
        momentum: Share = 0.999,
        head: Head = "nonlinear",
        layers: Count = 2,
        hidden: Count | None = None,
        dim: Count = 128,
        norm_groups: Count = 8,
        symmetric: bool = False,
        multi_crop: Whole = 0,
    ) -> None:
        super().__init__(encoder)
        widths = shape(head, encoder.dim, hidden, layers, dim)
        self.projector = mlp(*widths, norm=False)
        grouped(encoder, norm_groups)
        self.teacher = Teacher(copy.deepcopy(nn.Sequential(encoder, self.projector)))
        self.queue = Queue.random(queue, widths[-1])
        self.extrapolate, self.interpolate, self.draw = extrapolate, interpolate, draw
        self.temperature, self.momentum = temperature, momentum
        self.key_views = (1, 0) if symmetric else (1,)  # views that give keys
        self.views = crops(moco_view(2), multi_crop)
        self.recipe = Recipe(optimizer="sgd", lr=0.03, weight_decay=1e-4, warmup=0, exempt="none",
                             epochs=200)  # fmt: skip

    def forward(self, batch: Batch, clock: Clock) -> Output:
        ways = [(i, j) for j in self.key_views for i in range(len(batch.views)) if i != j]
        h = {i: self.encoder(batch.views[i]) for i in sorted({i for i, _ in ways})}
        q = {i: self.projector(h_i) for i, h_i in h.items()}
        at = batch.key.seed, batch.key.step
        k = {j: shuffled(self.teacher, batch.views[j], *at) for j in self.key_views}
        lam, mu, partners = self.transformation(batch.key)
        n = interpolated(self.queue.rows, mu, partners)
        moved = [extrapolated(q[i], k[j], lam) for i, j in ways]
        losses = [score_nce(*both, n, self.temperature) for both in moved]
        loss = len(k) * torch.stack(losses).mean()
        # The queue remembers the keys as they were.
        carry = {"k": F.normalize(torch.stack(list(k.values()), 1), dim=2)}
        return Output(loss, h[0], (q[0], q.get(1, k[1])), carry, score_moments(*moved[0], n))

    def transformation(self, key: Key) -> tuple[Tensor, Tensor, Tensor]:
        """This step's λ and μ, and the partners m of the queue's rows n."""
        step = torch.tensor(key.step, device=key.position.device)
        each = (self.queue.rows.shape, key.position)
        (length, dim), at = each if self.draw == "dimension" else ((1, 1), step)
        lam = mu = torch.ones(1, device=step.device)
        if self.extrapolate is not None:
            lam = 1 + philox.beta(key.seed, at, Purpose.MIX, dim, self.extrapolate, view=1)
        if self.interpolate is not None:
            mu = philox.beta(key.seed, step, Purpose.MIX, length * dim, self.interpolate, view=2)
            mu = mu.view(length, dim)
        order = philox.permutation(key.seed, key.step, Purpose.MIX, len(self.queue.rows))
        return lam, mu, torch.from_numpy(order).to(step.device)

    def after_step(self, carry: dict[str, Tensor], clock: Clock) -> None:
        self.queue.push(gather(carry["k"]).flatten(0, 1))
        self.teacher.update(nn.Sequential(self.encoder, self.projector), self.momentum)
