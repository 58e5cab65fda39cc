"""Losses on embeddings: each method's own forward, on the embeddings of a record.

Where a source's convention is not a method's own, `mean`, `scale` and the like stand for it.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from golden.given import START, Given, Half, forward
from selfsight.losses import barlow_twins as barlow_loss
from selfsight.losses import queue_nce
from selfsight.methods.barlow_twins import BarlowTwins
from selfsight.methods.base import Clock
from selfsight.methods.byol import BYOL
from selfsight.methods.dino import DINO
from selfsight.methods.moco_v1 import MoCoV1
from selfsight.methods.simclr import SimCLR
from selfsight.methods.simsiam import SimSiam
from selfsight.methods.vicreg import VICReg
from selfsight.momentum import Teacher

Outputs = Mapping[str, Any]


def simclr(z1: Tensor, z2: Tensor, *, temperature: float, mean: bool = False) -> Outputs:
    method = SimCLR(Given(z1.shape[1]), temperature=temperature, head="none", mean=mean)
    return {"loss": forward(method, z1, z2).loss}


def byol(p1: Tensor, p2: Tensor, z1: Tensor, z2: Tensor) -> Outputs:
    method = BYOL(Given(p1.shape[1]), hidden=1, dim=1)
    method.projector, method.predictor = nn.Identity(), Half(0)
    method.teacher = Teacher(Half(1))
    return {"loss": forward(method, torch.cat([p1, z1], 1), torch.cat([p2, z2], 1)).loss}


class _Answers(nn.Module):
    """The rows of an answer for the rows of a question."""

    def __init__(self, pairs: list[tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.pairs = pairs

    def forward(self, x: Tensor) -> Tensor:
        return next(answer for question, answer in self.pairs if question is x)


def simsiam(p1: Tensor, p2: Tensor, z1: Tensor, z2: Tensor, *, scale: float = 1.0) -> Outputs:
    method = SimSiam(Given(z1.shape[1]), hidden=1, dim=1, bottleneck=1)
    method.projector = nn.Identity()
    method.predictor = _Answers([(z1, p1), (z2, p2)])
    return {"loss": scale * forward(method, z1, z2).loss}


def barlow_twins(
    z1: Tensor, z2: Tensor, *, lambda_param: float, scale_loss: float = 1.0
) -> Outputs:
    method = BarlowTwins(Given(z1.shape[1]), hidden=1, dim=1, lambd=lambda_param)
    method.projector = nn.Identity()
    return {"loss": scale_loss * forward(method, z1, z2).loss}


def barlow_twins_unscaled(
    z1: Tensor, z2: Tensor, *, lambda_param: float, scale_loss: float
) -> Outputs:
    """Our loss where the source multiplies its own by scale_loss."""
    return barlow_twins(z1, z2, lambda_param=lambda_param)


def barlow_twins_unbiased(z1: Tensor, z2: Tensor, *, lambda_param: float) -> Outputs:
    """Standardised by the unbiased deviation without ε, but divided by N."""
    x, y = ((z - z.mean(0)) / z.std(0) for z in (z1, z2))
    return {"loss": barlow_loss(x, y, lambda_param, normalize="none")}


def vicreg(
    z1: Tensor, z2: Tensor, *, sim_coeff: float, std_coeff: float, cov_coeff: float,
    eps: float, views: int = 1,
) -> Outputs:  # fmt: skip
    """views: how often the variance term, a mean over two views, is counted."""
    assert eps == 1e-4, f"our hinge has ε = 1e-4, the record {eps}"

    def loss(invariance: float, variance: float, covariance: float) -> Tensor:
        method = VICReg(
            Given(z1.shape[1]), hidden=1, dim=1, invariance=invariance,
            variance=views * variance, covariance=covariance,
        )  # fmt: skip
        method.expander = nn.Identity()
        return forward(method, z1, z2).loss

    return {
        "loss": loss(sim_coeff, std_coeff, cov_coeff),
        "inv": loss(1.0, 0.0, 0.0),
        "var": loss(0.0, 1.0, 0.0),
        "cov": loss(0.0, 0.0, 1.0),
    }


def _queued(
    q: Tensor, k: Tensor, init: Tensor, temperature: float, *, ring: bool, truncated: bool = False
) -> tuple[Outputs, list[Tensor]]:
    """Some steps with a queue that starts as the ring init: (K, D), and the queue at each.

    q, k: (steps, N, D)
    ring: give the queue back as a ring too; its newest row comes first in ours
    truncated: a batch ends where the ring does
    """
    length, batch = len(init), q.shape[1]
    method = MoCoV1(Given(q.shape[2]), queue=length, dim=1, temperature=temperature, norm_groups=1)
    method.projector, method.teacher = nn.Identity(), Teacher(nn.Identity())
    method.queue = type(method.queue)(length, q.shape[2]).double()
    place = torch.cat(torch.arange(length).split(batch)[::-1])  # in the ring, of each row
    method.queue.push(init[place])
    losses, before, pointer = [], [], 0
    for q_t, k_t in zip(q, k, strict=True):
        output = forward(method, q_t, k_t)
        losses.append(output.loss)
        before.append(method.queue.rows.clone())
        kept = min(batch, length - pointer) if truncated else batch
        method.after_step({"k": output.carry["k"][:kept]}, START)
        place = torch.cat([(pointer + torch.arange(kept)) % length, place])[:length]
        pointer = (pointer + kept) % length
    after = method.queue.rows
    if ring:
        after = torch.empty_like(after).index_copy(0, place, after)
    return {"loss": torch.stack(losses), "queue_after": after.T, "bank_after": after}, before


def moco(
    q: Tensor, k: Tensor, queue_init_unnormalised: Tensor, *, temperature: float,
    queue_size: int, steps: int, ring: bool = False,
) -> Outputs:  # fmt: skip
    init = F.normalize(queue_init_unnormalised, dim=0).T
    assert (len(init), len(q)) == (queue_size, steps), "queue_size or steps is not the arrays'"
    return _queued(q, k, init, temperature, ring=ring)[0]


def moco_open_keys(
    q: Tensor, k: Tensor, queue_init_unnormalised: Tensor, *, temperature: float,
    queue_size: int, steps: int,
) -> Outputs:  # fmt: skip
    """The gradient reaches the keys of the step's own batch too."""
    init = F.normalize(queue_init_unnormalised, dim=0).T
    closed, queues = _queued(q, k, init, temperature, ring=True, truncated=True)
    rows = zip(q, k, queues, strict=True)
    losses = [queue_nce(q_t, k_t, queue, temperature) for q_t, k_t, queue in rows]
    return {**closed, "loss": torch.stack(losses)}


