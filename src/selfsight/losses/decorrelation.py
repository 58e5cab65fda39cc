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
        on = (x * y).sum(0) / n
        gram = x @ x.T
        other = gram if y is x else y @ y.T
        # ‖xᵀy‖² = tr(xxᵀ yyᵀ) less the diagonal, which at this rank is half of it at the most
        # where x = y is whitest: little cancels.
        return on, (gram * other).sum() / n**2 - on.square().sum()
    c = x.T @ y / n
    on = c.diagonal()
    return on, c.diagonal_scatter(torch.zeros_like(on)).square().sum()


def _normalized(z: Tensor, normalize: str) -> Tensor:
    match normalize:
        case "batch":
            return F.batch_norm(z, None, None, training=True, eps=1e-5)
        case "feature":
            return F.normalize(z, dim=1)
        case "none":
            return z
    known = ("batch", "feature", "none")
    raise ConfigError(
        f"unknown normalize {normalize!r} for barlow_twins; one of {', '.join(known)}"
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
    """ι Σ_i (C_ii − 1)² + λ Σ_{i≠j} C_ij² of the cross-correlation C (Zbontar et al. 2021)."""
    x, y = _normalized(z1, normalize), _normalized(z2, normalize)
    on, off = _cross(x, y, len(x))
    return invariance * (on - 1).square().sum() + lambd * off


@full_precision
def barlow_cross_entropy(
    z1: Tensor, z2: Tensor, lambd: float = 0.0051, temperature: float = 1.0
) -> Tensor:
    """−log Σ_i exp(C_ii/τ) + λ log Σ_{i≠j} exp(max(C_ij, 0)/τ), the ablation's loss."""
    x, y = _normalized(z1, "batch"), _normalized(z2, "batch")
    c = x.T @ y / len(x)
    on = c.diagonal()
    off = c.clamp_min(0).diagonal_scatter(torch.full_like(on, -torch.inf))
    return lambd * (off / temperature).flatten().logsumexp(0) - (on / temperature).logsumexp(0)


@full_precision
def vicreg(
    z1: Tensor,
    z2: Tensor,
    *,
    invariance: float = 25.0,
    variance: float = 25.0,
    covariance: float = 1.0,
) -> Tensor:
    """Invariance, variance and covariance as the official code weighs them (Bardes et al. 2022)."""
    loss = invariance * F.mse_loss(z1, z2)
    loss = loss + variance * (variance_hinge(z1) + variance_hinge(z2)) / 2
    return loss + covariance * (covariance_penalty(z1) + covariance_penalty(z2))


@full_precision
def variance_hinge(z: Tensor) -> Tensor:
    """Mean over the dimensions of max(0, 1 − √(var + 1e-4)), var unbiased. z: (N, D)."""
    return F.relu(1 - (z.var(0) + 1e-4).sqrt()).mean()


@full_precision
def covariance_penalty(z: Tensor) -> Tensor:
    """Σ_{i≠j} Cov_ij² / D, Cov unbiased. z: (N, D)."""
    x = z - z.mean(0)
    return _cross(x, x, len(x) - 1)[1] / z.shape[1]
