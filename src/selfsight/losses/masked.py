"""Losses on what was hidden from the encoder."""

from torch import Tensor

from selfsight.losses.precision import full_precision

__all__ = ["patch_mse"]


@full_precision
def patch_mse(prediction: Tensor, target: Tensor, masked: Tensor) -> Tensor:
    """Mean squared error per patch, averaged over the masked patches of the batch.

    prediction, target: (N, T, P); masked: (N, T), 1 where hidden.
    """
    error = (prediction - target).square().mean(2)
    return (error * masked).sum() / masked.sum()
