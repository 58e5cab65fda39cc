"""Streams the data set through a network in index order, for `Method.prepare`."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from selfsight.data.base import Source
from selfsight.distributed import gather, rank, world
from selfsight.encoders.base import Encoder
from selfsight.methods.base import Clock
from selfsight.views.reference import render
from selfsight.views.sample import sample
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

    def __init__(self, source: Source, encoder: Encoder, device: str) -> None:
        self.source, self.encoder, self.device = source, encoder, device

    def __call__(
        self, network: nn.Module, view: View, clock: Clock, dtype: torch.dtype = torch.float32
    ) -> Iterator[tuple[Tensor, Tensor]]:
        modes = {module: module.training for module in network.modules()}
        network.eval()
        try:
            for start in range(0, len(self.source), _CHUNK * world()):
                own = np.arange(start + rank() * _CHUNK, start + (rank() + 1) * _CHUNK)
                # Ranks past the end repeat the last image, so that all hold equally many.
                own = own.clip(max=len(self.source) - 1)
                with torch.no_grad():
                    y = gather(network(self._render(own, view, clock).to(dtype)))
                index = torch.arange(start, min(start + _CHUNK * world(), len(self.source)))
                yield index.to(y.device), y[: len(index)]
        finally:
            for module, training in modes.items():
                module.training = training

    def _render(self, index: np.ndarray, view: View, clock: Clock) -> Tensor:
        table = sample(
            view, self.source.sizes[index], seed=clock.seed, index=0,
            position=_BEYOND + clock.step * len(self.source) + index,
        )  # fmt: skip
        images = [self.source.read(int(i)) for i in index]
        mean, std = self.encoder.mean, self.encoder.std
        return render(images, table, view, mean=mean, std=std, device=self.device)
