"""Arguments by argparse, its complaints as one line that says what to do."""

import argparse
import re
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, final

from selfsight.errors import ConfigError, suggestion

__all__ = ["Parser", "names", "number", "opening", "whole"]

_NUMBER = re.compile(r"-(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$")


@final
class Parser(argparse.ArgumentParser):
    """An argument parser that raises ConfigError instead of leaving.

    After `take_parts("method")`, `--method.NAME VALUE` and `--method.NAME=VALUE` are
    collected, unread, as `method.NAME` in `parts`: which exist is known once the method is.
    `take_parts()` does so with whatever stands before the dot.
    """

    def __init__(self, *, prog: str, description: str) -> None:
        super().__init__(prog=prog, description=description, add_help=False, allow_abbrev=False)
        self.add_argument("-h", "--help", action="store_true", help="show this and leave")
        self._part = re.compile(r"(?!)")

    def take_parts(self, *owners: str) -> None:
        self._part = re.compile(rf"--({'|'.join(owners) or '[a-z][a-z0-9_]*'})\.")

    def take_data(self, name: str = "data") -> None:
        self.add_argument(
            name, metavar="DATA", help="folder, list, shards, .npz, named set, or synthetic"
        )
        self.add_argument("--download", action="store_true", help="allow fetching a named set")
        self.add_argument("--cache", metavar="DIR", help="where checked lists are kept")
        self.add_argument(
            "--follow-links", action="store_true", help="take images that links lead to elsewhere"
        )

    def error(self, message: str) -> NoReturn:
        message = message.removeprefix("argument ").replace("with argument ", "with ")
        missing = "the following arguments are required: "
        if message.startswith(missing):
            message = f"missing {message.removeprefix(missing)}; see {self.prog} --help"
        raise ConfigError(message)

    def read(self, words: Sequence[str]) -> argparse.Namespace | None:
        """The arguments, or None when help was asked for and given."""
        end = words.index("--") if "--" in words else len(words)
        # A wrong option is named before argparse may ask for what is missing, and help
        # is given whatever else is wrong.
        if {"-h", "--help"} & set(words[:end]):
            self.print_help()
            return None
        parts, rest = self._parts(words[:end])
        for word in rest:
            if word.startswith("-") and len(word) > 1 and not _NUMBER.match(word):
                name = word.partition("=")[0]
                if name not in self.flags:
                    raise ConfigError(f"unknown option {name}{suggestion(name, self.flags)}")
        arguments, extra = self.parse_known_args([*rest, *words[end:]])
        if extra:
            raise ConfigError(f"unexpected argument {extra[0]}; see {self.prog} --help")
        arguments.parts = parts
        return arguments

    @property
    def arguments(self) -> list[argparse.Action]:
        """Everything the command takes, in the order of its help."""
        return list(self._actions)

    @property
    def flags(self) -> dict[str, argparse.Action]:
        """Every option by its spelling."""
        return dict(self._option_string_actions)

    def _parts(self, words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
        parts: dict[str, str] = {}
        rest: list[str] = []
        queue = list(words)
        while queue:
            word = queue.pop(0)
            if not self._part.match(word):
                rest.append(word)
                continue
            name, equals, value = word.removeprefix("--").partition("=")
            if not equals:
                if not queue or queue[0].startswith("--"):
                    raise ConfigError(f"--{name}: expected a value")
                value = queue.pop(0)
            parts[name] = value
        return parts, rest


def opening(arguments: argparse.Namespace) -> dict[str, Any]:
    """How to open the DATA of `take_data`."""
    return {name: getattr(arguments, name) for name in ("download", "cache", "follow_links")}


def whole(least: int) -> Callable[[str], int]:
    """Reads a whole number ≥ `least`."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"expected a whole number ≥ {least}, got {text}")
        return value

    return read


def number(least: float, most: float = float("inf")) -> Callable[[str], float]:
    """Reads a finite number in [least, most]."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not (least <= value <= most and value < float("inf")):
            limits = f"≥ {least:g}" if most == float("inf") else f"in [{least:g}, {most:g}]"
            raise argparse.ArgumentTypeError(f"expected a number {limits}, got {text}")
        return value

    return read


def names(text: str) -> tuple[str, ...]:
    """Reads `a,b` as names."""
    parts: list[Any] = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise argparse.ArgumentTypeError(f"expected names like knn,linear, got {text}")
    return tuple(parts)
