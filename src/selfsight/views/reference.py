"""The oracle of the views: plain torch, one operator after the other, on any device.

A sample's pixels depend on nothing but its image and its row of the table: not on its
neighbours in the batch, nor on the number of threads. Hence sums are added tap by tap
or in integers (their order cannot matter), and a product and a sum are never one fused
operation, which rounds differently in vectorised loops and in their remainders.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from selfsight import philox
from selfsight.errors import DataError
from selfsight.philox import Purpose
from selfsight.views.sample import ORDERS, Table
from selfsight.views.spec import XYZ, View

__all__ = ["Images", "render", "sizes"]

Images = Sequence[np.ndarray] | np.ndarray | Tensor

# Values worked on at a time: bounds the memory and stays in the cache.
_CHUNK = 2**20


def render(
    images: Images,
    table: Table,
    view: View,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device | str = "cpu",
) -> Tensor:
    """(N, 3, size, size) float32 in channels_last order: row i of the table on image i."""
    extents = sizes(images)
    if len(extents) != len(table):
        raise DataError(f"{len(extents)} images for {len(table)} rows of a view's table")
    canvas = torch.empty(len(table), 3, view.size, view.size, device=device)
    for rows in _alike(extents):
        x = _resample(_stack(images, rows).to(device), table.take(rows), view.size)
        canvas.index_copy_(0, torch.from_numpy(rows).to(device), x)
    views = torch.empty_like(canvas, memory_format=torch.channels_last)
    step = max(1, _CHUNK // (3 * view.size**2))
    for start in range(0, len(table), step):
        part = slice(start, start + step)
        x = _photometry(canvas[part], table.take(part), view)
        views[part] = _space(x, view, mean, std)
    return views


def sizes(images: Images) -> np.ndarray:
    """(N, 2) int64 heights and widths; checks that the images are ones."""
    if isinstance(images, np.ndarray | Tensor) and images.ndim == 4:
        _check(images, images.shape[1:], 0)
        return np.tile(np.array(images.shape[1:3], np.int64), (len(images), 1))
    if isinstance(images, np.ndarray | Tensor) or not isinstance(images, Sequence):
        shape = f" {tuple(images.shape)}" if isinstance(images, np.ndarray | Tensor) else ""
        raise DataError(
            "images are one (N, height, width, 3) array or a list of arrays, not "
            f"{type(images).__name__}{shape}; views need uint8 (height, width, 3)"
        )
    for i, image in enumerate(images):
        if not isinstance(image, np.ndarray | Tensor):
            raise DataError(f"image {i} is {type(image).__name__}; views need uint8 arrays")
        _check(image, image.shape, i)
    return np.array([image.shape[:2] for image in images], np.int64).reshape(-1, 2)


def _check(image: np.ndarray | Tensor, shape: Sequence[int], number: int) -> None:
    kind = str(image.dtype).removeprefix("torch.")
    if kind != "uint8" or len(shape) != 3 or shape[2] != 3 or 0 in shape:
        raise DataError(
            f"image {number} is {kind} {tuple(shape)}; views need uint8 (height, width, 3)"
        )


def _alike(extents: np.ndarray) -> Iterator[np.ndarray]:
    """Rows of images of one size, a bounded number at a time."""
    unique, member = np.unique(extents, axis=0, return_inverse=True)
    for number, (height, width) in enumerate(unique):
        rows = np.flatnonzero(member.reshape(-1) == number)
        step = max(1, _CHUNK // int(3 * height * width))
        yield from (rows[start : start + step] for start in range(0, len(rows), step))


def _stack(images: Images, rows: np.ndarray) -> Tensor:
    if isinstance(images, Tensor):
        return images[torch.from_numpy(rows).to(images.device)]
    if isinstance(images, np.ndarray):
        return torch.from_numpy(images[rows])
    return torch.from_numpy(np.stack([images[i] for i in rows]))


# Geometry


def _resample(source: Tensor, table: Table, size: int) -> Tensor:
    """Crop, resize and flip: (N, H, W, 3) uint8 to (N, 3, size, size) in [0, 1]."""
    n, height, width, _ = source.shape
    x = source.to(torch.float32).view(n, height, width * 3)
    x = _combine(x, _taps(table["top"], table["height"], np.zeros(n, bool), size))
    x = x.view(n, size, width, 3).permute(0, 2, 3, 1).reshape(n, width, 3 * size)
    x = _combine(x, _taps(table["left"], table["width"], table["flip"] > 0, size))
    return x.view(n, size, 3, size).permute(0, 2, 3, 1) / 255


def _taps(
    start: np.ndarray, extent: np.ndarray, mirrored: np.ndarray, size: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Antialiased bilinear: each output pixel's taps as source pixels (N, size) and
    weights (N, size), from a triangle of half-width max(1, scale) inside the crop."""
    start, extent = start.astype(np.int64)[:, None], extent.astype(np.int64)[:, None]
    scale = extent / size
    half = np.maximum(scale, 1)
    centre = (np.arange(size) + 0.5) * scale
    centre = np.where(mirrored[:, None], centre[:, ::-1], centre)
    first = np.maximum(np.floor(centre - half + 0.5), 0).astype(np.int64)
    taps = []
    total = np.zeros_like(centre)
    for k in range(int(np.ceil(2 * half.max()))):
        pixel = first + k
        weight = np.maximum(1 - np.abs(pixel + 0.5 - centre) / half, 0) * (pixel < extent)
        total += weight
        taps.append((start + np.minimum(pixel, extent - 1), weight))
    return [(pixel, (weight / total).astype(np.float32)) for pixel, weight in taps]


