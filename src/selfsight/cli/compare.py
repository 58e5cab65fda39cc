"""selfsight compare"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfsight.cli.evaluate import selected, take_duplicates
from selfsight.cli.output import document, note, table, visible
from selfsight.cli.parser import Parser, names, opening, whole
from selfsight.cli.subject import open_subject
from selfsight.counting import counting
from selfsight.errors import ConfigError

if TYPE_CHECKING:
    from selfsight.comparing import Candidate
    from selfsight.evaluate import Protocol

__all__ = ["configure", "run"]


def configure(parser: Parser) -> None:
    add = parser.add_argument
    which = "two or more runs and files of `evaluate --out`; with --data also what `evaluate` takes"
    add("encoders", nargs="*", metavar="RUN|ENCODER", help=which)
    parser.take_data("--data")
    parser.take_parts()
    add("--protocols", type=names, metavar="A,B", help="knn,linear,…; all that were kept")
    add("--size", type=whole(1), metavar="PX", help="side of the images the encoders see")
    add("--pretrained", action="store_true", help="architectures with trained weights")
    take_duplicates(parser)
    add("--json", action="store_true", help="print one JSON document")
    parser.epilog = (
        "Without --data it compares what `evaluate` kept beside the runs; with it, what is "
        "missing is measured first. Runs that differ only in their seed are one row."
    )


def run(arguments: argparse.Namespace) -> int:
    if len(arguments.encoders) < 2:
        raise ConfigError("name two or more runs or encoders; see selfsight compare --help")
    from selfsight.comparing import compare_encoders

    protocols = _protocols(arguments)
    if arguments.pretrained and not any(map(_architecture, arguments.encoders)):
        raise ConfigError("--pretrained is for the name of an architecture, and none is named")
    encoders = [_opened(name, arguments) for name in arguments.encoders]
    how: dict[str, Any] = {"size": arguments.size}
    if arguments.data is not None:
        from selfsight.views.cpu import compile_kernels

        compile_kernels(note)
        how |= opening(arguments) | {
            "duplicates": arguments.duplicates,
            "progress": counting,
        }
    found = compare_encoders(encoders, arguments.data, protocols, **how)
    if arguments.json:
        document([comparison.json() for comparison in found])
        return 0
    for place, comparison in enumerate(found):
        print("\n" * (place > 0) + visible(comparison.title))
        table(("encoder", "value", "95% interval", "over"), comparison.values())
        if comparison.pairs:
            print()
            table(("pair", "difference", "95% interval", "over", ""), comparison.differences())
    print()
    for text in dict.fromkeys(line for comparison in found for line in comparison.notes):
        print(visible(text))
    return 0


def _opened(name: str, arguments: argparse.Namespace) -> "str | Candidate":
    """A run or a file by its name, since they may keep what is asked for; others opened."""
    path = Path(name)
    if path.suffix == ".json" or (path / "run.json").is_file():
        return name
    if arguments.data is None:
        raise ConfigError(
            f"{name} is neither a run nor a file of evaluate --out; an encoder is measured on "
            "--data DATA"
        )
    from selfsight.comparing import Candidate

    pretrained = arguments.pretrained and _architecture(name)
    asked = {"subject": name, "pretrained": pretrained, "device": None, "precision": None}
    subject = open_subject(argparse.Namespace(size=arguments.size, **asked))
    return Candidate(name, subject.sight(subject.encoder))


def _architecture(name: str) -> bool:
    """Whether it is the name of one rather than a file or a folder."""
    return not Path(name).exists()


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
