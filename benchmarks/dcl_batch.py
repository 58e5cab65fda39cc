"""Does DCL's gain over SimCLR shrink as the batch grows (Yeh et al. 2021, figure 1)?

python benchmarks/dcl_batch.py --data cifar10.npz --jobs 2    # all that is not yet done
python benchmarks/dcl_batch.py --table                        # the page from the results

SimCLR, DCL and DCLW in batches of 32 to 512, all else as the learning benchmark runs SimCLR: the
images, the epochs, the views, the projector, the temperature, AdamW. The learning rate follows
the root of the batch, as is usual for Adam, from the rate tuned for SimCLR's batch of 64, and
nothing is tuned for DCL. The claim: the paired difference by kNN on the test images is larger in
batches of 32 than in batches of 512.

A job is one loss, batch and seed in a process with one thread, which leaves one JSON at its end.
The data file is that of learn.py.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from math import sqrt
from pathlib import Path
from typing import Any

import torch
from learn import HERE, conduct, end, is_done, opened, perform
from protocol import ENTRIES, PROTOCOL, Entry, Protocol

from selfsight.errors import ConfigError, suggestion

RESULTS = HERE / "results" / "dcl_batch"
BATCHES = (32, 64, 128, 256, 512)
LOSSES: dict[str, tuple[str, dict[str, Any]]] = {
    "simclr": ("simclr", {}),
    "dcl": ("dcl", {}),
    "dclw": ("dcl", {"weight": "vmf"}),
}
_SIMCLR = next(entry for entry in ENTRIES if entry.name == "simclr")


def run_of(loss: str, batch: int, protocol: Protocol = PROTOCOL) -> tuple[Entry, Protocol]:
    """SimCLR's entry with another loss, batch and rate."""
    method, options = LOSSES[loss]
    entry = replace(
        _SIMCLR, name=f"{loss}_{batch}", method=method, options={**_SIMCLR.options, **options},
        lr=_SIMCLR.lr * sqrt(batch / PROTOCOL.batch),
    )  # fmt: skip
    return entry, replace(protocol, batch=batch)


RUNS = {f"{loss}_{batch}": run_of(loss, batch) for batch in BATCHES for loss in LOSSES}


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, help="the .npz of JPEGs")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--only", nargs="+", metavar="NAME", help=f"of {', '.join(RUNS)}")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(PROTOCOL.seeds))
    parser.add_argument("--table", action="store_true", help="write the page and stop")
    parser.add_argument("--job", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args(words)
    if args.table:
        from dcl_batch_page import publish

        publish()
        return 0
    if args.data is None:
        raise ConfigError("--data FILE: which file holds CIFAR-10?")
    for name in args.only or ():
        if name not in RUNS:
            raise ConfigError(f"there is no run {name}{suggestion(name, RUNS)}")
    if args.job:
        torch.set_num_threads(1)
        entry, protocol = RUNS[args.job[0]]
        data = opened(args.data, protocol, tune=False)
        perform(entry, int(args.job[1]), protocol, data, RESULTS)
        return 0
    jobs = [
        (name, seed)
        for seed in args.seeds
        for name in args.only or RUNS
        if not is_done(RUNS[name][0], seed, RUNS[name][1], RESULTS)
    ]
    print(f"{len(jobs)} jobs to do", flush=True)
    return 1 if conduct(words, jobs, args.jobs, script=Path(__file__)) else 0


if __name__ == "__main__":
    end(main)
