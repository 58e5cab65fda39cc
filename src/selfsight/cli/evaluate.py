"""selfsight evaluate"""

import argparse
import json
from typing import TYPE_CHECKING

from selfsight.cli.output import document, new_file, note, plain, table
from selfsight.cli.parser import Parser, names, opening
from selfsight.cli.subject import Subject, open_subject, take_subject
from selfsight.counting import counting

if TYPE_CHECKING:
    from selfsight.evaluate import Report

__all__ = ["configure", "run"]


def configure(parser: Parser) -> None:
    take_subject(parser)
    parser.take_data()
    add = parser.add_argument
    add("--protocols", type=names, default=("knn", "linear"), metavar="A,B", help="knn,linear")
    add("--controls", action="store_true", help="also raw pixels and the weights before training")
    add("--out", metavar="FILE", help="keep the numbers in FILE.json")
    add("--force", action="store_true", help="overwrite FILE.json")
    add("--json", action="store_true", help="print one JSON document")


def run(arguments: argparse.Namespace) -> int:
    out = arguments.out and new_file(arguments.out, (".json",), force=arguments.force)
    from selfsight.evaluate import check_protocols

    # Told before the images are embedded, which may take an hour.
    check_protocols(arguments.protocols)
    subject = open_subject(arguments)
    reports = _measure(subject, arguments)
    facts = {
        "subject": arguments.subject,
        "data": arguments.data,
        "size": subject.size,
        "results": {name: report.json() for name, report in reports.items()},
    }
    if out:
        out.write_text(json.dumps(plain(facts), indent=2) + "\n", encoding="utf-8")
    if arguments.json:
        document(facts)
    else:
        rows = [
            (name, *row[:3], row[3].removeprefix("n="))
            for name, report in reports.items()
            for row in report.table()
        ]
        table(("encoder", "protocol", "accuracy", "95% interval", "test images"), rows)
    return 0


def _measure(subject: Subject, arguments: argparse.Namespace) -> "dict[str, Report]":
    from selfsight.data.split import evaluation_split
    from selfsight.evaluate import evaluate
    from selfsight.features import pixels
    from selfsight.run import measure
    from selfsight.views.cpu import compile_kernels

    compile_kernels(note)
    split = evaluation_split(arguments.data, **opening(arguments))
    protocols = arguments.protocols
    reports: dict[str, Report] = {}
    if arguments.controls:
        before, start = subject.before
        reports["raw pixels"] = evaluate(pixels(split[0]), pixels(split[1]), protocols)
        reports[before] = measure(
            start(), split, subject.size, protocols, counting(f"{before}: embedded")
        )
    reports[subject.name] = measure(
        subject.encoder, split, subject.size, protocols, counting("embedded")
    )
    return reports
