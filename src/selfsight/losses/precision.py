"""Losses run in at least float32, whatever autocast says; float64 passes through."""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

__all__ = ["full_precision"]

P = ParamSpec("P")
R = TypeVar("R")


def _lifted(value: Any) -> Any:
    if isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16):
        return value.float()
    return value


def full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Lift half-precision tensor arguments and switch autocast off inside.

    Casting alone would be undone by autocast at the next matrix product.
    """

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        values = [*args, *kwargs.values()]
        device = next((v.device.type for v in values if isinstance(v, Tensor)), "cpu")
        with torch.autocast(device, enabled=False):
            return function(
                *(_lifted(v) for v in args),
                **{name: _lifted(v) for name, v in kwargs.items()},
            )

    return wrapper
