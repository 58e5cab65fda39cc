"""Text to values by annotation: a method's constructor is its command line."""

import math
import types
import typing
from collections.abc import Mapping, Sequence
from inspect import Parameter
from typing import Any

from selfsight.errors import ConfigError, suggestion
from selfsight.ranges import WORDS

__all__ = ["annotation", "expects", "read", "shown", "typed"]


def typed(
    owner: str, parts: Mapping[str, str], known: Mapping[str, Parameter], whose: str
) -> dict[str, Any]:
    """The parts a user wrote as `--OWNER.NAME VALUE`, typed by the owner's constructor.

    whose: what the owner is, for the message
    """
    values: dict[str, Any] = {}
    for part, text in parts.items():
        of, _, name = part.partition(".")
        field = name.replace("-", "_")
        if of != owner:
            continue
        if field not in known:
            near = suggestion(field, known) or f"; known: {', '.join(known)}"
            raise ConfigError(f"unknown option --{part} for {whose}{near}")
        kind = annotation(known[field])
        try:
            values[field] = read(text, kind)
        except ValueError:
            raise ConfigError(f"--{part}: expected {expects(kind)}, got {text}") from None
    return values


def annotation(parameter: Parameter) -> Any:
    """A parameter's annotation, or the type of its default where it has none."""
    if parameter.annotation is not Parameter.empty:
        return parameter.annotation
    return str if parameter.default in (Parameter.empty, None) else type(parameter.default)


def read(text: str, kind: Any) -> Any:
    """`text` as a value of type `kind`; ValueError when it is none."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _read_union(text, inner)
    if origin is typing.Annotated:  # its range is checked where the value is used
        return read(text, inner[0])
    if origin is typing.Literal:
        return {str(choice): choice for choice in inner}[text] if text in map(str, inner) else _no()
    if origin in (tuple, list, Sequence):
        return _read_items(text, origin, inner)
    if kind is bool:
        return {"true": True, "false": False}[text.lower()] if _is_bool(text) else _no()
    if kind is int:
        return int(text)
    if kind is float:
        value = float(text)
        return value if math.isfinite(value) else _no()
    return text if kind in (str, Any) else _no()


def expects(kind: Any) -> str:
    """What to write for a value of type `kind`."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        parts = [expects(part) for part in inner]
        return (", or " if any("," in part for part in parts) else " or ").join(parts)
    if origin is typing.Annotated:
        return ", ".join([expects(inner[0]), *map(str, inner[1:])])
    if origin is typing.Literal:
        return " or ".join(map(str, inner))
    if origin in (tuple, list, Sequence):
        ends = Ellipsis in inner or origin is not tuple
        example = "4,2" if ends else ",".join("420195"[: len(inner)])
        what = "names" if inner[:1] == (str,) else "numbers"
        return f"{what} like {'a,b' if what == 'names' else example}"
    return WORDS.get(kind, "none" if kind is type(None) else "what only Python can pass")


def shown(value: Any) -> str:
    """`value` the way `read` takes it."""
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, tuple | list):
        return ",".join(map(shown, value))
    return str(value)


def _read_union(text: str, kinds: Sequence[Any]) -> Any:
    # Text takes anything, so it is asked last.
    for kind in sorted(kinds, key=lambda kind: kind is str):
        if kind is type(None):
            if text.lower() == "none":
                return None
            continue
        try:
            return read(text, kind)
        except ValueError:
            continue
    return _no()


def _read_items(text: str, origin: Any, inner: Sequence[Any]) -> Any:
    parts = [part.strip() for part in text.strip("()[] ").rstrip(",").split(",")]
    if origin is not tuple or Ellipsis in inner:
        kinds = [inner[0]] * len(parts)
    elif len(inner) == len(parts):
        kinds = list(inner)
    else:
        return _no()
    items = [read(part, kind) for part, kind in zip(parts, kinds, strict=True)]
    return items if origin is list else tuple(items)


def _is_bool(text: str) -> bool:
    return text.lower() in ("true", "false")


def _no() -> typing.NoReturn:
    raise ValueError
