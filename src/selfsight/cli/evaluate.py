"""selfsight evaluate"""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from selfsight.cli.output import document, new_file, note, plain, table
from selfsight.cli.parser import Parser, names, opening
from selfsight.cli.subject import (
    Subject,
    is_features,
    open_features,
    open_subject,
    take_subject,
)
from selfsight.cli.values import typed
from selfsight.counting import counting
from selfsight.errors import ConfigError, StorageError, suggestion

if TYPE_CHECKING:
    from selfsight.evaluate import Protocol, Report

__all__ = ["PROTOCOLS", "configure", "run", "selected", "take_duplicates"]

# Said here as well: to import them takes seconds.
PROTOCOLS = (
    "clustering, dense, detection, few, finetune, knn, linear, multilabel, propagation, recipe, "
    "retrieval, segmentation, sweep, throughput"
)


def configure(parser: Parser) -> None:
    take_subject(parser)
    parser.take_data()
    parser.take_parts()
    add = parser.add_argument
    which = f"knn,linear by default; of {PROTOCOLS}"
    add("--protocols", type=names, default=("knn", "linear"), metavar="A,B", help=which)
    add("--controls", action="store_true", help="also raw pixels and the weights before training")
    add("--out", metavar="FILE", help="keep the numbers in FILE.json")
    add("--force", action="store_true", help="overwrite FILE.json")
    take_duplicates(parser)
    add("--json", action="store_true", help="print one JSON document")
    parser.epilog = (
        "A protocol's own options are written --PROTOCOL.OPTION VALUE, for example --knn.k 200; "
        "a wrong one prints those that there are."
    )


def take_duplicates(parser: Parser) -> None:
    parser.add_argument(
        "--duplicates",
        choices=("refuse", "drop"),
        default="refuse",
        help="training images equal to test images: refuse them, or leave them out",
    )


def run(arguments: argparse.Namespace) -> int:
    out = arguments.out and new_file(arguments.out, (".json",), force=arguments.force)
    # Told before the images are embedded, which may take an hour.
    protocols = selected(arguments)
    size: int | None = None
    if is_features(arguments.subject):
        reports = _measure_features(protocols, arguments)
    else:
        subject = open_subject(arguments)
        size, reports = subject.size, _measure(subject, protocols, arguments)
    kept, results = _keep(list(reports.values())[-1], size, arguments)
    facts: dict[str, Any] = {
        "subject": arguments.subject,
        "data": arguments.data,
        "size": size,
        "results": {name: report.json() for name, report in reports.items()},
        **({"kept": kept} if kept else {}),
    }
    if out:
        # With what each image adds, so that another encoder can be compared with the file.
        whole = plain({**facts, "evaluations": results})
        out.write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")
    if arguments.json:
        document(facts)
    else:
        rows = [
            (name, *row[:4], row[4].removeprefix("n="))
            for name, report in reports.items()
            for row in report.table()
        ]
        table(("encoder", "protocol", "metric", "value", "95% interval", "n"), rows)
    return 0


def selected(arguments: argparse.Namespace) -> "list[Protocol]":
    """The protocols that were asked for, with their options."""
    from selfsight import evaluate

    chosen: dict[str, dict[str, Any]] = {}
    for part in arguments.parts:
        owner = part.partition(".")[0]
        if owner not in arguments.protocols:
            hint = suggestion(owner, arguments.protocols)
            raise ConfigError(f"--{part}: {owner} is not among --protocols{hint}")
    for name in arguments.protocols:
        chosen[name] = typed(name, arguments.parts, evaluate.options(name), name)
    return evaluate.select(arguments.protocols, chosen)


def _keep(
    report: "Report", size: int | None, arguments: argparse.Namespace
) -> tuple[list[str], list[dict[str, Any]]]:
    """Where the results of single images went, which is beside a run, and those results."""
    from selfsight.evaluate.stored import evaluations
    from selfsight.run import Run

    if copies := max(one.details.get("copies_left_out", 0) for one in report.scores):
        note(f"{copies} training images are equal to test images and were left out")
    results = [one.json() for one in evaluations(report.scores, arguments.data, size)]
    if not (Path(arguments.subject) / "run.json").is_file():
        return [], results
    try:
        files = Run(arguments.subject).keep(report, arguments.data, size)
    except StorageError as error:
        note(f"the results of single images are not kept: {error}")
        return [], results
    return [str(file) for file in files], results


def _measure_features(
    protocols: "list[Protocol]", arguments: argparse.Namespace
) -> "dict[str, Report]":
    from selfsight.evaluate import evaluate

    train, test = open_features(arguments)
    # A split of our own keeps equal rows apart, as that of images does.
    own = Path(arguments.subject).samefile(arguments.data)
    duplicates: Literal["refuse", "drop"] = "drop" if own else arguments.duplicates
    return {Path(arguments.subject).name: evaluate(train, test, protocols, duplicates=duplicates)}


def _measure(
    subject: Subject, protocols: "list[Protocol]", arguments: argparse.Namespace
) -> "dict[str, Report]":
    from selfsight.evaluate import judge
    from selfsight.run import judge_pixels, sight
    from selfsight.views.cpu import compile_kernels

    compile_kernels(note)
    data, how = arguments.data, opening(arguments) | {"duplicates": arguments.duplicates}
    reports: dict[str, Report] = {}
    if arguments.controls:
        before, start = subject.before
        untrained = sight(start(), subject.size, counting(f"{before}: embedded"))
        reports["raw pixels"] = judge_pixels(data, protocols, **how)
        reports[before] = judge(untrained, data, protocols, **how)
    trained = sight(subject.encoder, subject.size, counting("embedded"))
    reports[subject.name] = judge(trained, data, protocols, **how)
    return reports
