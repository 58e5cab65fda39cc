"""Watchers: what is measured while a run trains; they read and never change it."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from selfsight import meters, philox
from selfsight.data.base import Source
from selfsight.distributed import gather
from selfsight.errors import DataError
from selfsight.evaluate.protocols.knn import KNN
from selfsight.extraction import extract
from selfsight.methods.base import Method, Output
from selfsight.philox import Purpose

__all__ = ["OnlineKNN", "readings"]

_SAMPLES = 512  # rows that a reading looks at; more changes little and costs an SVD


def readings(output: Output) -> dict[str, float]:
    """Spread, rank, correlation and uniformity of h and z, over the samples of all ranks."""
    values = _meters("h", output.embedding)
    if output.projections:
        z = output.projections
        values |= _meters("z", z[0])
        if len(z) > 1:
            pair = gather(z[0].detach()), gather(z[1].detach())
            values["z_alignment"] = float(meters.alignment(*pair))
    return values


@torch.no_grad()
def _meters(name: str, x: Tensor) -> dict[str, float]:
    x = gather(x.detach().float())[:_SAMPLES]
    return {
        f"{name}_samples": len(x),
        f"{name}_dim": x.shape[1],
        f"{name}_spread": float(meters.spread(x)),
        f"{name}_scale": float(meters.scale(x)),
        f"{name}_rank": float(meters.effective_rank(x)),
        f"{name}_centred_rank": float(meters.effective_rank(x, centred=True)),
        f"{name}_correlation": float(meters.correlation(x)),
        f"{name}_uniformity": float(meters.uniformity(x)),
    }


@dataclass(frozen=True)
class OnlineKNN:
    """Leave-one-out kNN accuracy on a fixed subset of the training images.

    Stateless: it embeds the subset anew each time, so a resumed run reports the same.
    """

    source: Source
    size: int
    device: str
    precision: str

    @classmethod
    def over(
        cls, source: Source, *, size: int, device: str, precision: str, seed: int, most: int = 2000
    ) -> "OnlineKNN":
        chosen = philox.permutation(seed, 0, Purpose.SUBSET, len(source))[:most]
        return cls(source.subset(np.sort(chosen)), size, device, precision)

    def __call__(self, method: Method) -> float | None:
        """None where an image has gone bad: a watcher does not stop the run."""
        try:
            features = extract(
                method.product, self.source, size=self.size, device=self.device,
                precision="bf16" if self.precision == "bf16" else "fp32",
            )  # fmt: skip
        except DataError:
            return None
        assert features.label is not None
        knn = KNN().fit(features.embedding, features.label)
        predicted = knn.predict(features.embedding, exclude_self=True)
        return float((predicted == features.label).mean())
