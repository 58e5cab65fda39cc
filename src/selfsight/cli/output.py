"""Results go to stdout, as a table or as one JSON document; everything else to stderr."""

import dataclasses
import json
import math
import numbers
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from selfsight.errors import ConfigError

__all__ = ["document", "new_file", "note", "plain", "table", "visible"]


def visible(text: str) -> str:
    """`text` on one line: characters that would move the cursor are escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def new_file(name: str, suffixes: Sequence[str], *, force: bool) -> Path:
    """Where a result will go: told before the work whether it cannot."""
    path = Path(name)
    if path.suffix.lower() not in suffixes:
        raise ConfigError(f"--out {name}: expected a name that ends in {' or '.join(suffixes)}")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"--out {name}: there is no folder {path.parent}; make it first")
    if path.is_dir() or (path.exists() and not force):
        raise ConfigError(f"--out {name} exists; --force overwrites a file")
    return path


def note(text: str) -> None:
    """One line for the person who watches."""
    print(text, file=sys.stderr, flush=True)


def plain(value: Any) -> Any:
    """`value` as JSON knows it; what is not finite becomes null."""
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, Sequence | set | frozenset):
        return [plain(item) for item in value]
    raise TypeError(f"{type(value).__name__} has no form in JSON")


def document(value: Any) -> None:
    """Print `value` as one JSON document."""
    print(json.dumps(plain(value), indent=2, allow_nan=False))


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows under their columns: ruled on a terminal, bare text anywhere else."""
    cells = [[visible(str(cell)) for cell in row] for row in rows]
    if sys.stdout.isatty():
        # Imported here: --help must be quick, and pipes never need it.
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        ruled = Table(*columns, box=None, pad_edge=False)
        for row in cells:
            ruled.add_row(*map(Text, row))
        Console(highlight=False).print(ruled)
        return
    lines = [list(columns), *cells]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    for line in lines:
        print("  ".join(f"{c:{w}}" for c, w in zip(line, widths, strict=True)).rstrip())
