"""How fast an encoder is: images per second on the machine at hand."""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from selfsight.data.base import Source
from selfsight.data.decode import Undecodable
from selfsight.data.sources import Data, open_source
from selfsight.encoders.inference import inference_form
from selfsight.errors import ConfigError, DataError
from selfsight.evaluate.base import OnImages, Sight
from selfsight.evaluate.report import Score
from selfsight.extraction import DTYPES
from selfsight.ranges import Count, Positive, Range
from selfsight.views import View, render
from selfsight.views.sample import center

__all__ = ["Throughput", "median_interval"]

# Fewer say nothing at 95%.
_FEWEST = 6


class Throughput(OnImages):
    """Images per second of the encoder alone: one batch of the data, decoded, cropped and on the
    device beforehand, is embedded over and over. No labels are asked for.

    batch: images; of fewer data some repeat
    seconds: that each repeat takes at least
    repeats: the number is their median; another, uncounted, warms up

    The interval is of this encoder on this machine as busy as it was: others are not in it.
    """

    name: ClassVar[str] = "throughput"

    def __init__(
        self,
        batch: Count = 64,
        seconds: Positive = 0.5,
        repeats: Annotated[int, Range(_FEWEST)] = 9,
    ) -> None:
        if batch < 1 or not seconds > 0 or repeats < _FEWEST:
            raise ConfigError(
                f"throughput needs batch ≥ 1, seconds > 0 and repeats ≥ {_FEWEST}, got "
                f"{batch}, {seconds} and {repeats}"
            )
        self.batch = batch
        self.seconds = seconds
        self.repeats = repeats

    def open(
        self, data: Data, *, duplicates: Literal["refuse", "drop"] = "refuse", **options: Any
    ) -> tuple[Source, Source]:
        # Nothing is trained, so copies do no harm.
        source = open_source(data, labels=False, **options)
        return source, source

    def measure(self, sight: Sight, train: Source, test: Source) -> list[Score]:
        # A graph of another runtime has no parameters, and stays on the CPU in its own precision.
        ours = next(sight.encoder.parameters(), None) is not None
        device = torch.device(sight.device if ours else "cpu")
        precision = sight.precision if ours else "its own"
        x = _batch(sight, test, self.batch).to(device)
        half = torch.autocast(device.type, torch.bfloat16, enabled=sight.precision == "bf16")
        with sight.encoder.resting(device) as encoder, torch.no_grad(), half:
            # As they are embedded.
            form = inference_form(encoder, DTYPES[sight.precision])
            rates = self._rates(lambda: form(x), device)
        low, high = median_interval(rates)
        cuda = device.type == "cuda"
        found = {
            "device": torch.cuda.get_device_name(device) if cuda else device.type,
            "threads": torch.get_num_threads(),
            "precision": precision,
            "size": sight.size,
            "rates": rates,
        }
        name = f"throughput ({found['device']}, {precision}, batch={self.batch})"
        middle = statistics.median(rates)
        return [Score(name, self.name, middle, low, high, len(rates), "images/s", found)]

    def _rates(self, embed: Callable[[], object], device: torch.device) -> list[float]:
        def taken(runs: int) -> float:
            _finish(device)
            start = time.perf_counter()
            for _ in range(runs):
                embed()
            _finish(device)
            return time.perf_counter() - start

        taken(1)  # the first call sets up what later ones find
        warm, runs = 0.0, 0
        while warm < self.seconds:
            warm, runs = warm + taken(1), runs + 1
        runs = max(1, math.ceil(runs * self.seconds / warm))
        return [runs * self.batch / taken(runs) for _ in range(self.repeats)]


def median_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """The interval of a median that two of the values, as far in as the level allows, enclose.

    It asks nothing of how the values are distributed but that they are independent: how many
    lie below the median is binomial. Too few values leave all numbers possible.
    """
    ordered, n = sorted(values), len(values)
    inward, below = 0, 0.0
    while inward < n:
        below += math.comb(n, inward) / 2**n
        if 2 * below > 1 - level:
            break
        inward += 1
    return (ordered[inward - 1], ordered[n - inward]) if inward else (-math.inf, math.inf)


def _batch(sight: Sight, source: Source, count: int) -> Tensor:
    """(count, 3, size, size) as the encoder is fed when it embeds."""
    if len(source) == 0:
        raise DataError(f"{source.name} holds no images; there is nothing to embed")
    images: list[np.ndarray] = []
    for i in range(min(count, len(source))):
        try:
            images.append(source.read(i))
        except (Undecodable, OSError) as error:
            raise DataError(f"cannot read {source.path(i)}: {error}; restore it") from error
    sizes = np.array([image.shape[:2] for image in images])
    encoder = sight.encoder
    made = render(
        images, center(sight.size, sizes, encoder.crop_pct), View(size=sight.size),
        mean=encoder.mean, std=encoder.std, device=torch.device("cpu"),
    )  # fmt: skip
    return made[torch.arange(count) % len(made)].contiguous(memory_format=torch.channels_last)


def _finish(device: torch.device) -> None:
    """Wait until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
