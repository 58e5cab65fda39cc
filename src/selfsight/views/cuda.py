"""The GPU's executor of the views: two Triton kernels for a whole batch of one view.

The first takes each tile by itself, up to the contrast, which needs the mean of its view. The
second takes each view, in steps that need the one before whole. `reference` is the oracle.
"""
# Kernels are written in Triton's language, which has no types.
# mypy: disable-error-code="import-not-found, import-untyped, no-untyped-def, untyped-decorator"

from collections.abc import Sequence

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language import constexpr

from selfsight.errors import DataError
from selfsight.philox import Purpose
from selfsight.views.reference import Images, sizes
from selfsight.views.sample import COLUMNS, ORDERS, Table
from selfsight.views.spec import View

__all__ = ["render"]

# Threads of a program, each with one pixel at a time: of several the compiler makes neighbours,
# and then a warp's reads of taps lie apart.
_BLOCK = constexpr(512)
_LAUNCH = {"num_warps": _BLOCK.value // 32, "enable_fp_fusion": True}

# Columns of a view's row: the table's, the words of _rows, mean and deviation.
_ALL = [constexpr(column) for column in range(len(COLUMNS) + 16)]
_TOP, _LEFT, _HEIGHT, _WIDTH, _FLIP, _TURNS, _, _BRIGHTNESS = _ALL[:8]
_SIGMA, _SOLARIZE, _EQUALIZE, _CUTOUT_X, _CUTOUT_Y, _NOISE, _SOBEL = _ALL[12:19]
_START, _START_HIGH, _STRIDE, _STEPS, _PAUSE, _C1, _C2, _C3, _K0, _K1 = _ALL[19:29]
_MEAN, _STD, _ROW = _ALL[29], _ALL[32], constexpr(len(_ALL))


def render(
    images: Images,
    table: Table,
    view: View,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device | str = "cuda",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """(N, 3, size, size) of `dtype` in channels_last order: row i of the table on image i."""
    extents = sizes(images)
    if len(extents) != len(table):
        raise DataError(f"{len(extents)} images for {len(table)} rows of a view's table")
    n, area, device = len(table), view.size**2, torch.device(device)
    views = torch.empty(n, view.size, view.size, 3, dtype=dtype, device=device).permute(0, 3, 1, 2)
    if n == 0:
        return views
    statistics = (*mean, *std) if view.space == "rgb" else (0, 0, 0, 1, 1, 1)
    rows = _sent(torch.from_numpy(_rows(extents, table, statistics)), device)
    sums = _sent(torch.zeros(n, dtype=torch.int64), device)
    pixels = _bytes(images, extents, device)
    canvas = torch.empty(n, 3 * area, dtype=torch.float32, device=device)
    across = torch.empty_like(canvas) if table["sigma"].any() else canvas
    grid = (n * triton.cdiv(area, _BLOCK.value),)
    constants = (view.size, view.blur_kernel // 2, view.space == "lab")
    with torch.cuda.device(views.get_device()):
        _begin[grid](pixels, rows, canvas, sums, view.size, **_LAUNCH)
        _finish[(n,)](canvas, across, sums, rows, views, *constants, **_LAUNCH)
    return views


def _bytes(images: Images, extents: np.ndarray, device: torch.device) -> Tensor:
    """All images on the device, one after the other; copied only if they are not there."""
    if isinstance(images, Tensor):
        return images.contiguous().to(device, non_blocking=True)
    count = int(3 * extents.prod(axis=1).sum())
    pinned = torch.empty(count, dtype=torch.uint8, pin_memory=device.type == "cuda")
    np.concatenate([image.reshape(-1) for image in images], out=pinned.numpy())
    return pinned.to(device, non_blocking=True)


def _sent(x: Tensor, device: torch.device) -> Tensor:
    return (x.pin_memory() if device.type == "cuda" else x).to(device, non_blocking=True)


def _rows(extents: np.ndarray, table: Table, statistics: tuple[float, ...]) -> np.ndarray:
    """(N, _ROW) float32; words are the bits of integers: an image's first byte, bytes per line,
    turns of jitter and gray (three bits each) and contrast (5: never), the noise's address."""
    start = np.cumsum(3 * extents.prod(axis=1)) - 3 * extents.prod(axis=1)
    order = ORDERS[table["order"].astype(np.int64)]
    words = (
        *(start, start >> 32, 3 * extents[:, 1], order @ 8 ** np.arange(4) + 4 * 8**4),
        np.where(table["contrast"] == 1, 5, order.argsort(axis=1)[:, 1]),
        *(table.position, table.position >> 32, Purpose.NOISE << 16 | table.index),
        *(table.seed & 0xFFFFFFFF, table.seed >> 32 & 0xFFFFFFFF),
    )
    bits = np.stack(np.broadcast_arrays(*words), axis=1).astype(np.uint32).view(np.float32)
    last = np.broadcast_to(np.array(statistics, np.float32), (len(table), 6))
    return np.concatenate([table.values, bits, last], axis=1)


# Pixels are counted line by line: p = y * SIZE + x. Between the steps a view is three planes
# of floats in [0, 1].


@triton.jit
def _begin(pixels, rows, canvas, sums, SIZE: constexpr):
    """One tile: its pixels as the contrast finds them, and the sum of their luminance."""
    TILES: constexpr = (SIZE * SIZE + _BLOCK - 1) // _BLOCK
    program = tl.program_id(0)
    view = (program // TILES).to(tl.int64)
    row = rows + view * _ROW
    p = program % TILES * _BLOCK + tl.arange(0, _BLOCK)
    r, g, b = _resampled(pixels, p, row, SIZE)
    r, g, b = _jittered(r, g, b, row, 0.0, False)
    _store(canvas + view * (3 * SIZE * SIZE), p, r, g, b, SIZE)
    # Integers, as in the reference: the order of their sum cannot matter.
    light = tl.where(p < SIZE * SIZE, _luminance(r, g, b) * 1048576.0, 0.0).to(tl.int64)
    tl.atomic_add(sums + view, tl.sum(light, axis=0), sem="relaxed")


@triton.jit
def _finish(canvas, across, sums, rows, views, SIZE: constexpr, RADIUS: constexpr, LAB: constexpr):
    """One view from the contrast on; `across` is for what is blurred along x."""
    AREA: constexpr = SIZE * SIZE
    view = tl.program_id(0).to(tl.int64)
    row, out = rows + view * _ROW, views + view * (3 * AREA)
    canvas, across = canvas + view * (3 * AREA), across + view * (3 * AREA)
    mean = tl.load(sums + view).to(tl.float32) / (1048576.0 * AREA)
    if tl.load(row + _SIGMA) > 0:
        for start in range(0, AREA, _BLOCK):
            p = start + tl.arange(0, _BLOCK)
            r, g, b = _load(canvas, p, SIZE)
            r, g, b = _jittered(r, g, b, row, mean, True)
            _store(canvas, p, r, g, b, SIZE)
        tl.debug_barrier()
        for start in range(0, AREA, _BLOCK):
            p = start + tl.arange(0, _BLOCK)
            r, g, b = _blurred(canvas, p, row, 1, SIZE, RADIUS)
            _store(across, p, r, g, b, SIZE)
        tl.debug_barrier()
    equalize, sobel = tl.load(row + _EQUALIZE) > 0, tl.load(row + _SOBEL) > 0
    red = tl.zeros((256,), tl.int32)
    green, blue = red, red
    if equalize:
        for start in range(0, AREA, _BLOCK):
            p = start + tl.arange(0, _BLOCK)
            r, g, b = _solarized(canvas, across, p, row, mean, SIZE, RADIUS)
            red += tl.histogram((r * 255 + 0.5).to(tl.int32), 256, mask=p < AREA)
            green += tl.histogram((g * 255 + 0.5).to(tl.int32), 256, mask=p < AREA)
            blue += tl.histogram((b * 255 + 0.5).to(tl.int32), 256, mask=p < AREA)
    red, green, blue = _equal(red, AREA), _equal(green, AREA), _equal(blue, AREA)
    for start in range(0, AREA, _BLOCK):
        p = start + tl.arange(0, _BLOCK)
        r, g, b = _solarized(canvas, across, p, row, mean, SIZE, RADIUS)
        if equalize:
            r = tl.gather(red, (r * 255 + 0.5).to(tl.int32), 0)
            g = tl.gather(green, (g * 255 + 0.5).to(tl.int32), 0)
            b = tl.gather(blue, (b * 255 + 0.5).to(tl.int32), 0)
        r, g, b = _covered(r, g, b, p, row, SIZE)
        if sobel:
            tl.store(canvas + p, _luminance(r, g, b), mask=p < AREA)
        else:
            _put(out, p, r, g, b, row, SIZE, LAB)
    if sobel:
        tl.debug_barrier()
        for start in range(0, AREA, _BLOCK):
            p = start + tl.arange(0, _BLOCK)
            x = _edges(canvas, p, SIZE)
            _put(out, p, x, x, x, row, SIZE, LAB)


@triton.jit
def _word(row, COLUMN: constexpr):
    return tl.load(row + COLUMN).to(tl.uint32, bitcast=True)


@triton.jit
def _load(planes, p, SIZE: constexpr):
    r = tl.load(planes + p, mask=p < SIZE * SIZE, other=0.0)
    g = tl.load(planes + SIZE * SIZE + p, mask=p < SIZE * SIZE, other=0.0)
    return r, g, tl.load(planes + 2 * SIZE * SIZE + p, mask=p < SIZE * SIZE, other=0.0)


@triton.jit
def _store(planes, p, r, g, b, SIZE: constexpr):
    tl.store(planes + p, r, mask=p < SIZE * SIZE)
    tl.store(planes + SIZE * SIZE + p, g, mask=p < SIZE * SIZE)
    tl.store(planes + 2 * SIZE * SIZE + p, b, mask=p < SIZE * SIZE)


@triton.jit
def _put(out, p, r, g, b, row, SIZE: constexpr, LAB: constexpr):
    """The colour space, and the views' own type and order."""
    if LAB:
        r, g, b = _lab(r, g, b)
    for i in tl.static_range(3):
        x = r if i == 0 else (g if i == 1 else b)
        x = (x - tl.load(row + _MEAN + i)) / tl.load(row + _STD + i)
        tl.store(out + 3 * p + i, x.to(out.dtype.element_ty), mask=p < SIZE * SIZE)


@triton.jit
def _resampled(pixels, p, row, SIZE: constexpr):
    """Turns, flip, and the antialiased bilinear resize of the crop. In units of a source
    pixel by 2 SIZE distances are whole, and triangles reach 2 max(extent, SIZE) either way."""
    turns = tl.load(row + _TURNS).to(tl.int32)
    mirrored = ((turns == 1) | (turns == 2)) != (tl.load(row + _FLIP) > 0)
    y = tl.where(turns % 2 == 1, p % SIZE, p // SIZE)
    x = tl.where(turns % 2 == 1, p // SIZE, p % SIZE)
    y, x = tl.where(turns >= 2, SIZE - 1 - y, y), tl.where(mirrored, SIZE - 1 - x, x)
    top, left = tl.load(row + _TOP).to(tl.int32), tl.load(row + _LEFT).to(tl.int32)
    height, width = tl.load(row + _HEIGHT).to(tl.int32), tl.load(row + _WIDTH).to(tl.int32)
    start = _word(row, _START).to(tl.int64) + (_word(row, _START_HIGH).to(tl.int64) << 32)
    stride = _word(row, _STRIDE).to(tl.int64)
    corner = pixels + start + top * stride + 3 * left
    reach_y, reach_x = 2 * tl.maximum(height, SIZE), 2 * tl.maximum(width, SIZE)
    slope_y, slope_x = 1.0 / reach_y, 1.0 / reach_x
    taps_y = tl.minimum(tl.cdiv(reach_y, SIZE), height)
    taps_x = tl.minimum(tl.cdiv(reach_x, SIZE), width)
    centre_y, centre_x = (2 * y + 1) * height, (2 * x + 1) * width
    first_y = tl.minimum(tl.maximum((centre_y - reach_y + SIZE) // (2 * SIZE), 0), height - taps_y)
    first_x = tl.minimum(tl.maximum((centre_x - reach_x + SIZE) // (2 * SIZE), 0), width - taps_x)
    r = tl.zeros_like(p).to(tl.float32)
    g, b, total = r, r, r
    for i in range(taps_y):
        y = first_y + i
        weight_y = tl.maximum(1 - tl.abs((2 * y + 1) * SIZE - centre_y) * slope_y, 0.0)
        for j in range(taps_x):
            x = first_x + j
            weight_x = tl.maximum(1 - tl.abs((2 * x + 1) * SIZE - centre_x) * slope_x, 0.0)
            pixel, weight = corner + y * stride + 3 * x, weight_y * weight_x
            r += weight * tl.load(pixel, mask=p < SIZE * SIZE, other=0).to(tl.float32)
            g += weight * tl.load(pixel + 1, mask=p < SIZE * SIZE, other=0).to(tl.float32)
            b += weight * tl.load(pixel + 2, mask=p < SIZE * SIZE, other=0).to(tl.float32)
            total += weight
    return r / (255 * total), g / (255 * total), b / (255 * total)


@triton.jit
def _luminance(r, g, b):
    return 0.2989 * r + 0.587 * g + 0.114 * b


@triton.jit
def _jittered(r, g, b, row, mean, RESUMED: constexpr):
    """The turns before the contrast's, or those from it on, in the view's own order."""
    pause = _word(row, _PAUSE).to(tl.int32)
    for turn in range(pause if RESUMED else 0, 5 if RESUMED else pause):
        step = (_word(row, _STEPS) >> (3 * turn)) & 7
        factor = tl.load(row + _BRIGHTNESS + step)
        if step != 3:
            # The mix is with black, the mean, or the luminance; gray leaves only that.
            other = tl.where(step == 0, 0.0, tl.where(step == 1, mean, _luminance(r, g, b)))
            factor = tl.where(step == 4, 1 - factor, factor)
            rest = (1 - factor) * other
            r, g = tl.clamp(r * factor + rest, 0.0, 1.0), tl.clamp(g * factor + rest, 0.0, 1.0)
            b = tl.clamp(b * factor + rest, 0.0, 1.0)
        elif factor != 0:
            r, g, b = _hue(r, g, b, factor)
    return r, g, b


@triton.jit
def _hue(r, g, b, shift):
    most, least = tl.maximum(tl.maximum(r, g), b), tl.minimum(tl.minimum(r, g), b)
    chroma = most - least
    slope = tl.where(most == r, g - b, tl.where(most == g, b - r, r - g))
    offset = tl.where(most == r, 0.0, tl.where(most == g, 2.0, 4.0))
    h = slope / tl.maximum(chroma, 1e-12) + offset + 6 * shift
    h -= 6 * tl.floor(h / 6)
    r = least + chroma * tl.clamp(tl.abs(h - 3) - 1, 0.0, 1.0)
    g = least + chroma * tl.clamp(2 - tl.abs(h - 2), 0.0, 1.0)
    return r, g, least + chroma * tl.clamp(2 - tl.abs(h - 4), 0.0, 1.0)


@triton.jit
def _mirror(i, SIZE: constexpr):
    """Reflection at both ends, for what is less than SIZE outside; always an index."""
    return tl.maximum(tl.minimum(tl.abs(i), 2 * (SIZE - 1) - tl.abs(i)), 0)


@triton.jit
def _blurred(planes, p, row, STEP: constexpr, SIZE: constexpr, RADIUS: constexpr):
    """Along x for STEP = 1, along y for STEP = SIZE."""
    sigma = tl.load(row + _SIGMA)
    at = p // STEP % SIZE
    line = p - at * STEP
    r, g, b = _load(planes, p, SIZE)
    total = 1.0
    # Beyond six deviations a weight is below 2e-8.
    for k in range(1, tl.minimum(tl.ceil(6 * sigma).to(tl.int32), RADIUS) + 1):
        weight = tl.exp(-0.5 * (k / sigma) * (k / sigma))
        r0, g0, b0 = _load(planes, line + _mirror(at - k, SIZE) * STEP, SIZE)
        r1, g1, b1 = _load(planes, line + _mirror(at + k, SIZE) * STEP, SIZE)
        r, g, b = r + weight * (r0 + r1), g + weight * (g0 + g1), b + weight * (b0 + b1)
        total += 2 * weight
    return r / total, g / total, b / total


@triton.jit
def _solarized(canvas, across, p, row, mean, SIZE: constexpr, RADIUS: constexpr):
    """Through the rest of the blur, or all that precedes where there is none, and solarize."""
    if tl.load(row + _SIGMA) > 0:
        r, g, b = _blurred(across, p, row, SIZE, SIZE, RADIUS)
    else:
        r, g, b = _load(canvas, p, SIZE)
        r, g, b = _jittered(r, g, b, row, mean, True)
    if tl.load(row + _SOLARIZE) > 0:
        r, g = tl.where(r >= 0.5, 1 - r, r), tl.where(g >= 0.5, 1 - g, g)
        b = tl.where(b >= 0.5, 1 - b, b)
    return r, g, b


@triton.jit
def _equal(counts, AREA: constexpr):
    """PIL's lookup table for a channel's histogram."""
    level = tl.arange(0, 256)
    brightest = tl.max(tl.where(counts > 0, level, 0), axis=0)
    step = (AREA - tl.sum(tl.where(level == brightest, counts, 0), axis=0)) // 255
    below = tl.cumsum(counts, axis=0) - counts
    table = tl.minimum((below + step // 2) // tl.maximum(step, 1), 255)
    return tl.where(step > 0, table, level).to(tl.float32) / 255


@triton.jit
def _covered(r, g, b, p, row, SIZE: constexpr):
    """Cutout and noise."""
    SQUARE: constexpr = SIZE // 2 if SIZE > 1 else 1
    # Where there is no square, it lies outside.
    left = tl.floor(tl.load(row + _CUTOUT_X) * SIZE) - SQUARE // 2
    top = tl.floor(tl.load(row + _CUTOUT_Y) * SIZE) - SQUARE // 2
    y, x = p // SIZE, p % SIZE
    hit = (x >= left) & (x < left + SQUARE) & (y >= top) & (y < top + SQUARE)
    r, g, b = tl.where(hit, 0.5, r), tl.where(hit, 0.5, g), tl.where(hit, 0.5, b)
    deviation = tl.load(row + _NOISE)
    if deviation > 0:
        r = tl.clamp(r + deviation * _normal(row, p, 0, SIZE), 0.0, 1.0)
        g = tl.clamp(g + deviation * _normal(row, p, 1, SIZE), 0.0, 1.0)
        b = tl.clamp(b + deviation * _normal(row, p, 2, SIZE), 0.0, 1.0)
    return r, g, b


@triton.jit
def _edges(light, p, SIZE: constexpr):
    """Magnitude of the change of `light`, the plane of luminance."""
    y, x = p // SIZE, p % SIZE
    up, down = _mirror(y - 1, SIZE) * SIZE, _mirror(y + 1, SIZE) * SIZE
    left, right = _mirror(x - 1, SIZE), _mirror(x + 1, SIZE)
    dx, dy = 0.0, 0.0
    for i in tl.static_range(-1, 2):
        line, column = light + _mirror(y + i, SIZE) * SIZE, light + _mirror(x + i, SIZE)
        dx += (2 - i * i) / 4 * (tl.load(line + right) - tl.load(line + left))
        dy += (2 - i * i) / 4 * (tl.load(column + down) - tl.load(column + up))
    return tl.minimum(tl.sqrt(dx * dx + dy * dy), 1.0)


@triton.jit
def _normal(row, p, CHANNEL: constexpr, SIZE: constexpr):
    """The draws of selfsight.philox.normal, one for each value of the view."""
    a = 1 - _uniform(row, p + CHANNEL * SIZE * SIZE)
    # A cosine by the sine's series, within a quarter turn: tl.cos, for any angle, costs registers.
    x = 6.283185307179586 * (tl.abs(_uniform(row, p + (CHANNEL + 3) * SIZE * SIZE) - 0.5) - 0.25)
    y = x * x
    sine = x * (1 - y / 6 * (1 - y / 20 * (1 - y / 42 * (1 - y / 72 * (1 - y / 110)))))
    return tl.sqrt(-2 * tl.log(a)) * sine


@triton.jit
def _uniform(row, number):
    c0, c1, c2, c3 = (number // 4).to(tl.uint32), _word(row, _C1), _word(row, _C2), _word(row, _C3)
    k0, k1 = _word(row, _K0), _word(row, _K1)
    for _ in tl.static_range(10):
        high0, high1 = tl.umulhi(c0, 0xD2511F53), tl.umulhi(c2, 0xCD9E8D57)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, c2 * 0xCD9E8D57, high0 ^ c3 ^ k1, c0 * 0xD2511F53
        k0, k1 = k0 + 0x9E3779B9, k1 + 0xBB67AE85
    lane = number % 4
    word = tl.where(lane < 2, tl.where(lane == 0, c0, c1), tl.where(lane == 2, c2, c3))
    return (word >> 8).to(tl.float32) * 5.9604644775390625e-08


@triton.jit
def _lab(r, g, b):
    r, g, b = _linear(r), _linear(g), _linear(b)
    x = _root(0.43394994 * r + 0.37620977 * g + 0.18984029 * b)
    y = _root(0.2126729 * r + 0.7151522 * g + 0.0721750 * b)
    z = _root(0.01775658 * r + 0.10946796 * g + 0.87277546 * b)
    return (116 * y - 16) / 50 - 1, 500 * (x - y) / 110, 200 * (y - z) / 110


@triton.jit
def _linear(x):
    return tl.where(x > 0.04045, tl.exp(2.4 * tl.log((x + 0.055) / 1.055)), x / 12.92)


@triton.jit
def _root(t):
    """The cube root, or the line that takes its place near black."""
    root = tl.exp(tl.log(tl.maximum(t, 1e-12)) / 3)
    return tl.where(t > 216 / 24389, root, (24389 / 27 * t + 16) / 116)
