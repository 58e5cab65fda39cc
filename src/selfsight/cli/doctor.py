"""selfsight doctor"""

import argparse

from selfsight.cli.output import document, table
from selfsight.cli.parser import Parser

__all__ = ["configure", "run"]


def configure(parser: Parser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(arguments: argparse.Namespace) -> int:
    from selfsight.doctor import examine

    findings = examine()
    if arguments.json:
        document(findings)
    else:
        rows = [(f.status, f.name, f.value, f.advice) for f in findings]
        table(("", "what", "found", "do"), rows)
    return 2 if any(finding.status == "fail" for finding in findings) else 0
