"""Losses whose positives are other images: of the same label, or nearest in a queue."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from golden.given import Given, forward
from golden.relations import Relation
from selfsight.methods.nnclr import NNCLR
from selfsight.methods.supcon import SupCon

__all__ = ["RELATIONS"]

Outputs = Mapping[str, Any]
SOLO, SUPCONTRAST = "vturrisi/solo-learn@9187ea3", "HobbitLong/SupContrast@66a8fe5"


def supcon(
    z: Tensor, labels: Tensor, *, temperature: float, base_temperature: float | None = None,
    contrast_mode: str = "all", inside: bool = False,
) -> Outputs:  # fmt: skip
    """z: (N, views, D); where there is no base_temperature the source does not scale its loss."""
    assert contrast_mode in ("all", "one"), f"unknown contrast_mode {contrast_mode}"
    method = SupCon(
        Given(z.shape[2]), temperature=temperature, head="none", inside=inside,
        base_temperature=base_temperature or temperature,
        anchors="all" if contrast_mode == "all" else "first",
    )  # fmt: skip
    return {"loss": forward(method, *z.unbind(1), labels=labels).loss}


def supcon_added(z: Tensor, labels: Tensor, *, temperature: float) -> Outputs:
    """The positives' probabilities are added before the logarithm, where equation 3 averages."""
    averaged = supcon(z, labels, temperature=temperature, inside=True)["loss"]
    positives = (labels[:, None] == labels).sum(1, dtype=z.dtype) * z.shape[1] - 1
    return {"loss": averaged - positives.log().mean()}


def multiview(
    z: Tensor, *, temperature: float, views: int, base_temperature: float | None = None
) -> Outputs:
    """Without labels each image is a class of its own. z: (views, N, D)."""
    assert views == len(z), "views is not the array's"
    each, numbers = z.transpose(0, 1), torch.arange(z.shape[1])
    return supcon(each, numbers, temperature=temperature, base_temperature=base_temperature)


def multiview_added(z: Tensor, *, temperature: float, views: int) -> Outputs:
    assert views == len(z), "views is not the array's"
    return supcon_added(z.transpose(0, 1), torch.arange(z.shape[1]), temperature=temperature)


def nnclr(nn: Tensor, p: Tensor, *, temperature: float) -> Outputs:
    """One direction, with the neighbours given."""
    method = NNCLR(
        Given(p.shape[1]), temperature=temperature, head="none", predictor=False, queue=1
    )
    return {"loss": method.contrast(nn, p)}


ADDED = "adds the positives' probabilities inside the logarithm (our inside, but for a constant)"

RELATIONS: dict[str, dict[str, Relation]] = {
    "nnclr": {SOLO: Relation(ours=nnclr)},
    "ntxent_multiview": {
        SUPCONTRAST: Relation(ours=multiview),
        SOLO: Relation(ours=multiview, theirs=multiview_added, note=ADDED),
    },
    "supcon": {
        SUPCONTRAST: Relation(ours=supcon),
        SOLO: Relation(ours=supcon, theirs=supcon_added, note=ADDED),
    },
}  # fmt: skip
