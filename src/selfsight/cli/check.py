"""selfsight check"""

import argparse
from collections.abc import Sequence

from selfsight.cli.output import document, table, visible
from selfsight.cli.parser import Parser, opening
from selfsight.counting import counting

__all__ = ["configure", "run"]

_SHOWN = 20


def configure(parser: Parser) -> None:
    parser.take_data()
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(arguments: argparse.Namespace) -> int:
    from selfsight.data.check import check

    found = check(
        arguments.data,
        **opening(arguments),
        progress=counting("checked"),
    )
    if arguments.json:
        document(found.json())
        return 0
    counts = "  ".join(f"{name} {count:,}" for name, count in found.formats.items())
    smallest, median, largest = (
        f"{height} × {width}" for height, width in (found.smallest, found.median, found.largest)
    )
    rows = [
        ("images", f"{found.images:,}"),
        ("formats", counts),
        ("classes", f"{len(found.classes):,}" if found.classes else "none"),
        ("height × width", f"from {smallest} to {largest}, median {median}"),
        ("largest --size without enlarging", str(found.max_size)),
        ("not used", f"{len(found.skipped):,}"),
        ("equal images", f"{len(found.duplicates):,} groups"),
        ("test images also in train", f"{len(found.leaks):,}"),
    ]
    table((visible(found.name), ""), rows)
    _list("class", [f"{name}: {count:,}" for name, count in found.classes.items()])
    _list("not used", [f"{skip.path}: {skip.reason}" for skip in found.skipped])
    _list("equal", ["  ".join(group) for group in found.duplicates])
    _list("in train and test", ["  ".join(pair) for pair in found.leaks])
    return 0


def _list(title: str, lines: Sequence[str]) -> None:
    if not lines:
        return
    print(f"\n{title}")
    for line in lines[:_SHOWN]:
        print(f"  {visible(line)}")
    if len(lines) > _SHOWN:
        print(f"  and {len(lines) - _SHOWN:,} more; --json lists all")