def _combine(x: Tensor, taps: list[tuple[np.ndarray, np.ndarray]]) -> Tensor:
    """(N, L, R) to (N, size, R): the weighted sum of rows of x, tap by tap."""
    n, length, rest = x.shape
    lines = x.reshape(n * length, rest)
    offset = length * np.arange(n)[:, None]
    out: Tensor | None = None
    for pixel, weight in taps:
        index = torch.from_numpy(pixel + offset).to(x.device)
        line = lines.index_select(0, index.flatten()).view(n, -1, rest)
        line *= torch.from_numpy(weight).to(x.device)[..., None]
        out = line if out is None else out.add_(line)
    assert out is not None
    return out


# Photometry


def _photometry(x: Tensor, table: Table, view: View) -> Tensor:
    """Everything between the geometry and the colour space, in the order of View."""
    for turns in (1, 2, 3):
        _on(x, table["turns"] == turns, lambda x, k=turns: x.rot90(k, (-2, -1)))
    jitter = (
        ("brightness", 1, _brightness),
        ("contrast", 1, _contrast),
        ("saturation", 1, _saturation),
        ("hue", 0, _hue),
    )
    order = ORDERS[table["order"].astype(np.int64)]
    for turn in range(4):
        for number, (name, neutral, operator) in enumerate(jitter):
            chosen = (order[:, turn] == number) & (table[name] != neutral)
            _on(x, chosen, operator, table[name])
    _on(x, table["gray"] > 0, _gray)
    _on(x, table["sigma"] > 0, _blur, _gaussian(table["sigma"], view.blur_kernel))
    _on(x, table["solarize"] > 0, _solarize)
    _on(x, table["equalize"] > 0, _equalize)
    _on(x, table["cutout_x"] >= 0, _cutout, table["cutout_x"], table["cutout_y"])

    def noise(x: Tensor, sd: Tensor, position: Tensor) -> Tensor:
        normal: Tensor = philox.normal(
            table.seed, position.flatten(), Purpose.NOISE, x[0].numel(), table.index
        )
        return (x + sd * normal.view(x.shape)).clamp_(0, 1)

    _on(x, table["noise"] > 0, noise, table["noise"], table.position)
    _on(x, table["sobel"] > 0, _sobel)
    return x


def _on(
    x: Tensor, chosen: np.ndarray, operator: Callable[..., Tensor], *values: np.ndarray
) -> None:
    """x[chosen] = operator(a copy of x[chosen], *values[chosen] as (n, -1, 1, 1))."""
    if not chosen.any():
        return
    rows = np.flatnonzero(chosen)
    index = torch.from_numpy(rows).to(x.device)
    own = [torch.from_numpy(v[rows]).to(x.device).view(len(rows), -1, 1, 1) for v in values]
    x.index_copy_(0, index, operator(x.index_select(0, index), *own).expand(len(rows), 3, -1, -1))


def _luminance(x: Tensor) -> Tensor:
    r, g, b = x[:, 0:1], x[:, 1:2], x[:, 2:3]
    return 0.2989 * r + 0.587 * g + 0.114 * b


def _brightness(x: Tensor, factor: Tensor) -> Tensor:
    return x.mul_(factor).clamp_(0, 1)


def _contrast(x: Tensor, factor: Tensor) -> Tensor:
    total = (_luminance(x) * 2**20).to(torch.int64).sum((1, 2, 3), keepdim=True)
    mean = total / (2**20 * x[0, 0].numel())
    return x.mul_(factor).add_((1 - factor) * mean).clamp_(0, 1)


def _saturation(x: Tensor, factor: Tensor) -> Tensor:
    gray = _luminance(x).mul_(1 - factor)
    return x.mul_(factor).add_(gray).clamp_(0, 1)


def _hue(x: Tensor, shift: Tensor) -> Tensor:
    """Through HSV: hexant = 6 h, and value × saturation is the largest less the least."""
    r, g, b = x[:, 0:1], x[:, 1:2], x[:, 2:3]
    value = torch.maximum(torch.maximum(r, g), b)
    chroma = value - torch.minimum(torch.minimum(r, g), b)
    red, green = value == r, value == g
    offset = torch.where(green, 2.0, 4.0).masked_fill_(red, 0)
    slope = torch.where(red, g - b, torch.where(green, b - r, r - g))
    hexant = slope.div_(chroma.clamp(min=1e-12)).add_(offset).add_(6 * shift)
    for channel, phase in ((r, 5), (g, 3), (b, 1)):
        k = hexant + phase
        k -= (k / 6).floor_().mul_(6)
        k = torch.minimum(k, 4 - k).clamp_(0, 1).mul_(chroma)
        torch.sub(value, k, out=channel)
    return x.clamp_(0, 1)


