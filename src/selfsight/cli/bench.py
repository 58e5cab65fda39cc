"""selfsight bench"""

import argparse

from selfsight.cli.output import document, note, table
from selfsight.cli.parser import Parser, whole

__all__ = ["configure", "run"]


def configure(parser: Parser) -> None:
    add = parser.add_argument
    add("--case", nargs="+", action="extend", default=[], metavar="NAME", help="only these")
    add("--threads", type=whole(1), metavar="N", help="of the views and of torch")
    add("--json", action="store_true", help="print one JSON document")


def run(arguments: argparse.Namespace) -> int:
    from selfsight import bench

    timings = bench.run(arguments.case, threads=arguments.threads, tell=note)
    quiet = bench.quiet(timings)
    if arguments.json:
        document({"timings": timings, "quiet": quiet})
    else:
        columns = ("case", "how", "images/s", "slowest – fastest", "GFLOP/s", "what")
        rows = [
            (
                t.case,
                t.how,
                f"{t.median:,.0f}",
                f"{t.slowest:,.0f} – {t.fastest:,.0f}",
                f"{t.before.gflops:.0f}, {t.after.gflops:.0f}",
                bench.CASES[t.case].what,
            )
            for t in timings
        ]
        table(columns, rows)
    if not quiet:
        note("the machine was not quiet: run it again")
    return 0
