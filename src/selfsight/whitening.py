"""Whitening: linear maps after which the channels are uncorrelated and of unit variance."""

from collections.abc import Callable

import torch
from torch import Tensor

from selfsight.errors import ConfigError, suggestion

__all__ = ["KINDS", "whitening_matrix"]


def _principal(c: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, largest first, and eigenvectors whose signs make the diagonal positive."""
    values, vectors = torch.linalg.eigh(c)
    values, vectors = values.flip(0), vectors.flip(1)
    return values, vectors * torch.where(vectors.diagonal() < 0, -1.0, 1.0)


def _zca(cov: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(cov)
    w: Tensor = vectors / values.sqrt() @ vectors.T
    return w


def _pca(cov: Tensor) -> Tensor:
    values, vectors = _principal(cov)
    return (vectors / values.sqrt()).T


def _cholesky(cov: Tensor) -> Tensor:
    w: Tensor = torch.linalg.cholesky(torch.linalg.inv(cov)).T
    return w


def _cholesky_lower(cov: Tensor) -> Tensor:
    eye = torch.eye(len(cov), dtype=cov.dtype, device=cov.device)
    w: Tensor = torch.linalg.solve_triangular(torch.linalg.cholesky(cov), eye, upper=False)
    return w


def _of_correlation(matrix: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Scale every channel to unit variance first, so that units no longer matter."""

    def whiten(cov: Tensor) -> Tensor:
        deviation = cov.diagonal().sqrt()
        return matrix(cov / deviation[:, None] / deviation) / deviation

    return whiten


KINDS: dict[str, Callable[[Tensor], Tensor]] = {
    "cholesky": _cholesky,
    "cholesky_lower": _cholesky_lower,
    "pca": _pca,
    "pca_cor": _of_correlation(_pca),
    "zca": _zca,
    "zca_cor": _of_correlation(_zca),
}


def whitening_matrix(cov: Tensor, kind: str = "zca") -> Tensor:
    """W with W Σ Wᵀ = I for a covariance Σ: (D, D) of full rank; whitened are the rows of
    (x − μ) Wᵀ. Kessy, Lewin and Strimmer 2018, https://arxiv.org/abs/1512.00809, table 1.

    kind:
        zca: Σ^−½, symmetric; moves the channels least
        pca: Λ^−½ Uᵀ of Σ = U Λ Uᵀ; the leading channels hold the most variance
        zca_cor, pca_cor: the same of the correlation, whatever the channels' units
        cholesky: Lᵀ of Σ⁻¹ = L Lᵀ, upper triangular
        cholesky_lower: L⁻¹ of Σ = L Lᵀ, lower triangular, as W-MSE uses it

    Only a rotation sets them apart, and `pca` and `pca_cor` leave the signs of their rows
    open: here the eigenvectors' diagonal is positive. In at least float32; gradients flow,
    for the four that need eigenvectors only where no eigenvalue repeats.
    """
    if kind not in KINDS:
        raise ConfigError(f"unknown whitening {kind}{suggestion(kind, KINDS)}")
    if cov.ndim != 2 or cov.shape[0] != cov.shape[1]:
        raise ConfigError(f"whitening needs a covariance (D, D), got {tuple(cov.shape)}")
    with torch.autocast(cov.device.type, enabled=False):
        return KINDS[kind](cov if cov.dtype == torch.float64 else cov.float())
