"""Predictors that are set from the correlation of their inputs, or kept symmetric.

Tian, Chen and Ganguli 2021, https://arxiv.org/abs/2102.06810
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from selfsight.distributed import all_sum, broadcast, rank, world
from selfsight.losses.precision import full_precision

__all__ = [
    "Correlation",
    "asymmetry",
    "boosted",
    "commutator",
    "spectral",
    "symmetrise",
    "weights",
]


class Correlation(nn.Module):
    """Running F = E[z zᵀ] of what goes into a predictor.

    decay: of the running mean, which starts as the first batch's; None weighs all batches alike
    moment: (D, D); mean: (D,), of z; seen: how many batches
    """

    moment: Tensor
    mean: Tensor
    seen: Tensor

    def __init__(self, dim: int, decay: float | None) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("moment", torch.zeros(dim, dim))
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, centred: bool = False) -> Tensor:
        """F, or the covariance."""
        return self.moment - torch.outer(self.mean, self.mean) if centred else self.moment

    @torch.no_grad()
    def follow(self, z: Tensor) -> None:
        """z: (N, D), equally many on every rank."""
        z = z.to(self.mean)
        count, seen = len(z) * world(), int(self.seen)
        share = 1 / (seen + 1) if self.decay is None or not seen else 1 - self.decay
        self.moment.lerp_(all_sum(z.T @ z) / count, share)
        self.mean.lerp_(all_sum(z.sum(0)) / count, share)
        self.seen += 1


@torch.no_grad()
@full_precision
def spectral(f: Tensor, rule: Callable[[Tensor], Tensor]) -> Tensor:
    """U diag(rule(s)) Uᵀ of a symmetric F = U diag(s) Uᵀ: (D, D). Rank 0's, on every rank."""
    w = torch.empty_like(f)
    if rank() == 0:
        s, u = torch.linalg.eigh(f)
        w = u * rule(s) @ u.T
    return broadcast(w)


def boosted(s: Tensor, epsilon: float, exponent: float = 0.5, form: str = "outside") -> Tensor:
    """Eigenvalues of a predictor for eigenvalues s of F: small ones rise, beside large ones.

    form: "outside", (s/max s)^a + ε, as the official code; "inside", (s/max s + ε)^a;
        "paper", s^a + ε max s (equation 18)
    """
    s = s.clamp_min(0)
    top = s.max().clamp_min(torch.finfo(s.dtype).tiny)
    if form == "paper":
        return s.pow(exponent) + epsilon * top
    if form == "inside":
        return (s / top + epsilon).clamp_min(1e-4).pow(exponent)
    return ((s / top).pow(exponent) + epsilon).clamp_min(1e-4)


def weights(predictor: nn.Module) -> list[Tensor]:
    """The matrices of its linear layers."""
    return [layer.weight for layer in predictor.modules() if isinstance(layer, nn.Linear)]


@torch.no_grad()
def symmetrise(predictor: nn.Module) -> None:
    """W ← (W + Wᵀ)/2; of two layers, W₀ ← (W₀ + W₁ᵀ)/2 ← W₁ᵀ."""
    first, last = (weights(predictor)[i] for i in (0, -1))
    tied = (first + last.T) / 2
    first.copy_(tied)
    last.copy_(tied.T)


@full_precision
def asymmetry(w: Tensor) -> Tensor:
    """‖W − Wᵀ‖/‖W‖: 0 symmetric, 2 antisymmetric. w: (D, D)."""
    ratio: Tensor = (w - w.T).norm() / w.norm()
    return ratio


@full_precision
def commutator(w: Tensor, f: Tensor) -> Tensor:
    """‖WF − FW‖: 0 where they share their eigenvectors. w, f: (D, D)."""
    distance: Tensor = (w @ f - f @ w).norm()
    return distance
