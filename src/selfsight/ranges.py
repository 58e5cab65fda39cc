"""What values options may have, said in the annotations of the constructor that takes them."""

import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from inspect import Parameter
from typing import Annotated, Any

from selfsight.errors import ConfigError, suggestion

__all__ = [
    "WORDS",
    "Count",
    "Part",
    "Positive",
    "Range",
    "Several",
    "Share",
    "Weight",
    "Whole",
    "check",
    "fault",
]


@dataclass(frozen=True)
class Range:
    """Numbers from `low`, itself left out if `above`, to `high`."""

    low: float
    high: float = math.inf
    above: bool = False

    def __contains__(self, value: float) -> bool:
        return (value > self.low if self.above else value >= self.low) and value <= self.high

    def __str__(self) -> str:
        if self.high < math.inf:
            start = f"above {self.low:g}, up" if self.above else f"from {self.low:g}"
            return f"{start} to {self.high:g}"
        return f"above {self.low:g}" if self.above else f"{self.low:g} or more"


Whole = Annotated[int, Range(0)]
Count = Annotated[int, Range(1)]
Several = Annotated[int, Range(2)]
Weight = Annotated[float, Range(0)]
Positive = Annotated[float, Range(0, above=True)]
Share = Annotated[float, Range(0, 1)]
Part = Annotated[float, Range(0, 0.99)]  # of a whole of which something must be left

WORDS: dict[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
}


def fault(value: Any, kind: Any) -> str:
    """What `value` should have been, if it is none of `kind`; else nothing."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        wrong = fault(value, inner[0])
        return wrong or next((str(r) for r in inner[1:] if value not in r), "")
    if origin in (typing.Union, types.UnionType):
        wrongs = [fault(value, part) for part in inner]
        return "" if "" in wrongs else " or ".join(wrongs)
    if origin is typing.Literal:
        if value in inner:
            return ""
        return f"{' or '.join(map(str, inner))}{suggestion(str(value), map(str, inner))}"
    if kind is type(None):
        return "" if value is None else "none"
    number = isinstance(value, int | float) and not isinstance(value, bool)
    fits = {
        bool: isinstance(value, bool),
        int: number and isinstance(value, int),
        float: number and math.isfinite(value),
        str: isinstance(value, str),
    }
    return "" if fits.get(kind, True) else WORDS[kind]


def check(
    chosen: Mapping[str, Any], known: Mapping[str, Parameter], owner: str, whose: str
) -> None:
    """Refuse options that `whose` constructor does not take, and values outside their ranges.

    owner: what stands before the dot on the command line
    """
    for option, value in chosen.items():
        if option not in known:
            hint = suggestion(option, known)
            raise ConfigError(f"unknown option {option} of {whose}{hint}")
        wanted = fault(value, known[option].annotation)
        if wanted:
            raise ConfigError(f"--{owner}.{option} {value} of {whose}: must be {wanted}")
