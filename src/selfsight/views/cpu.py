"""The views' executor on the CPU: one compiled pass per view, from bytes to normalised floats."""

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import TypeVar

import numpy as np
import torch
from numba import types
from torch import Tensor

from selfsight.errors import ConfigError, DataError
from selfsight.views import photometry
from selfsight.views.compiled import kernel, loose
from selfsight.views.draw import draw
from selfsight.views.geometry import resample, workspace
from selfsight.views.reference import Images, sizes
from selfsight.views.sample import COLUMNS, ORDERS, Table
from selfsight.views.spec import View

__all__ = ["compile_kernels", "empty", "in_parts", "paint", "render"]

Result = TypeVar("Result")

_ORDERS = ORDERS.astype(np.int64)
(
    _TOP, _LEFT, _HEIGHT, _WIDTH, _FLIP, _TURNS,
    _ORDER, _BRIGHTNESS, _CONTRAST, _SATURATION, _HUE,
    _GRAY, _SIGMA, _SOLARIZE, _EQUALIZE,
    _CUTOUT_X, _CUTOUT_Y, _NOISE, _SOBEL,
) = range(len(COLUMNS))  # fmt: skip
_PER_PIXEL = 4e-9  # seconds on one core
_TASK = 5e-3  # seconds of a thread's task
_WORTH = 1e-3  # seconds that are worth a thread's while


def compile_kernels(tell: Callable[[str], None]) -> None:
    """Before the first view rather than at it, and not in silence when it takes a while."""
    if not (draw.ready() and _paint.ready()):
        tell("compiling the views (once, about ten seconds)")
    draw.compile()
    _paint.compile()


def render(
    images: Images,
    table: Table,
    view: View,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype = torch.float32,
    threads: int = 1,
) -> Tensor:
    """(N, 3, size, size) in channels_last order: row i of the table on image i."""
    extents = sizes(images)
    count = len(extents)
    if count != len(table):
        raise DataError(f"{count} images for {len(table)} rows of a view's table")
    _check_crops(table, extents)
    out = empty(count, view, dtype)

    def task(part: slice) -> None:
        paint(images[part], table.take(part), view, mean=mean, std=std, out=out[part])

    in_parts(task, count, view.size**2, threads)
    return out


def _check_crops(table: Table, extents: np.ndarray) -> None:
    """A kernel reads whatever it is told to."""
    start, extent = table.values[:, :2], table.values[:, 2:4]
    inside = ((start >= 0) & (extent >= 1) & (start + extent <= extents)).all(axis=1)
    if not inside.all():
        row = int(inside.argmin())
        height, width = extents[row].tolist()
        raise DataError(f"row {row} of a view's table crops beyond its image of {height}×{width}")


def empty(count: int, view: View, dtype: torch.dtype) -> Tensor:
    """What `paint` fills."""
    if dtype not in (torch.float32, torch.bfloat16):
        raise ConfigError(f"views on a CPU are float32 or bfloat16, not {dtype}")
    shape = (count, 3, view.size, view.size)
    return torch.empty(shape, dtype=dtype, memory_format=torch.channels_last)


def in_parts(
    task: Callable[[slice], Result], count: int, pixels: float, threads: int
) -> list[Result]:
    """What `task` answers for parts of range(count), in their order: parts of five
    milliseconds' work, or down to one where a thread would be left without.

    pixels: of an image, decoded or painted
    """
    seconds = count * _PER_PIXEL * pixels
    number = max(int(seconds / _TASK), min(threads, int(seconds / _WORTH)), 1)
    number = min(number, max(count, 1))
    if number > threads:
        number -= number % threads
    edges = [count * i // number for i in range(number + 1)]
    parts = [slice(*pair) for pair in pairwise(edges) if pair[0] < pair[1]]
    if min(threads, len(parts)) < 2:
        return [task(part) for part in parts]
    return list(_pool(threads).map(task, parts))


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "selfsight-views")


# A fork takes no threads along.
os.register_at_fork(after_in_child=_pool.cache_clear)