def _gray(x: Tensor) -> Tensor:
    return _luminance(x)


def _gaussian(sigma: np.ndarray, taps: int) -> np.ndarray:
    """(N, taps) float32 weights; a row of sigma 0 is never used."""
    offset = np.arange(taps) - taps // 2
    density = np.exp(-0.5 * (offset / np.where(sigma > 0, sigma, 1)[:, None]) ** 2)
    weights: np.ndarray = density / density.sum(axis=1, keepdims=True)
    return weights.astype(np.float32)


def _blur(x: Tensor, weights: Tensor) -> Tensor:
    taps = weights.shape[1]
    for dim in (-1, -2):
        padded, side = _reflect(x, dim, taps // 2), x.shape[dim]
        x = torch.zeros_like(x)
        for k in range(taps):
            x += padded.narrow(dim, k, side) * weights[:, k : k + 1]
    return x


def _reflect(x: Tensor, dim: int, radius: int) -> Tensor:
    """Padding by mirrors at both ends, any radius, even around a single pixel."""
    side = x.shape[dim]
    period = max(1, 2 * (side - 1))
    index = torch.arange(-radius, side + radius, device=x.device) % period
    index = torch.minimum(index, period - index)
    before, after = (x.index_select(dim, i) for i in (index[:radius], index[-radius:]))
    return torch.cat([before, x, after], dim)


def _solarize(x: Tensor) -> Tensor:
    # What rounds to 128 of 255 or more.
    return torch.where(x >= 0.5, 1 - x, x)


def _equalize(x: Tensor) -> Tensor:
    """PIL's lookup tables, one per sample and channel."""
    n, channels, height, width = x.shape
    levels = (x * 255 + 0.5).to(torch.int64).view(n * channels, -1)
    counts = torch.zeros(n * channels, 256, dtype=torch.int64, device=x.device)
    counts.scatter_add_(1, levels, torch.ones_like(levels))
    brightest = counts.gather(1, levels.amax(1, keepdim=True))
    step = (height * width - brightest) // 255
    below = counts.cumsum(1) - counts
    lut = ((below + step // 2) // step.clamp(min=1)).clamp_(max=255)
    lut = torch.where(step > 0, lut, torch.arange(256, device=x.device))
    return (lut.gather(1, levels).to(x.dtype) / 255).view(x.shape)


def _cutout(x: Tensor, centre_x: Tensor, centre_y: Tensor) -> Tensor:
    side = x.shape[-1]
    square = max(1, side // 2)
    pixel = torch.arange(side, device=x.device)

    def inside(centre: Tensor) -> Tensor:
        start = (centre * side).floor() - square // 2
        return (pixel >= start) & (pixel < start + square)

    return x.masked_fill_(inside(centre_x) & inside(centre_y).transpose(-1, -2), 0.5)


def _sobel(x: Tensor) -> Tensor:
    """Magnitude of the luminance's change over two pixels, at most 1."""
    side = x.shape[-1]
    padded = _reflect(_reflect(_luminance(x), -1, 1), -2, 1)

    def slope(along: int, across: int) -> Tensor:
        change = padded.narrow(along, 2, side) - padded.narrow(along, 0, side)
        before, here, after = (change.narrow(across, k, side) for k in range(3))
        return (before + 2 * here + after) / 4

    dx, dy = slope(-1, -2), slope(-2, -1)
    return (dx * dx + dy * dy).sqrt_().clamp_(max=1)


# Colour space


def _space(x: Tensor, view: View, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    if view.space == "raw":
        return x
    if view.space == "lab":
        return _lab(x)
    return (x - x.new_tensor(mean).view(-1, 1, 1)) / x.new_tensor(std).view(-1, 1, 1)


def _lab(x: Tensor) -> Tensor:
    """sRGB under D65 to CIE Lab as L / 50 - 1, a / 110, b / 110."""
    linear = torch.where(x > 0.04045, _power((x + 0.055) / 1.055, 2.4), x / 12.92)
    r, g, b = linear.unbind(1)
    t = torch.stack([m[0] * r + m[1] * g + m[2] * b for m in XYZ], dim=1)
    f = torch.where(t > 216 / 24389, _power(t, 1 / 3), (24389 / 27 * t + 16) / 116)
    fx, fy, fz = f.unbind(1)
    lightness = 116 * fy - 16
    return torch.stack([lightness / 50 - 1, 500 * (fx - fy) / 110, 200 * (fy - fz) / 110], dim=1)


def _power(x: Tensor, exponent: float) -> Tensor:
    # Not `**`: its vectorised loop and its remainder round differently.
    return x.clamp(min=1e-12).log_().mul_(exponent).exp_()
