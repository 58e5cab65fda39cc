"""selfsight evaluate"""

import argparse
import json
import sys
from functools import partial
from operator import setitem
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
    subject = None if is_features(arguments.subject) else open_subject(arguments)
    name = subject.name if subject else Path(arguments.subject).name
    reports: dict[str, Report] = {}
    try:
        if subject:
            _measure(subject, protocols, arguments, reports)
        else:
            reports[name] = _measure_features(protocols, arguments)
    finally:
        # When a protocol fails, or a person has waited enough, what there is stays.
        if reports:
            _tell(reports, name, subject, arguments, out)
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


def _measure(
    subject: Subject,
    protocols: "list[Protocol]",
    arguments: argparse.Namespace,
    reports: "dict[str, Report]",
) -> None:
    """Into `reports`, by the encoder's name, each protocol as soon as it is done."""
    from selfsight.evaluate import OnFeatures, judge
    from selfsight.run import judge_pixels
    from selfsight.views.cpu import compile_kernels

    compile_kernels(note)
    data, how = arguments.data, opening(arguments) | {"duplicates": arguments.duplicates}
    if arguments.controls:
        on_pixels = [one for one in protocols if isinstance(one, OnFeatures)]
        if others := [one.name for one in protocols if one not in on_pixels]:
            note(f"raw pixels are not judged by {', '.join(others)}, which ask for an encoder")
        if on_pixels:
            reports["raw pixels"] = judge_pixels(data, on_pixels, **how)
        before, start = subject.before
        untrained = subject.sight(start(), f"{before}: ")
        judge(untrained, data, protocols, each=partial(setitem, reports, before), **how)
    trained = subject.sight(subject.encoder)
    judge(trained, data, protocols, each=partial(setitem, reports, subject.name), **how)


def _measure_features(protocols: "list[Protocol]", arguments: argparse.Namespace) -> "Report":
    from selfsight.evaluate import evaluate

    train, test = open_features(arguments)
    # A split of our own keeps equal rows apart, as that of images does.
    own = Path(arguments.subject).samefile(arguments.data)
    duplicates: Literal["refuse", "drop"] = "drop" if own else arguments.duplicates
    return evaluate(train, test, protocols, duplicates=duplicates)


def _tell(
    reports: "dict[str, Report]",
    name: str,
    subject: Subject | None,
    arguments: argparse.Namespace,
    out: Path | None,
) -> None:
    """What was found; `name` is the encoder's that was asked about."""
    from selfsight.evaluate import Report
    from selfsight.evaluate.stored import evaluations
    from selfsight.machine import versions

    size = subject.size if subject else None
    report = reports.get(name) or Report([])
    for kind, told in (
        ("copies_left_out", "training images are equal to test images and were left out"),
        ("unusable_left_out", "files cannot be used and were left out; see selfsight check"),
    ):
        if count := max((one.details.get(kind, 0) for one in report.scores), default=0):
            note(f"{count} {told}")
    facts: dict[str, Any] = {
        "subject": arguments.subject,
        "data": arguments.data,
        "size": size,
        "results": {name: report.json() for name, report in reports.items()},
    }
    if kept := _keep(report, arguments):
        facts["kept"] = kept
    if out:
        # With what each image adds, so that another encoder can be compared with the file.
        results = [one.json() for one in evaluations(report, arguments.data)]
        used = subject.sight(subject.encoder) if subject else None
        how = {"device": str(used.device), "precision": used.precision} if used else {}
        whole = {**facts, **how, "argv": sys.argv, "versions": versions(), "evaluations": results}
        out.write_text(json.dumps(plain(whole), indent=2) + "\n", encoding="utf-8")
    if arguments.json:
        document(facts)
        return
    rows = [
        (name, *row[:4], row[4].removeprefix("n="))
        for name, report in reports.items()
        for row in report.table()
    ]
    table(("encoder", "protocol", "metric", "value", "95% interval", "n"), rows)


def _keep(report: "Report", arguments: argparse.Namespace) -> list[str]:
    """Where the results of single images went, which is beside a run."""
    from selfsight.run import Run

    if not (Path(arguments.subject) / "run.json").is_file():
        return []
    try:
        return [str(file) for file in Run(arguments.subject).keep(report, arguments.data)]
    except StorageError as error:
        note(f"the results of single images are not kept: {error}")
        return []
