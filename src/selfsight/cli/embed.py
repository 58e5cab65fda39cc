"""selfsight embed"""

import argparse

from selfsight.cli.output import document, new_file, note, visible
from selfsight.cli.parser import Parser, opening
from selfsight.cli.subject import open_subject, take_subject
from selfsight.counting import counting

__all__ = ["configure", "run"]


def configure(parser: Parser) -> None:
    take_subject(parser)
    parser.take_data()
    add = parser.add_argument
    add("--out", required=True, metavar="FILE", help="FILE.npz or FILE.parquet")
    add("--force", action="store_true", help="overwrite FILE")
    add("--json", action="store_true", help="print one JSON document")


def run(arguments: argparse.Namespace) -> int:
    out = new_file(arguments.out, (".npz", ".parquet"), force=arguments.force)
    subject = open_subject(arguments)
    from selfsight.data.sources import open_source
    from selfsight.views.cpu import compile_kernels

    compile_kernels(note)
    source = open_source(
        arguments.data,
        labels=None,
        **opening(arguments),
        progress=counting("checked"),
    )
    features = subject.sight(subject.encoder).embed(source)
    features.save(out)
    note(f"{len(features):,} embeddings of {features.dim} numbers")
    if arguments.json:
        document({"out": out, "images": len(features), "dim": features.dim})
    else:
        print(visible(str(out)))
    return 0
