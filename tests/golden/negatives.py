"""DCL, debiased and hard negatives: each method's own forward on the embeddings of a record."""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from golden.given import Given, forward
from golden.relations import Relation
from selfsight.losses import cosine, decoupled_nce, mises_fisher
from selfsight.methods.base import sides
from selfsight.methods.dcl import DCL
from selfsight.methods.debiased import Debiased
from selfsight.methods.hcl import HCL

__all__ = ["RELATIONS"]

Outputs = Mapping[str, Any]


def dcl(
    z1: Tensor, z2: Tensor, *, temperature: float, sigma: float | None = None, **options: bool
) -> Outputs:
    """sigma: of DCLW's weights; None: there are none. Beside the method's loss its function for
    the anchors of the first view alone."""
    weighted = {} if sigma is None else {"weight": "vmf", "sigma": sigma}
    method = DCL(Given(z1.shape[1]), temperature=temperature, head="none", **weighted, **options)
    z, partner, candidates, own, owners = sides(z1, z2)
    n = len(z1)
    s = cosine(z1, z2)
    one = decoupled_nce(
        z[:n], partner[:n], candidates, own[:n], owners, temperature=temperature,
        weight=None if sigma is None else mises_fisher(s, s, sigma),
    )  # fmt: skip
    return {"loss": forward(method, z1, z2).loss, "loss_oneway": one, "oneway": one}


def dcl_leaking(
    z1: Tensor, z2: Tensor, *, temperature: float, sigma: float | None = None
) -> Outputs:
    """The anchor itself and its positive stay among the negatives, their logits less by 103."""
    less = math.log(1e-45)

    def one(z1: Tensor, z2: Tensor) -> Tensor:
        a, b = F.normalize(z1, dim=1), F.normalize(z2, dim=1)
        s = (a * b).sum(1)
        weight = 1 if sigma is None else mises_fisher(s, s, sigma)
        logits = a @ torch.cat([a, b]).T / temperature
        logits = logits + less * torch.eye(len(a), dtype=a.dtype).repeat(1, 2)
        return (logits.logsumexp(1) - weight * s / temperature).mean()

    forth = one(z1, z2)
    return {"loss": forth + one(z2, z1), "loss_oneway": forth, "oneway": forth}


def debiased(z1: Tensor, z2: Tensor, *, temperature: float, tau_plus: float) -> Outputs:
    method = Debiased(Given(z1.shape[1]), temperature=temperature, tau_plus=tau_plus, head="none")
    return {"loss": forward(method, z1, z2).loss}


def hcl(z1: Tensor, z2: Tensor, *, temperature: float, tau_plus: float, beta: float) -> Outputs:
    method = HCL(
        Given(z1.shape[1]), temperature=temperature, tau_plus=tau_plus, beta=beta, head="none"
    )
    return {"loss": forward(method, z1, z2).loss}


LIGHTLY = "lightly@1.6.0"
NAKHLI = "raminnakhli/Decoupled-Contrastive-Learning@0b9b76d"
CHUANG, ROBINSON = "chingyaoc/DCL@7d6345f", "joshr17/HCL@7b4647f"
_HALF = "half of ours: the mean of the two directions (our option mean)"
_LEAKING = Relation(
    ours=dcl, theirs=dcl_leaking, when=lambda facts: facts["temperature"] < 0.02,
    note="masks by adding −103 to a logit, which at a low temperature leaks; ours takes −∞",
)  # fmt: skip

RELATIONS = {
    "biased": {CHUANG: Relation(ours=partial(debiased, tau_plus=0.0))},
    "dcl": {
        LIGHTLY: Relation(ours=dcl, note=_HALF, theirs=partial(dcl, mean=True)),
        NAKHLI: _LEAKING,
    },
    "dclw": {
        LIGHTLY: Relation(
            ours=dcl, note=f"{_HALF}, its weights constant in the gradient (our stop_gradient)",
            theirs=partial(dcl, mean=True, stop_gradient=True),
        ),
        NAKHLI: _LEAKING,
    },
    "debiased": {CHUANG: Relation(ours=debiased)},
    "hcl_hard_negative": {ROBINSON: Relation(ours=hcl)},
}  # fmt: skip
