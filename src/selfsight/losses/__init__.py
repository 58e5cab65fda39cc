"""Pure functions from tensors to a scalar, never computed below float32."""

from selfsight.losses.clustering import assignment_cross_entropy, sinkhorn
from selfsight.losses.contrastive import info_nce, nt_xent, proto_nce, queue_nce
from selfsight.losses.decorrelation import (
    barlow_cross_entropy,
    barlow_twins,
    covariance_penalty,
    variance_hinge,
    vicreg,
)
from selfsight.losses.distillation import negative_cosine, relation_consistency
from selfsight.losses.hypersphere import alignment, uniformity
from selfsight.losses.masked import patch_mse
from selfsight.losses.mining import (
    extrapolated,
    hard_mixes,
    interpolated,
    mixed_nce,
    ring_nce,
    score_moments,
    score_nce,
)
from selfsight.losses.negatives import (
    cosine,
    coupling,
    debiased_nce,
    decoupled_nce,
    hard_nce,
    mises_fisher,
    simple_contrast,
    variation,
)
from selfsight.losses.noise import binary_nce, noise_scores
from selfsight.losses.precision import full_precision
from selfsight.losses.supervised import supcon

__all__ = [
    "alignment",
    "assignment_cross_entropy",
    "barlow_cross_entropy",
    "barlow_twins",
    "binary_nce",
    "cosine",
    "coupling",
    "covariance_penalty",
    "debiased_nce",
    "decoupled_nce",
    "extrapolated",
    "full_precision",
    "hard_mixes",
    "hard_nce",
    "info_nce",
    "interpolated",
    "mises_fisher",
    "mixed_nce",
    "negative_cosine",
    "noise_scores",
    "nt_xent",
    "patch_mse",
    "proto_nce",
    "queue_nce",
    "relation_consistency",
    "ring_nce",
    "score_moments",
    "score_nce",
    "simple_contrast",
    "sinkhorn",
    "supcon",
    "uniformity",
    "variance_hinge",
    "variation",
    "vicreg",
]
