"""Pure functions from tensors to a scalar, never computed below float32."""

from selfsight.losses.clustering import assignment_cross_entropy, sinkhorn
from selfsight.losses.contrastive import info_nce, nt_xent, queue_nce
from selfsight.losses.decorrelation import (
    barlow_cross_entropy,
    barlow_twins,
    covariance_penalty,
    variance_hinge,
    vicreg,
)
from selfsight.losses.distillation import negative_cosine
from selfsight.losses.masked import patch_mse
from selfsight.losses.precision import full_precision

__all__ = [
    "assignment_cross_entropy",
    "barlow_cross_entropy",
    "barlow_twins",
    "covariance_penalty",
    "full_precision",
    "info_nce",
    "negative_cosine",
    "nt_xent",
    "patch_mse",
    "queue_nce",
    "sinkhorn",
    "variance_hinge",
    "vicreg",
]