def moco_first_step(
    q: Tensor, k: Tensor, queue_init_unnormalised: Tensor, *, temperature: float
) -> Outputs:
    init = F.normalize(queue_init_unnormalised, dim=0).T
    first, _ = _queued(q[None], k[None], init, temperature, ring=True)
    return {"loss": first["loss"][0]}


def moco_bank(
    q: Tensor, k: Tensor, bank_init: Tensor, *, temperature: float, queue_size: int,
    truncated: bool = False,
) -> Outputs:  # fmt: skip
    assert len(bank_init) == queue_size, "queue_size is not the bank's"
    return _queued(q, k, bank_init, temperature, ring=True, truncated=truncated)[0]


def dino(
    student: Tensor, teacher: Tensor, *, student_temp: float, warmup_teacher_temp: float,
    teacher_temp: float, warmup_teacher_temp_epochs: int, center_momentum: float, ncrops: int,
    epochs: str, added: bool = False,
) -> Outputs:  # fmt: skip
    """student: (steps, crops, N, K); teacher: (steps, 2, N, K).

    added: the pairs' losses are added, not averaged
    """
    assert student.shape[1] == ncrops, "ncrops is not the arrays'"
    assert epochs.startswith("step i uses epoch i"), f"unknown epochs {epochs}"
    method = DINO(
        Given(2 * student.shape[3]), hidden=1, bottleneck=1, prototypes=student.shape[3],
        temperature=student_temp, teacher_temperature=teacher_temp,
        warmup_temperature=warmup_teacher_temp,
        warmup_epochs=warmup_teacher_temp_epochs,
        center_momentum=center_momentum, multi_crop=ncrops - 2,
    ).double()  # fmt: skip
    method.projector, method.last = nn.Identity(), Half(0)
    method.teacher = Teacher(Half(1))
    losses, centers = [], []
    for step, (s, t) in enumerate(zip(student, teacher, strict=True)):
        clock = Clock(step=step, total=len(student), per_epoch=1)
        t = torch.cat([t, torch.zeros_like(s[2:])])
        output = forward(method, *torch.cat([s, t], 2), clock=clock)
        method.after_step(output.carry, clock)
        losses.append(2 * (ncrops - 1) * output.loss if added else output.loss)
        centers.append(method.center.mean[0].clone())
    return {"loss": torch.stack(losses), "center_after": torch.stack(centers)}
