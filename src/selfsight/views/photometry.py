"""What a view does to an image's colours on the CPU: three planes of floats in [0, 1], in place.

The reference's operators in loops that a compiler turns into vector instructions.
"""

import math

import numpy as np

from selfsight.philox import Purpose
from selfsight.views.compiled import load16, loose, plus, store, times
from selfsight.views.draw import uniforms
from selfsight.views.spec import XYZ

__all__ = [
    "blur",
    "cutout",
    "equalize",
    "gray",
    "jitter",
    "lab",
    "noise",
    "sobel",
    "solarize",
    "turn",
]

_ZERO, _HALF, _ONE = np.float32(0), np.float32(0.5), np.float32(1)
_TWO, _FOUR, _SIX, _SIXTH = np.float32(2), np.float32(4), np.float32(6), np.float32(1 / 6)
_RED, _GREEN, _BLUE = np.float32(0.2989), np.float32(0.587), np.float32(0.114)
_NOISE = int(Purpose.NOISE)
_TAU = 2 * math.pi
# Taps lighter than this beside the middle one change no 8-bit value.
_LIGHT = 1e-4
_SIXTEEN = np.uint64(16)
_BLOCK = 2048  # pixels whose floats fit into the nearest cache


@loose
def _clamp(v):  # type: ignore[no-untyped-def]
    return min(max(v, _ZERO), _ONE)


@loose
def _luminance(r, g, b):  # type: ignore[no-untyped-def]
    return _RED * r + _GREEN * g + _BLUE * b


@loose
def turn(r, g, b, work, size, turns):  # type: ignore[no-untyped-def]
    """By quarters, counter-clockwise."""
    for plane in (r, g, b):
        work[: size * size] = plane[: size * size]
        for y in range(size):
            for x in range(size):
                if turns == 1:
                    source = x * size + size - 1 - y
                elif turns == 2:
                    source = (size - 1 - y) * size + size - 1 - x
                else:
                    source = (size - 1 - x) * size + y
                plane[y * size + x] = work[source]


@loose
def jitter(r, g, b, n, order, factors):  # type: ignore[no-untyped-def]
    """Four operators in the sample's own order; a neutral one is left out.

    Block by block while that is in the nearest cache, but for the contrast: it needs the
    mean of what the operators before it leave of the whole image.
    """
    brightness, contrast, saturation, hue = factors
    pause = 4
    for turn in range(4):
        if order[turn] == 1 and contrast != 1:
            pause = turn
    light = _ZERO
    for start in range(0, n, _BLOCK):
        stop = min(start + _BLOCK, n)
        x = (r[start:stop], g[start:stop], b[start:stop])
        _turns(x, order[:pause], brightness, saturation, hue)
        if pause < 4:
            light += _light(x)
    if pause == 4:
        return
    factor = np.float32(contrast)
    ground = (_ONE - factor) * (light / np.float32(n))
    for start in range(0, n, _BLOCK):
        stop = min(start + _BLOCK, n)
        x = (r[start:stop], g[start:stop], b[start:stop])
        _contrast(x, factor, ground)
        _turns(x, order[pause + 1 :], brightness, saturation, hue)


@loose
def _turns(x, order, brightness, saturation, hue):  # type: ignore[no-untyped-def]
    for operator in order:
        if operator == 0 and brightness != 1:
            _brightness(x, np.float32(brightness))
        elif operator == 2 and saturation != 1:
            _saturation(x, np.float32(saturation))
        elif operator == 3 and hue != 0:
            _hue(x, _SIX * np.float32(hue))


@loose
def _light(x):  # type: ignore[no-untyped-def]
    r, g, b = x
    total = _ZERO
    for i in range(len(r)):
        total += _luminance(r[i], g[i], b[i])
    return total


@loose
def _brightness(x, factor):  # type: ignore[no-untyped-def]
    r, g, b = x
    for i in range(len(r)):
        r[i] = _clamp(factor * r[i])
        g[i] = _clamp(factor * g[i])
        b[i] = _clamp(factor * b[i])


@loose
def _contrast(x, factor, ground):  # type: ignore[no-untyped-def]
    r, g, b = x
    for i in range(len(r)):
        r[i] = _clamp(factor * r[i] + ground)
        g[i] = _clamp(factor * g[i] + ground)
        b[i] = _clamp(factor * b[i] + ground)


