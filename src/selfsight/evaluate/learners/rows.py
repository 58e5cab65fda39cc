"""Features as rows of a tensor, checked."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from selfsight.errors import DataError

__all__ = ["Rows", "labelled", "samples"]

# Arrays or tensors: anything that has rows.
Rows = Any


def samples(x: Rows) -> Tensor:
    """x: (N, D), N ≥ 1, as a detached tensor of at least float32, all of it finite."""
    rows: Tensor = x.detach() if isinstance(x, Tensor) else torch.tensor(np.asarray(x))
    if rows.dtype != torch.float64:
        rows = rows.float()
    if rows.ndim != 2 or 0 in rows.shape:
        raise DataError(f"features are (N, D) with N ≥ 1 and D ≥ 1, got {tuple(rows.shape)}")
    bad = (~rows.isfinite().all(dim=1)).nonzero()[:, 0].tolist()
    if bad:
        shown = ", ".join(map(str, bad[:5])) + (", …" if len(bad) > 5 else "")
        raise DataError(
            f"{len(bad)} of {len(rows)} feature rows are not finite (rows {shown}); "
            "the encoder diverged, or use fp32"
        )
    return rows


def labelled(x: Rows, y: Rows) -> tuple[Tensor, Tensor]:
    """x: (N, D), y: (N,) class numbers from 0, checked."""
    x = samples(x)
    y = torch.as_tensor(y if isinstance(y, Tensor) else np.asarray(y)).to(x.device, torch.int64)
    if y.shape != (len(x),) or int(y.min()) < 0:
        raise DataError(
            f"{len(x)} feature rows need as many class numbers ≥ 0, got shape {tuple(y.shape)}"
        )
    return x, y
