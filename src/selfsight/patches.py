"""Pieces of images, as pure functions of a batch: an overlapping grid, a shuffled jigsaw."""

import math

import torch
from torch import Tensor

from selfsight.errors import ConfigError

__all__ = ["PIECES", "grid", "jigsaw", "piece"]

PIECES = 9  # of the usual jigsaw, 3 × 3


def grid(x: Tensor, size: int, stride: int) -> Tensor:
    """(N·T, C, size, size): the squares that start every `stride` pixels of x: (N, C, H, W).

    An image's squares follow one another, row by row; what no square reaches is left out.
    """
    if size > min(x.shape[2:]):
        height, width = x.shape[2:]
        raise ConfigError(f"patches of {size} px do not fit into {height} × {width}; raise --size")
    squares = x.unfold(2, size, stride).unfold(3, size, stride)  # N, C, rows, columns, size, size
    return squares.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)


def piece(side: int, multiple: int = 1, pieces: int = PIECES) -> int:
    """Side of a jigsaw's pieces: about 64/85 of a cell of the image, and a `multiple`."""
    cell = side // math.isqrt(pieces)
    return min(cell // multiple, max(1, round(cell * 64 / 85 / multiple))) * multiple


def jigsaw(x: Tensor, u: Tensor, multiple: int = 1) -> Tensor:
    """(N·T, C, p, p): one square from each of a √T × √T division of x: (N, C, H, W), an image's
    squares in a random order.

    u: (N, 3, T) uniforms, for the place in the cell, down and across, and for the order
    multiple: p, which `piece` tells, is a multiple of it
    """
    n, _, height, width = x.shape
    rows = math.isqrt(u.shape[2])
    cell = min(height, width) // rows
    if cell < multiple:
        raise ConfigError(
            f"{rows} × {rows} pieces of {height} × {width} px are smaller than the encoder's "
            f"patch of {multiple}; raise --size"
        )
    u = u.to(x.device)
    size = piece(min(height, width), multiple, rows**2)
    corner = cell * torch.arange(rows, device=x.device)
    slack = (u[:, :2] * (cell - size + 1)).long()
    order = u[:, 2].argsort(1)
    top = (corner.repeat_interleave(rows) + slack[:, 0]).gather(1, order)
    left = (corner.repeat(rows) + slack[:, 1]).gather(1, order)
    side = torch.arange(size, device=x.device)
    down = (top[..., None] + side)[..., :, None]
    across = (left[..., None] + side)[..., None, :]
    image = torch.arange(n, device=x.device)[:, None, None, None]
    return x[image, :, down, across].movedim(4, 2).flatten(0, 1)
