"""Losses that make the dimensions of an embedding carry different things."""

import torch
import torch.nn.functional as F
from torch import Tensor

from selfsight.errors import ConfigError, suggestion
from selfsight.losses.precision import full_precision

__all__ = [
    "barlow_cross_entropy",
    "barlow_twins",
    "covariance_penalty",
    "variance_hinge",
    "vicreg",
]


def _cross(x: Tensor, y: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """C = xᵀy/n: its diagonal (D,), and Σ_{i≠j} C_ij² as a scalar. x, y: (N, D).

    Never are more than 2·N·D numbers held.
    """
    if 2 * len(x) <= x.shape[1]:
        # ‖xᵀy‖² = tr(xxᵀ yyᵀ), less the diagonal. Of whitened features little cancels at this
        # rank; where one feature dwarfs the rest nearly all does, and float64 keeps the digits.
        on = (x * y).sum(0) / n
        gram = x @ x.T
        other = gram if y is x else y @ y.T
        off = (gram * other).sum() / n**2 - on.square().sum()
        if x.dtype != torch.float64 and off < gram.norm() * other.norm() / (16 * n**2):
            wide = x.double()
            parts = _cross(wide, wide if y is x else y.double(), n)
            on, off = (part.to(x.dtype) for part in parts)
        return on, off
    c = x.T @ y / n
    on = c.diagonal()
    return on, c.diagonal_scatter(torch.zeros_like(on)).square().sum()


def _normalized(z: Tensor, normalize: str) -> Tensor:
    known = ("batch", "centre", "feature", "none")
    match normalize:
        case "batch":
            return F.batch_norm(z, None, None, training=True, eps=1e-5)
        case "centre":
            return z - z.mean(0)
        case "feature":
            return F.normalize(z, dim=1)
        case "none":
            return z
    raise ConfigError(
        f"unknown normalize {normalize!r} for barlow_twins; known are {', '.join(known)}"
        + suggestion(normalize, known)
    )


@full_precision
def barlow_twins(
    z1: Tensor,
    z2: Tensor,
    lambd: float = 0.0051,
    *,
    invariance: float = 1.0,
    normalize: str = "batch",
) -> Tensor:
    """Σ_i (C_ii − 1)² + λ Σ_{i≠j} C_ij², C = ẑ1ᵀẑ2/N (Zbontar et al. 2021, eq. 1).

    z1, z2: (N, D); invariance: weight of the first sum; normalize: what makes ẑ of z, the
    paper's ablations among them. "batch": every feature has mean 0 and biased variance 1
    over the batch, with BatchNorm's ε; "centre": mean 0 only, C is the cross-covariance;
    "feature": every sample lies on the unit sphere; "none": ẑ = z.
    """
    on, off = _cross(_normalized(z1, normalize), _normalized(z2, normalize), len(z1))
    return invariance * (on - 1).square().sum() + lambd * off


@full_precision
def barlow_cross_entropy(
    z1: Tensor, z2: Tensor, lambd: float = 0.0051, temperature: float = 0.1
) -> Tensor:
    """−log Σ_i exp(C_ii/τ) + λ log Σ_{i≠j} exp(max(C_ij, 0)/τ), an ablation of the paper's.

    z1, z2: (N, D), D > 1. C is the cross-correlation: this loss holds D×D numbers.
    """
    c = _normalized(z1, "batch").T @ _normalized(z2, "batch") / (len(z1) * temperature)
    on = c.diagonal()
    off = c.clamp_min(0).diagonal_scatter(torch.full_like(on, -torch.inf))
    return lambd * off.flatten().logsumexp(0) - on.logsumexp(0)


@full_precision
def vicreg(
    z1: Tensor,
    z2: Tensor,
    *,
    invariance: float = 25.0,
    variance: float = 25.0,
    covariance: float = 1.0,
) -> Tensor:
    """Invariance, variance and covariance, weighed (Bardes et al. 2022). z1, z2: (N, D)."""
    # Differs from the paper: its code also divides the invariance by D and halves the sum
    # of the variance terms; the weights belong to that.
    hinge = (variance_hinge(z1) + variance_hinge(z2)) / 2
    penalty = covariance_penalty(z1) + covariance_penalty(z2)
    return invariance * F.mse_loss(z1, z2) + variance * hinge + covariance * penalty


@full_precision
def variance_hinge(z: Tensor) -> Tensor:
    """Mean over the dimensions of max(0, 1 − √(var + 1e-4)), var unbiased. z: (N, D)."""
    return F.relu(1 - (z.var(0) + 1e-4).sqrt()).mean()


@full_precision
def covariance_penalty(z: Tensor) -> Tensor:
    """Σ_{i≠j} Cov_ij² / D, Cov unbiased. z: (N, D)."""
    x = z - z.mean(0)
    return _cross(x, x, len(x) - 1)[1] / z.shape[1]
