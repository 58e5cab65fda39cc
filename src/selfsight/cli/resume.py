"""selfsight resume"""

import argparse

from selfsight.cli.parser import Parser
from selfsight.cli.pretrain import show

__all__ = ["configure", "run"]


def configure(parser: Parser) -> None:
    parser.add_argument("run", metavar="DIR", help="the folder of an interrupted run")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(arguments: argparse.Namespace) -> int:
    import selfsight

    return show(selfsight.resume(arguments.run, quiet=arguments.quiet), arguments.json)
