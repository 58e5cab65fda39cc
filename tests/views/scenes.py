"""Images to render and tables that turn on what a test is about."""

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from selfsight.views import reference
from selfsight.views.sample import COLUMNS, Table, center
from selfsight.views.spec import View

PLAIN = {"mean": (0, 0, 0), "std": (1, 1, 1)}


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth colour, hard edges and noise: what each operator finds hard."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / max(height, width)
    waves = [np.sin(rng.uniform(2, 9) * x + rng.uniform(2, 9) * y + c) for c in range(3)]
    smooth = 127 + 100 * np.stack(waves, axis=-1)
    smooth[height // 3 : height // 2, width // 4 : width // 2] = rng.integers(0, 256, 3)
    noisy = smooth + rng.normal(0, 12, smooth.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8)


def table(images: list[np.ndarray], **columns: float | list[float]) -> Table:
    """The whole image without photometry, but for the given columns."""
    plain = center(1, reference.sizes(images))
    values = plain.values.copy()
    for i, image in enumerate(images):
        values[i, :4] = (0, 0, *image.shape[:2])
    for name, column in columns.items():
        values[:, COLUMNS.index(name)] = column
    return Table(values, 0, np.arange(len(images)), 0)


def raw(
    images: list[np.ndarray],
    size: int,
    render: Callable[..., Tensor] = reference.render,
    **columns: float | list[float],
) -> Tensor:
    return render(images, table(images, **columns), View(size=size, space="raw"), **PLAIN)


def tensor(image: np.ndarray | Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255


def anything(rng: np.random.Generator) -> View:
    """A view of which any operator may be off, always on, or either."""

    def ordered(low: float, high: float) -> tuple[float, float]:
        a, b = np.sort(rng.uniform(low, high, 2))
        return float(a), float(b)

    chances = ("flip", "rotate", "jitter_p", "gray", "blur")
    chances += ("solarize", "equalize", "cutout", "noise", "sobel")
    share = {name: float(rng.choice([0, 1, rng.random()], p=[0.4, 0.2, 0.4])) for name in chances}
    return View(
        size=int(rng.integers(1, 50)),
        crop=ordered(0.01, 1),
        ratio=ordered(0.3, 3),
        jitter=(*map(float, rng.uniform(0, 1.5, 3)), float(rng.uniform(0, 0.5))),
        blur_sigma=ordered(0.05, 4),
        space=str(rng.choice(["raw", "rgb", "lab"])),
        **share,
    )


def photos(rng: np.random.Generator, count: int, *, alike: bool) -> list[np.ndarray]:
    """Of one size, or of any sizes from a pixel up."""
    sides = rng.integers(1, rng.choice([4, 30, 120]), (count, 2))
    return [photo(*sides[0 if alike else i], seed=i) for i in range(count)]
