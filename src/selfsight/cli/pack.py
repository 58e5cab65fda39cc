"""selfsight pack"""

import argparse

from selfsight.cli.output import document, note, visible
from selfsight.cli.parser import Parser, number, opening, whole
from selfsight.counting import counting

__all__ = ["configure", "run"]

_MIB = 1 << 20


def configure(parser: Parser) -> None:
    add = parser.add_argument
    parser.take_data()
    add("--out", required=True, metavar="DIR", help="the shards' folder; must be new or empty")
    add(
        "--shard-size",
        type=whole(1),
        default=256,
        metavar="MIB",
        help="largest shard (256)",
    )
    add("--labels", action="store_true", help="every image must have a label")
    add(
        "--max-bad-fraction",
        type=number(0, 1),
        default=0.01,
        metavar="X",
        help="unreadable files tolerated (0.01)",
    )
    add("--json", action="store_true", help="print one JSON document")


def run(arguments: argparse.Namespace) -> int:
    # Imported here: --help must not wait for torch.
    from selfsight.data.pack import empty_folder, pack
    from selfsight.data.sources import open_source

    # Told before the work whether it cannot be written.
    empty_folder(arguments.out)
    source = open_source(
        arguments.data,
        labels=arguments.labels or None,
        max_bad_fraction=arguments.max_bad_fraction,
        **opening(arguments),
        progress=counting("checked"),
    )
    shards = pack(
        source,
        arguments.out,
        shard_bytes=arguments.shard_size * _MIB,
        progress=counting("packed"),
    )
    kind = f"labels of {len(source.classes):,} classes" if source.classes else "no labels"
    note(f"{len(source):,} images in {_counted(len(shards), 'shard')}, {kind}")
    if source.skipped:
        note(f"{_counted(len(source.skipped), 'file')} left out; selfsight check lists them")
    if arguments.json:
        document(
            {
                "out": arguments.out,
                "images": len(source),
                "shards": [shard.name for shard in shards],
                "classes": source.classes,
                "skipped": len(source.skipped),
            }
        )
    else:
        print(visible(arguments.out))
    return 0


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"
