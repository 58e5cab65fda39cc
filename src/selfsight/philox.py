"""Philox4x32-10: random numbers that have an address instead of a history.

Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3". A draw is a pure
function of (seed, position, view, purpose, number), so it depends on nothing that ran
before it: not on world size, threads, or where a run was interrupted.

`position` is step × global batch + slot for what is drawn per sample and the step (or
epoch) for what is drawn per batch (or epoch).
"""

import enum
from typing import Any

import numpy as np
import torch

__all__ = [
    "Purpose",
    "beta",
    "integers",
    "normal",
    "permutation",
    "philox4x32",
    "seed_for",
    "uniform",
]

_MASK = 0xFFFFFFFF
_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85


class Purpose(enum.IntEnum):
    """What a draw is for. Numbers are part of the format: never renumber, only add."""

    ORDER = 0
    VIEW = 1
    NOISE = 2
    MASK = 3
    INIT = 4
    MEMORY = 5
    KMEANS = 6
    DROPOUT = 7
    SPLIT = 8
    SYNTHETIC = 9
    BOOTSTRAP = 10
    SUBSET = 11
    SHUFFLE = 12
    NEGATIVES = 13
    MIX = 14
    PATCH = 15


def philox4x32(c0: Any, c1: Any, c2: Any, c3: Any, k0: Any, k1: Any) -> tuple[Any, Any, Any, Any]:
    """Four 32-bit words from a 128-bit counter and a 64-bit key, all held in 64-bit integers.

    The arithmetic is the same for int64 arrays of numpy and torch and for Python's
    integers: a product that wraps keeps its low 64 bits, and the mask after the shift
    drops the copied sign.
    """
    for _ in range(10):
        p0, p1 = _M0 * c0, _M1 * c2
        c0, c1, c2, c3 = (
            ((p1 >> 32) & _MASK) ^ c1 ^ k0,
            p1 & _MASK,
            ((p0 >> 32) & _MASK) ^ c3 ^ k1,
            p0 & _MASK,
        )
        k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
    return c0, c1, c2, c3


def integers(seed: int, position: Any, purpose: Purpose, count: int, view: int = 0) -> Any:
    """`count` 32-bit words for each position: shape position.shape + (count,), int64.

    position: an integer, a numpy array or a torch tensor; the answer is of its kind.
    """
    blocks = -(-count // 4)
    where: Any
    if isinstance(position, torch.Tensor):
        where = position.to(torch.int64)[..., None]
        block: Any = torch.arange(blocks, dtype=torch.int64, device=position.device)
        stack: Any = torch.stack
    else:
        where = np.asarray(position, np.int64)[..., None]
        block, stack = np.arange(blocks, dtype=np.int64), np.stack
    zero = 0 * (where + block)
    words = philox4x32(
        zero + block,
        zero + (where & _MASK),
        zero + ((where >> 32) & _MASK),
        zero + ((int(purpose) << 16) | view),
        seed & _MASK,
        (seed >> 32) & _MASK,
    )
    return stack(words, -1).reshape(*where.shape[:-1], 4 * blocks)[..., :count]


def uniform(seed: int, position: Any, purpose: Purpose, count: int, view: int = 0) -> Any:
    """float32 in [0, 1) with 24 random bits: the same numbers from numpy and torch."""
    words = integers(seed, position, purpose, count, view) >> 8
    if isinstance(words, torch.Tensor):
        return words.to(torch.float32) * 2.0**-24
    return words.astype(np.float32) * np.float32(2.0**-24)


def normal(seed: int, position: Any, purpose: Purpose, count: int, view: int = 0) -> Any:
    """float32 standard normals by Box and Muller's transform; two uniforms each."""
    u = uniform(seed, position, purpose, 2 * count, view)
    a, b = 1 - u[..., :count], 2 * np.pi * u[..., count:]
    if isinstance(u, torch.Tensor):
        return (-2 * a.log()).sqrt() * b.cos()
    return (np.sqrt(-2 * np.log(a)) * np.cos(b)).astype(np.float32)


def beta(
    seed: int, position: Any, purpose: Purpose, count: int, alpha: float, view: int = 0
) -> Any:
    """float32 draws of the symmetric law Beta(alpha, alpha), alpha > 1/2; two uniforms each.

    Exact, by Ulrich's transform: of a point in the unit disc at radius √(1 − u^{2/(2α−1)}) and
    any angle, one coordinate, brought to [0, 1] (Devroye 1986, chapter IX).
    """
    u = uniform(seed, position, purpose, 2 * count, view)
    radius = (1 - (1 - u[..., :count]) ** (2 / (2 * alpha - 1))) ** 0.5
    angle = 2 * np.pi * u[..., count:]
    cosine = angle.cos() if isinstance(u, torch.Tensor) else np.cos(angle)
    return (1 + radius * cosine) / 2


def permutation(seed: int, position: int, purpose: Purpose, n: int) -> np.ndarray:
    """A permutation of range(n), n < 2³²: the order of n draws of 62 bits."""
    words = integers(seed, (position << 32) + np.arange(n, dtype=np.int64), purpose, 2)
    return np.argsort((words[:, 0] << 30) ^ (words[:, 1] >> 2), kind="stable")


def seed_for(seed: int, position: int, purpose: Purpose, view: int = 0) -> int:
    """A 62-bit seed for somebody else's generator."""
    high, low = (int(word) for word in integers(seed, position, purpose, 2, view))
    return (high << 30) ^ (low >> 2)
