"""selfsight methods"""

import argparse
import inspect
import itertools
import re
import sys
from typing import Any

from selfsight.cli.output import document, table, visible
from selfsight.cli.parser import Parser
from selfsight.cli.values import annotation, expects, shown

__all__ = ["configure", "run", "summary"]


def configure(parser: Parser) -> None:
    parser.add_argument("name", nargs="?", metavar="NAME", help="describe this one")
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(arguments: argparse.Namespace) -> int:
    from selfsight import methods

    if arguments.name is None:
        rows = [
            {**summary(name, methods.method_class(name)), "family": family}
            for family, names in methods.FAMILIES.items()
            for name in names.split()
        ]
        if arguments.json:
            document(rows)
        else:
            columns = ("name", "title", "year", "what")
            for family, members in itertools.groupby(rows, lambda row: row["family"]):
                print(family)
                table(columns, [[row[column] for column in columns] for row in members])
                print()
            print("selfsight methods NAME prints its options, views and recipe.")
        return 0
    facts = methods.describe(arguments.name)
    if arguments.json:
        document(facts)
    else:
        _print(facts, {n: annotation(p) for n, p in methods.options(arguments.name).items()})
    return 0


def summary(name: str, method: type) -> dict[str, str]:
    """A method's line in the list, by the words at the top of its file: to build each method
    takes too long."""
    first, _, cited = inspect.cleandoc(sys.modules[method.__module__].__doc__ or "").partition("\n")
    title, _, what = first.partition(": ")
    year = re.search(r"\b(?:19|20)\d\d\b", cited)
    return {"name": name, "title": title, "year": year[0] if year else "", "what": what.rstrip(".")}


def _print(facts: dict[str, Any], kinds: dict[str, Any]) -> None:
    loss = [f"Loss: {facts['equation']}"] if facts["equation"] else []
    for text in (facts["title"], facts["paper"], *loss, "", *facts["help"].splitlines(), ""):
        print(visible(text))
    options = [
        (f"--method.{name}", shown(default), expects(kinds[name]))
        for name, default in facts["options"].items()
    ]
    if options:
        table(("option", "default", "takes"), options)
        print()
    views = facts["views"]
    columns = ("views", *(str(number) for number in range(1, len(views) + 1)))
    table(columns, [(field, *(_short(view[field]) for view in views)) for field in views[0]])
    print()
    table(("recipe", ""), [(name, _short(value)) for name, value in facts["recipe"].items()])
    for deviation in facts["deviations"]:
        print()
        print(visible(f"Differs from the paper: {deviation}"))


def _short(value: Any) -> str:
    """To be read, not typed: 4/3 has many digits."""
    if isinstance(value, tuple | list):
        return ", ".join(map(_short, value))
    return f"{value:.4g}" if isinstance(value, float) else shown(value)
