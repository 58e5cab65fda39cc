"""What a user set for a run: a JSON file's values under the flags' values."""

import argparse
import json
from pathlib import Path
from typing import Any

from selfsight.cli.parser import Parser
from selfsight.cli.values import shown
from selfsight.errors import ConfigError, suggestion

__all__ = ["from_file", "merged"]

# These say how to run the command, not what the run is.
_NOT_SETTINGS = {"help", "config", "print_config", "json"}


def merged(parser: Parser, arguments: argparse.Namespace) -> tuple[dict[str, Any], dict[str, str]]:
    """The values given, by name, and the parts (method.x, view.x) as text; flags win over the
    file."""
    flags = {
        action.dest: getattr(arguments, action.dest)
        for action in _settings(parser).values()
        if getattr(arguments, action.dest) is not None
    }
    if arguments.config is None:
        return flags, dict(arguments.parts)
    values, parts = from_file(parser, arguments.config)
    # One length of training replaces the other.
    for given, other in (("epochs", "time"), ("time", "epochs")):
        if given in flags:
            values.pop(other, None)
    return {**values, **flags}, {**parts, **arguments.parts}


def from_file(parser: Parser, path: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The values of a JSON file that uses the flags' names, and its parts."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f'{path} must hold one object, like {{"epochs": 100}}')
    known = _settings(parser)
    values: dict[str, Any] = {}
    parts: dict[str, str] = {}
    for key, value in content.items():
        name = key.replace("_", "-")
        if "." in key:
            if isinstance(value, dict):
                raise ConfigError(f"{path}: {key} cannot hold an object")
            parts[key] = shown(value)
        elif name not in known:
            raise ConfigError(f"{path}: unknown key {key}{suggestion(name, known)}")
        elif value is not None:
            values[known[name].dest] = _value(known[name], value, f"{path}: {key}")
    return values, parts


def _settings(parser: Parser) -> dict[str, argparse.Action]:
    """What a file may set, by the names a user types."""
    return {
        name: action
        for action in parser.arguments
        if action.dest not in _NOT_SETTINGS
        for name in [flag.removeprefix("--") for flag in action.option_strings] or [action.dest]
    }


def _value(action: argparse.Action, value: Any, where: str) -> Any:
    if action.nargs in (0, "?") and action.const is True and isinstance(value, bool):
        return value
    if action.nargs == 0:
        raise ConfigError(f"{where}: expected true or false")
    if isinstance(value, bool | list | dict) or (
        action.type is None and not isinstance(value, str)
    ):
        raise ConfigError(f"{where}: expected {'text' if action.type is None else 'a number'}")
    if not callable(action.type):
        return value
    try:
        return action.type(shown(value))
    except argparse.ArgumentTypeError as error:
        raise ConfigError(f"{where}: {error}") from None
