"""selfsight demo"""

import argparse

from selfsight.cli.output import document
from selfsight.cli.parser import Parser, whole

__all__ = ["configure", "run"]


def configure(parser: Parser) -> None:
    parser.add_argument("--out", metavar="DIR", help="keep the run here")
    parser.add_argument("--seed", type=whole(0), metavar="N", help="the same seed, the same demo")
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(arguments: argparse.Namespace) -> int:
    from selfsight import demo

    given = {"out": arguments.out, "seed": arguments.seed}
    result = demo.run(**{name: value for name, value in given.items() if value is not None})
    if arguments.json:
        document(result.json())
    else:
        print(result)
    return 0
