"""Streams the data set through a network in index order, for `Method.prepare`."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from selfsight.data.loader import Loader
from selfsight.distributed import gather, rank, world
from selfsight.methods.base import Clock
from selfsight.views.spec import View

__all__ = ["Sweeper"]

_CHUNK = 256
# Far above every step × batch + slot, so that a sweep's crops are not a batch's.
_BEYOND = 1 << 48


class Sweeper:
    """sweep(network, view, clock) yields (index, network(x)) of all samples to every rank.

    Ranks take turns by chunks of a fixed size and each network runs in eval mode, so the
    values do not depend on how many ranks there are.
    """

    def __init__(self, loader: Loader) -> None:
        self.loader, self.samples = loader, len(loader.source)

    def __call__(
        self, network: nn.Module, view: View, clock: Clock, dtype: torch.dtype = torch.float32
    ) -> Iterator[tuple[Tensor, Tensor]]:
        modes = {module: module.training for module in network.modules()}
        network.eval()
        try:
            for start in range(0, self.samples, _CHUNK * world()):
                own = np.arange(start + rank() * _CHUNK, start + (rank() + 1) * _CHUNK)
                # Ranks past the end repeat the last image, so that all hold equally many.
                own = own.clip(max=self.samples - 1)
                with torch.no_grad():
                    y = gather(network(self._render(own, view, clock).to(dtype)))
                index = torch.arange(start, min(start + _CHUNK * world(), self.samples))
                yield index.to(y.device), y[: len(index)]
        finally:
            for module, training in modes.items():
                module.training = training

    def _render(self, index: np.ndarray, view: View, clock: Clock) -> Tensor:
        # A file that has gone bad lends its row to the image that stands in for it.
        position = _BEYOND + clock.step * self.samples + index
        _, (x,), _ = self.loader.render(index, position, [view], clock.seed)
        return x
