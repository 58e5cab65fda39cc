"""Losses whose logits are too many to be held at once."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

__all__ = ["at_once", "in_chunks"]

# Logits held at once: 8 MiB in float32, which stay in a CPU's last cache.
_CHUNK = 1 << 21
# Fewer rows than this make a product of matrices slow: with very many candidates more is held.
_ROWS = 32


def at_once(width: int) -> int:
    """How many rows of so many logits are held at once."""
    return max(_ROWS, _CHUNK // width)


def in_chunks(function: Callable[..., Tensor], *rows: Tensor, width: int) -> Tensor:
    """function(*rows), which makes one number of each row, a few rows at a time.

    width: logits that a row becomes on the way. They are not kept for the backward pass, which
    forms them anew.
    """
    size = at_once(width)
    if len(rows[0]) <= size:
        return function(*rows)
    parts = zip(*(torch.split(x, size) for x in rows), strict=True)
    return torch.cat([
        checkpoint(function, *part, use_reentrant=False, preserve_rng_state=False)
        for part in parts
    ])  # fmt: skip