@loose
def _saturation(x, factor):  # type: ignore[no-untyped-def]
    r, g, b = x
    for i in range(len(r)):
        ground = (_ONE - factor) * _luminance(r[i], g[i], b[i])
        r[i] = _clamp(factor * r[i] + ground)
        g[i] = _clamp(factor * g[i] + ground)
        b[i] = _clamp(factor * b[i] + ground)


@loose
def _hue(x, sixths):  # type: ignore[no-untyped-def]
    r, g, b = x
    for i in range(len(r)):
        red, green, blue = r[i], g[i], b[i]
        value = max(max(red, green), blue)
        chroma = value - min(min(red, green), blue)
        slope = (green - blue) if value == red else (blue - red) if value == green else red - green
        offset = _ZERO if value == red else _TWO if value == green else _FOUR
        hexant = slope / max(chroma, np.float32(1e-12)) + offset + sixths
        r[i] = _channel(value, chroma, hexant + np.float32(5))
        g[i] = _channel(value, chroma, hexant + np.float32(3))
        b[i] = _channel(value, chroma, hexant + np.float32(1))


@loose
def _channel(value, chroma, k):  # type: ignore[no-untyped-def]
    k -= np.floor(k * _SIXTH) * _SIX
    return value - chroma * _clamp(min(k, _FOUR - k))


@loose
def gray(r, g, b, n):  # type: ignore[no-untyped-def]
    for i in range(n):
        r[i] = g[i] = b[i] = _luminance(r[i], g[i], b[i])