def paint(
    images: Images,
    table: Table,
    view: View,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    out: Tensor,
) -> None:
    """Row i of the table on image i, into out[i], by the calling thread alone.

    out: (N, 3, size, size) in channels_last order, float32 or bfloat16
    """
    flat = out.permute(0, 2, 3, 1).view(len(out), -1)
    single, half = np.empty((0, 0), np.float32), np.empty((0, 0), np.int16)
    if out.dtype == torch.float32:
        single = flat.numpy()
    else:
        half = flat.view(torch.int16).numpy()
    scale, shift = np.ones(3, np.float32), np.zeros(3, np.float32)
    if view.space == "rgb":
        scale /= np.array(std, np.float32)
        shift -= np.array(mean, np.float32) * scale
    shade = (view.space == "lab", scale, shift)
    address = (int(table.seed) & (2**64 - 1), table.index)
    values, position = np.ascontiguousarray(table.values), np.ascontiguousarray(table.position)
    for rows, stack in _stacks(images, view):
        _paint(
            stack.reshape(len(stack), -1), stack.shape[1:3], values[rows], position[rows], *address,
            view.size, view.blur_kernel, *shade, single[rows], half[rows],
        )  # fmt: skip


def _stacks(images: Images, view: View) -> Iterator[tuple[slice, np.ndarray]]:
    """Small images of one size together, others one by one: a call costs microseconds."""
    if not isinstance(images, np.ndarray | Tensor):
        height, width, _ = images[0].shape
        alike = all(image.shape == images[0].shape for image in images)
        if not alike or height * width > view.size**2:
            for i, image in enumerate(images):
                yield slice(i, i + 1), np.ascontiguousarray(image)[None]
            return
        images = np.stack(images)
    yield slice(None), np.ascontiguousarray(images)


@kernel(
    types.Array(types.uint8, 2, "C", readonly=True), types.UniTuple(types.int64, 2),
    types.float32[:, ::1], types.int64[::1], types.uint64, types.int64,
    types.int64, types.int64, types.boolean, types.float32[::1], types.float32[::1],
    types.float32[:, ::1], types.int16[:, ::1],
)  # fmt: skip
def _paint(  # type: ignore[no-untyped-def]
    images, extent, table, position, seed, index, size, taps, lab, scale, shift, single, half
):
    n = size * size
    wide = (size + 31) // 32 * 32
    # Pixels are made up to 32 at a time: what is too many falls behind.
    room = np.empty((4, (wide + taps) * size + 4 * wide), np.float32)
    r, g, b, work = room[0], room[1], room[2], room[3]
    height, width = extent
    spaces = workspace(height, width, size)
    flat = np.empty(3 * n if half.size else 0, np.float32)
    for i in range(len(table)):
        t = table[i]
        crop = (int(t[_TOP]), int(t[_LEFT]), int(t[_HEIGHT]), int(t[_WIDTH]))
        resample(images[i], width, crop, t[_FLIP] > 0, size, (r, g, b), spaces)
        if t[_TURNS] > 0:
            photometry.turn(r, g, b, work, size, int(t[_TURNS]))
        factors = (t[_BRIGHTNESS], t[_CONTRAST], t[_SATURATION], t[_HUE])
        photometry.jitter(r, g, b, n, _ORDERS[int(t[_ORDER])], factors)
        if t[_GRAY] > 0:
            photometry.gray(r, g, b, n)
        if t[_SIGMA] > 0:
            photometry.blur((r, g, b), work, size, taps, t[_SIGMA])
        if t[_SOLARIZE] > 0:
            photometry.solarize(r, g, b, n)
        if t[_EQUALIZE] > 0:
            photometry.equalize(r, g, b, n)
        if t[_CUTOUT_X] >= 0:
            photometry.cutout(r, g, b, size, t[_CUTOUT_X], t[_CUTOUT_Y])
        if t[_NOISE] > 0:
            photometry.noise(r, g, b, n, t[_NOISE], seed, position[i], index)
        if t[_SOBEL] > 0:
            photometry.sobel(r, g, b, work, size)
        if lab:
            photometry.lab(r, g, b, n)
        if half.size:
            _store(r, g, b, n, scale, shift, flat)
            _round(flat.view(np.int32), half[i])
        else:
            _store(r, g, b, n, scale, shift, single[i])


@loose
def _store(r, g, b, n, scale, shift, out):  # type: ignore[no-untyped-def]
    s0, s1, s2 = scale[0], scale[1], scale[2]
    t0, t1, t2 = shift[0], shift[1], shift[2]
    for i in range(n):
        out[3 * i] = r[i] * s0 + t0
        out[3 * i + 1] = g[i] * s1 + t1
        out[3 * i + 2] = b[i] * s2 + t2


@loose
def _round(bits, out):  # type: ignore[no-untyped-def]
    """The upper halves of float32, to the nearest, ties to even."""
    for i in range(len(bits)):
        odd = (bits[i] >> 16) & 1
        out[i] = np.int16((bits[i] + 0x7FFF + odd) >> 16)
