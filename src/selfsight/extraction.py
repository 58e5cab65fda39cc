"""Embeddings of the images of a source."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from selfsight.data.base import Source
from selfsight.data.decode import Undecodable
from selfsight.encoders.base import Encoder
from selfsight.encoders.inference import inference_form
from selfsight.errors import ConfigError, DataError, suggestion
from selfsight.features import Features
from selfsight.views import cpu, render
from selfsight.views.reference import sizes
from selfsight.views.sample import center
from selfsight.views.spec import View

__all__ = ["DTYPES", "extract", "pixels"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def extract(
    encoder: Encoder,
    source: Source,
    *,
    size: int,
    device: str | torch.device = "cpu",
    batch: int = 256,
    precision: Literal["fp32", "bf16"] = "fp32",
    progress: Callable[[int, int], None] | None = None,
    threads: int = 1,
    read: Callable[[Tensor], Tensor] | None = None,
) -> Features:
    """The encoder's h of each image, once each and in order, from a central crop.

    read: what is taken of a batch of images, (N, D), instead of h
    progress: called with (images done, images in all)
    threads: how many images are decoded at a time, while the encoder runs
    """
    if precision not in ("fp32", "bf16"):
        near = suggestion(str(precision), ("fp32", "bf16"))
        raise ConfigError(f"unknown precision {precision}; known: fp32, bf16{near}")
    device = torch.device(device)
    view = View(size=size)
    embedding = np.empty((0, encoder.dim), np.float32)
    half = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
    with encoder.resting(device), torch.no_grad(), half:
        form = read or inference_form(encoder, DTYPES[precision])
        for start, x in _batches(
            source, view, encoder.crop_pct, encoder.mean, encoder.std, device, batch, threads
        ):
            h = form(x).float().cpu().numpy()
            if start == 0:
                embedding = np.empty((len(source), h.shape[1]), np.float32)
            embedding[start : start + len(x)] = h
            if progress is not None:
                progress(start + len(x), len(source))
    return _described(embedding, source)


def pixels(source: Source, *, size: int = 32, batch: int = 256, threads: int = 1) -> Features:
    """The resized image itself as its embedding: what any encoder has to beat."""
    view = View(size=size)
    embedding = np.empty((len(source), 3 * size * size), np.float32)
    zero, one = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    for start, x in _batches(source, view, 1.0, zero, one, torch.device("cpu"), batch, threads):
        embedding[start : start + len(x)] = x.flatten(1).numpy()
    return _described(embedding, source)


def _described(embedding: np.ndarray, source: Source) -> Features:
    path = tuple(map(source.path, range(len(source))))
    return Features(embedding, source.labels, path, source.classes)


def _batches(
    source: Source,
    view: View,
    fraction: float,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    device: torch.device,
    batch: int,
    threads: int,
) -> Iterator[tuple[int, Tensor]]:
    """(first index, images) over the source; the next batch is decoded meanwhile."""
    n = len(source)
    if n == 0:
        raise DataError(f"{source.name} holds no images; there is nothing to embed")
    if batch < 1 or threads < 1:
        raise ConfigError(f"embedding needs batch ≥ 1 and threads ≥ 1, got {batch} and {threads}")

    def read(i: int) -> np.ndarray:
        try:
            return source.read(i)
        except (Undecodable, OSError) as error:
            raise DataError(
                f"cannot read {source.path(i)}: {error}; it was readable before, so restore it "
                "or start again without it"
            ) from error

    cost = view.size**2 + source.decoded
    with ThreadPoolExecutor(threads) as readers, ThreadPoolExecutor(1) as ahead:

        def prepare(start: int) -> Tensor:
            count = min(batch, n - start)
            if device.type != "cpu":
                images = list(readers.map(read, range(start, start + count)))
                table = center(view.size, sizes(images), fraction)
                return render(images, table, view, mean=mean, std=std, device=device)
            out = cpu.empty(count, view, torch.float32)

            def task(part: slice) -> None:
                images = [read(start + i) for i in range(count)[part]]
                table = center(view.size, sizes(images), fraction)
                cpu.paint(images, table, view, mean=mean, std=std, out=out[part])

            cpu.in_parts(task, count, cost, threads)
            return out

        coming = ahead.submit(prepare, 0)
        for start in range(0, n, batch):
            x = coming.result()
            if start + batch < n:
                coming = ahead.submit(prepare, start + batch)
            yield start, x
