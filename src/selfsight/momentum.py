"""A network that follows another."""

from typing import Any

import torch
from torch import Tensor, nn

from selfsight.encoders.base import Encoder

__all__ = ["Teacher"]


class Teacher(nn.Module):
    """A frozen network whose parameters are a moving average of a student's.

    Only parameters follow: BatchNorm statistics come from the teacher's own passes, as in
    every official implementation.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.requires_grad_(False)

    @property
    def encoder(self) -> Encoder:
        """The first part of a network that is an encoder and its heads."""
        first = self.network.get_submodule("0")
        assert isinstance(first, Encoder)
        return first

    @torch.no_grad()
    def forward(self, x: Tensor) -> Any:
        return self.network(x)

    @torch.no_grad()
    def update(self, student: nn.Module, decay: float) -> None:
        """ξ ← decay · ξ + (1 − decay) · θ"""
        pairs = zip(self.network.parameters(), student.parameters(), strict=True)
        for ours, theirs in pairs:
            ours.lerp_(theirs, 1 - decay)
