"""VICReg's variance and covariance terms, added to the loss of any method (VICReg, table 4)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from selfsight.distributed import gather
from selfsight.errors import ConfigError
from selfsight.losses import covariance_penalty, variance_hinge

__all__ = ["Regularizer"]


@dataclass(frozen=True)
class Regularizer:
    """Weights of the terms on the projections; 0 and 0 add nothing.

    variance: of the hinge that keeps each feature varying, averaged over views
    covariance: of the penalty on correlated features, twice its average over views
    """

    variance: float = 0.0
    covariance: float = 0.0

    def __post_init__(self) -> None:
        for name, weight in (("variance", self.variance), ("covariance", self.covariance)):
            if not weight >= 0:
                raise ConfigError(f"--regularize.{name} {weight}: must be 0 or more")

    def __call__(self, projections: Sequence[Tensor]) -> Tensor | float:
        total: Tensor | float = 0.0
        if not self.variance and not self.covariance:
            return total
        learned = [gather(z) for z in projections if z.requires_grad]
        if not learned:
            raise ConfigError("this method has no projections; leave --regularize out")
        if self.variance:
            total += self.variance * torch.stack([variance_hinge(z) for z in learned]).mean()
        if self.covariance:
            total += 2 * self.covariance * torch.stack(
                [covariance_penalty(z) for z in learned]
            ).mean()  # fmt: skip
        return total
