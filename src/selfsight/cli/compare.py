"""selfsight compare"""

import argparse
from typing import TYPE_CHECKING, Any

from selfsight.cli.evaluate import selected, take_duplicates
from selfsight.cli.output import document, note, table, visible
from selfsight.cli.parser import Parser, names, opening
from selfsight.counting import counting
from selfsight.errors import ConfigError

if TYPE_CHECKING:
    from selfsight.evaluate import Protocol

__all__ = ["configure", "run"]


def configure(parser: Parser) -> None:
    add = parser.add_argument
    add("runs", nargs="*", metavar="RUN", help="runs, or files of `evaluate --out`; two or more")
    parser.take_data("--data")
    parser.take_parts()
    add("--protocols", type=names, metavar="A,B", help="knn,linear,…; all that were kept")
    take_duplicates(parser)
    add("--json", action="store_true", help="print one JSON document")
    parser.epilog = (
        "Without --data it compares what `evaluate` kept beside the runs; with it, what is "
        "missing is measured first. Runs that differ only in their seed are one row."
    )


def run(arguments: argparse.Namespace) -> int:
    if len(arguments.runs) < 2:
        raise ConfigError("name two or more runs; see selfsight compare --help")
    from selfsight.run import compare_runs

    protocols = _protocols(arguments)
    how: dict[str, Any] = {}
    if arguments.data is not None:
        from selfsight.views.cpu import compile_kernels

        compile_kernels(note)
        how = opening(arguments) | {
            "duplicates": arguments.duplicates,
            "progress": counting,
        }
    found = compare_runs(arguments.runs, arguments.data, protocols, **how)
    if arguments.json:
        document([comparison.json() for comparison in found])
        return 0
    for place, comparison in enumerate(found):
        print("\n" * (place > 0) + visible(comparison.title))
        table(("run", "value", "95% interval", "over"), comparison.values())
        if comparison.pairs:
            print()
            table(("pair", "difference", "95% interval", "over", ""), comparison.differences())
    print()
    for text in dict.fromkeys(line for comparison in found for line in comparison.notes):
        print(visible(text))
    return 0


def _protocols(arguments: argparse.Namespace) -> "list[str | Protocol] | None":
    """What was named; of what was kept any options will do where none are given."""
    arguments.protocols = arguments.protocols or ()
    if not arguments.protocols and not arguments.parts:
        return None
    chosen = selected(arguments)
    if arguments.data is not None:
        return [*chosen]
    owners = {part.partition(".")[0] for part in arguments.parts}
    return [one if one.name in owners else one.name for one in chosen]
