"""Losses whose logits are too many to be held at once."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

__all__ = ["in_chunks"]

# Logits held at once: 8 MiB in float32.
_CHUNK = 1 << 21


def in_chunks(function: Callable[..., Tensor], *rows: Tensor, width: int) -> Tensor:
    """function(*rows), which makes one number of each row, a few rows at a time.

    width: logits that a row becomes on the way. They are not kept for the backward pass, which
    forms them anew.
    """
    size = max(1, _CHUNK // width)
    if len(rows[0]) <= size:
        return function(*rows)
    parts = zip(*(torch.split(x, size) for x in rows), strict=True)
    return torch.cat([
        checkpoint(function, *part, use_reentrant=False, preserve_rng_state=False)
        for part in parts
    ])  # fmt: skip