@loose
def blur(planes, work, size, taps, sigma):  # type: ignore[no-untyped-def]
    """Gaussian, along columns and then along rows, mirrored at the edges.

    work: room for `size` rows with margins of half the taps, a multiple of 32 between them
    """
    weight = np.empty(taps // 2 + 1, np.float32)
    radius = _gaussian(weight, sigma)
    pitch = (size + 31) // 32 * 32 + 2 * radius
    mirror = np.empty(size + 2 * radius, np.int64)
    for i in range(len(mirror)):
        mirror[i] = _mirrored(i - radius, size)
    for plane in planes:
        for y in range(size):
            for x in range(0, size, 32):  # 32 pixels share each turn's places and weight
                at = np.uint64(y * size + x)
                left = times(load16(plane, at), weight[0])
                right = times(load16(plane, at + _SIXTEEN), weight[0])
                for k in range(1, radius + 1):
                    above = np.uint64(mirror[radius + y - k] * size + x)
                    below = np.uint64(mirror[radius + y + k] * size + x)
                    left = plus(left, _pair(plane, above, below, weight[k]))
                    right = plus(right, _pair(plane, above + _SIXTEEN, below + _SIXTEEN, weight[k]))
                store(work, np.uint64(y * pitch + radius + x), left)
                store(work, np.uint64(y * pitch + radius + x) + _SIXTEEN, right)
            row = work[y * pitch : (y + 1) * pitch]
            for k in range(radius):
                row[k] = row[radius + mirror[k]]
                row[radius + size + k] = row[radius + mirror[radius + size + k]]
        for y in range(size):
            for x in range(0, size, 32):
                at = np.uint64(y * pitch + radius + x)
                left = times(load16(work, at), weight[0])
                right = times(load16(work, at + _SIXTEEN), weight[0])
                for k in range(1, radius + 1):
                    before, after = at - np.uint64(k), at + np.uint64(k)
                    left = plus(left, _pair(work, before, after, weight[k]))
                    right = plus(right, _pair(work, before + _SIXTEEN, after + _SIXTEEN, weight[k]))
                store(plane, np.uint64(y * size + x), left)
                store(plane, np.uint64(y * size + x) + _SIXTEEN, right)


@loose
def _pair(line, one, other, weight):  # type: ignore[no-untyped-def]
    return times(plus(load16(line, one), load16(line, other)), weight)


@loose
def _gaussian(weight, sigma):  # type: ignore[no-untyped-def]
    """Fills the weights of the middle tap and of the pairs around it; how many pairs."""
    total, radius = 0.0, 0
    for k in range(len(weight)):
        density = math.exp(-0.5 * (k / sigma) ** 2)
        if density < _LIGHT:
            break
        weight[k] = density
        total += density if k == 0 else 2 * density
        radius = k
    for k in range(radius + 1):
        weight[k] /= np.float32(total)
    return radius


@loose
def _mirrored(i, size):  # type: ignore[no-untyped-def]
    if size == 1:
        return 0
    i %= 2 * (size - 1)
    return min(i, 2 * (size - 1) - i)


@loose
def solarize(r, g, b, n):  # type: ignore[no-untyped-def]
    for plane in (r, g, b):
        for i in range(n):
            v = plane[i]
            plane[i] = _ONE - v if v >= _HALF else v


@loose
def equalize(r, g, b, n):  # type: ignore[no-untyped-def]
    """PIL's lookup table for each channel."""
    counts = np.empty(256, np.int64)
    table = np.empty(256, np.float32)
    for plane in (r, g, b):
        counts[:] = 0
        brightest = 0
        for i in range(n):
            level = int(plane[i] * np.float32(255) + _HALF)
            counts[level] += 1
            brightest = max(brightest, level)
        step = (n - counts[brightest]) // 255
        if step == 0:
            # Only rounded to the 256 levels.
            for level in range(256):
                table[level] = np.float32(level) / np.float32(255)
        else:
            below = 0
            for level in range(256):
                table[level] = np.float32(min((below + step // 2) // step, 255)) / np.float32(255)
                below += counts[level]
        for i in range(n):
            plane[i] = table[int(plane[i] * np.float32(255) + _HALF)]


@loose
def cutout(r, g, b, size, centre_x, centre_y):  # type: ignore[no-untyped-def]
    square = max(1, size // 2)
    left = math.floor(np.float32(centre_x) * np.float32(size)) - square // 2
    top = math.floor(np.float32(centre_y) * np.float32(size)) - square // 2
    for plane in (r, g, b):
        for y in range(max(top, 0), min(top + square, size)):
            for x in range(max(left, 0), min(left + square, size)):
                plane[y * size + x] = _HALF


@loose
def noise(r, g, b, n, sd, seed, position, view):  # type: ignore[no-untyped-def]
    """The reference's normals, in the order of the planes."""
    u = np.empty(4 * -(-6 * n // 4), np.float32)
    uniforms(seed, position, _NOISE, view, u)
    start = 0
    for plane in (r, g, b):
        for i in range(n):
            size = math.sqrt(-2 * math.log(_ONE - u[start + i]))
            angle = _TAU * u[3 * n + start + i]
            plane[i] = _clamp(plane[i] + sd * np.float32(size * math.cos(angle)))
        start += n


@loose
def sobel(r, g, b, work, size):  # type: ignore[no-untyped-def]
    """Magnitude of the luminance's change over two pixels, at most 1."""
    for i in range(size * size):
        work[i] = _luminance(r[i], g[i], b[i])
    for y in range(size):
        up, here = _mirrored(y - 1, size) * size, y * size
        down = _mirrored(y + 1, size) * size
        for x in range(size):
            left, right = _mirrored(x - 1, size), _mirrored(x + 1, size)
            dx = (work[up + right] - work[up + left] + work[down + right] - work[down + left]
                  + _TWO * (work[here + right] - work[here + left])) / _FOUR  # fmt: skip
            dy = (work[down + left] - work[up + left] + work[down + right] - work[up + right]
                  + _TWO * (work[down + x] - work[up + x])) / _FOUR  # fmt: skip
            edge = min(np.float32(math.sqrt(dx * dx + dy * dy)), _ONE)
            r[here + x] = g[here + x] = b[here + x] = edge


@loose
def lab(r, g, b, n):  # type: ignore[no-untyped-def]
    """sRGB under D65 to CIE Lab as L / 50 - 1, a / 110, b / 110."""
    for i in range(n):
        red, green, blue = _linear(r[i]), _linear(g[i]), _linear(b[i])
        fx = _root(XYZ[0][0] * red + XYZ[0][1] * green + XYZ[0][2] * blue)
        fy = _root(XYZ[1][0] * red + XYZ[1][1] * green + XYZ[1][2] * blue)
        fz = _root(XYZ[2][0] * red + XYZ[2][1] * green + XYZ[2][2] * blue)
        r[i] = (116 * fy - 16) / 50 - 1
        g[i] = 500 * (fx - fy) / 110
        b[i] = 200 * (fy - fz) / 110


@loose
def _linear(x):  # type: ignore[no-untyped-def]
    return ((x + 0.055) / 1.055) ** 2.4 if x > 0.04045 else x / 12.92


@loose
def _root(t):  # type: ignore[no-untyped-def]
    return t ** (1 / 3) if t > 216 / 24389 else (24389 / 27 * t + 16) / 116
