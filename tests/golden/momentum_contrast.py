"""MoCo v3's loss: the method's own forward, on the queries and keys of a record."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from golden.given import Given, Half, forward
from golden.relations import Relation
from selfsight.methods.moco_v3 import MoCoV3
from selfsight.momentum import Teacher

__all__ = ["RELATIONS", "mocov3"]


def mocov3(
    q1: Tensor, q2: Tensor, k1: Tensor, k2: Tensor, *, temperature: float
) -> Mapping[str, Any]:
    method = MoCoV3(Given(q1.shape[1]), hidden=1, dim=1, temperature=temperature)
    method.projector, method.predictor = nn.Identity(), Half(0)
    method.teacher = Teacher(Half(1))
    both = forward(method, torch.cat([q1, k1], 1), torch.cat([q2, k2], 1)).loss
    return {"loss": both, "loss_q1k2": method.contrast(q1, k2.detach())}


RELATIONS = {
    "mocov3": {
        "facebookresearch/moco-v3@c349e6e": Relation(ours=mocov3),
        "vturrisi/solo-learn@9187ea3": Relation(ours=mocov3),
    }
}
