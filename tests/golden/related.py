"""Records of alignment, uniformity and relations to a queue."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from golden.given import START, Given, forward
from golden.relations import Relation
from selfsight.memory import Queue
from selfsight.methods.align_uniform import AlignUniform
from selfsight.methods.ressl import ReSSL
from selfsight.momentum import Teacher

__all__ = ["RELATIONS"]

Outputs = Mapping[str, Any]


def align_uniform(z1: Tensor, z2: Tensor, *, alpha: float, t: float, lam: float) -> Outputs:
    def loss(first: Tensor, second: Tensor, **weights: float) -> Tensor:
        method = AlignUniform(Given(z1.shape[1]), alpha=alpha, t=t, head="none", **weights)
        return forward(method, first, second).loss

    return {
        "loss": loss(z1, z2, uniformity=lam),
        "align": loss(z1, z2, uniformity=0.0),
        "uniform_z1": loss(z1, z1, alignment=0.0),
    }


def ressl(
    q: Tensor, k: Tensor, queue_init_unnormalised: Tensor, *, temperature_student: float,
    temperature_teacher: float, queue_size: int,
) -> Outputs:  # fmt: skip
    """One step with a queue that starts as a ring; its newest row comes first in ours."""
    init = F.normalize(queue_init_unnormalised, dim=0).T
    assert len(init) == queue_size, "queue_size is not the array's"
    method = ReSSL(
        Given(q.shape[1]), queue=queue_size, temperature=temperature_student,
        teacher_temperature=temperature_teacher, head="none", norm_groups=1,
    )  # fmt: skip
    method.teacher, method.queue = Teacher(nn.Identity()), Queue(queue_size, q.shape[1]).double()
    # The ring's rows that the batch will replace are the oldest.
    method.queue.push(init.flip(0))
    output = forward(method, q, k)
    method.after_step(output.carry, START)
    new, kept = method.queue.rows.split([len(k), queue_size - len(k)])
    return {"loss": output.loss, "queue_after": torch.cat([new, kept.flip(0)]).T}


RELATIONS = {
    "align_uniform": {
        source: Relation(ours=align_uniform)
        for source in ("SsnL/align_uniform@e256d47", "lightly@1.6.0")
    },
    "ressl": {
        source: Relation(ours=ressl)
        for source in ("KyleZheng1997/ReSSL@4d67daa", "vturrisi/solo-learn@9187ea3")
    },
}
