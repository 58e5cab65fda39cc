"""Time and memory of four losses beside lightly's, forward and backward in float32.

    pip install -e ".[bench]"
    python benchmarks/losses.py [--out benchmarks/results/losses.json]

Both sides run in one process, turn by turn; the first turns are not counted. Each case
runs once with the default allocator and once with pages kept (selfsight.machine.keep_pages)
for both sides. A matrix product is timed before and after each: where it is slow, so was
the machine, and the case should be run again. Extra memory is how far one call raises a
fresh process's peak above what it held before. About three minutes on two idle cores.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from lightly.loss import BarlowTwinsLoss, NTXentLoss
from lightly.loss.swav_loss import sinkhorn as lightly_sinkhorn
from lightly.loss.vicreg_loss import covariance_loss
from measure import THREADS, apart, header, probe, resident, seconds, spread, write
from torch import Tensor

from selfsight.losses import barlow_twins, covariance_penalty, nt_xent, sinkhorn
from selfsight.machine import keep_pages

LAMBDA = 0.0051

Function = Callable[..., Tensor]


class Case(NamedTuple):
    """One function of ours and theirs on `inputs` normal tensors of `shape`."""

    ours: Function
    theirs: Function
    inputs: int
    shape: tuple[int, int]
    turns: int
    gradient: bool = True


CASES = {
    "NT-Xent, 2N = 8192, D = 128": Case(
        lambda a, b: nt_xent(a, b, 0.1), NTXentLoss(0.1), 2, (4096, 128), 7
    ),
    "Barlow Twins, N = 256, D = 8192": Case(
        lambda a, b: barlow_twins(a, b, LAMBDA), BarlowTwinsLoss(LAMBDA), 2, (256, 8192), 7
    ),
    "VICReg covariance, N = 256, D = 8192": Case(
        covariance_penalty, covariance_loss, 1, (256, 8192), 5
    ),
    "Sinkhorn, 4096 × 3000, 3 iterations": Case(
        lambda s: sinkhorn(s, 0.05, 3),
        lambda s: lightly_sinkhorn(s, 3, 0.05),
        1,
        (4096, 3000),
        21,
        gradient=False,
    ),
}


def drawn(case: Case, shape: tuple[int, int]) -> list[Tensor]:
    torch.manual_seed(0)
    if case.gradient:
        return [torch.randn(shape, requires_grad=True) for _ in range(case.inputs)]
    n, k = shape  # cosines of samples and prototypes
    return [F.normalize(torch.randn(n, 128)) @ F.normalize(torch.randn(k, 128)).T]


def call(case: Case, function: Function, inputs: list[Tensor]) -> list[Tensor]:
    """The value, and the gradients where the case has any."""
    value = function(*inputs)
    return [value.detach(), *(torch.autograd.grad(value, inputs) if case.gradient else ())]


def timing(case: Case) -> dict[str, object]:
    """Seconds of both sides, and how far their answers lie apart."""
    inputs = drawn(case, case.shape)
    before = probe()
    mine, other = (call(case, f, inputs) for f in (case.ours, case.theirs))
    differences = [
        ((a - b).abs().max() / b.abs().max()).item() for a, b in zip(mine, other, strict=True)
    ]
    del mine, other
    ours: list[float] = []
    theirs: list[float] = []
    for turn in range(case.turns + 1):
        for times, function in ((theirs, case.theirs), (ours, case.ours)):
            taken = seconds(lambda f=function: call(case, f, inputs))
            if turn:
                times.append(taken)
    return {
        "lightly_s": spread(theirs),
        "selfsight_s": spread(ours),
        "faster": statistics.median(theirs) / statistics.median(ours),
        "turns": case.turns,
        "value_apart": differences[0],
        "gradient_apart": max(differences[1:], default=None),
        "probe_gflops": [before, probe()],
    }


def memory(case: Case, side: str) -> dict[str, float]:
    """MiB that one call adds to the peak. A small call first loads what only loads once."""
    function = {"lightly": case.theirs, "selfsight": case.ours}[side]
    call(case, function, drawn(case, (64, 64)))
    inputs = drawn(case, case.shape)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts here
    held = resident("VmRSS")
    call(case, function, inputs)
    return {"extra_mib": resident("VmHWM") - held}


def everything() -> dict[str, object]:
    cases = {}
    for name in CASES:
        extra = {
            s: apart(__file__, "--memory", name, s)["extra_mib"] for s in ("lightly", "selfsight")
        }
        cases[name] = {
            "default": apart(__file__, "--time", name, "default"),
            "pages_kept": apart(__file__, "--time", name, "kept"),
            "extra_mib": extra,
            "lighter": extra["lightly"] / max(extra["selfsight"], 1.0),
        }
        report(name, cases[name])
    return {
        **header("python benchmarks/losses.py", "lightly"),
        "cases": cases,
    }


def report(name: str, result: dict) -> None:
    print(name)
    for allocator in ("default", "pages_kept"):
        t = result[allocator]
        sides = (
            f"{side} {t[f'{side}_s']['median']:.3f} s "
            f"({t[f'{side}_s']['min']:.3f} to {t[f'{side}_s']['max']:.3f})"
            for side in ("lightly", "selfsight")
        )
        speed = " then ".join(f"{p:.0f}" for p in t["probe_gflops"])
        print(f"  {allocator:10} {t['faster']:6.1f}×  {', '.join(sides)}; probe {speed} GFLOP/s")
    extra, t = result["extra_mib"], result["default"]
    print(
        f"  memory     {result['lighter']:6.1f}×  lightly {extra['lightly']:.0f} MiB, "
        f"selfsight {extra['selfsight']:.0f} MiB"
    )
    gradient = t["gradient_apart"]
    print(
        f"  apart      value {t['value_apart']:.0e}"
        + (f", gradient {gradient:.0e} of the largest" if gradient is not None else ""),
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="where the numbers are written as JSON")
    parser.add_argument("--time", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--memory", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    if options.time:
        name, allocator = options.time
        if allocator == "kept" and not keep_pages():
            sys.exit("this allocator cannot keep pages")
        print(json.dumps(timing(CASES[name])))
    elif options.memory:
        name, side = options.memory
        print(json.dumps(memory(CASES[name], side)))
    else:
        results = everything()
        if options.out:
            write(options.out, results)


if __name__ == "__main__":
    main()
