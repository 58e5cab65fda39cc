"""Time of the k nearest rows beside faiss's exact search, in float32 on a CPU.

    pip install -e ".[bench]"
    python benchmarks/neighbours.py [--out benchmarks/results/neighbours.json]

Rows are normal about a hundred centres. Each side's time is from two arrays to the numbers of
the neighbours: faiss's with filling the index, ours with normalising, rounding and kernels that
are compiled. Both run in one process, turn by turn, with pages kept
(selfsight.machine.keep_pages); the first turn is not counted. A matrix product is timed before
and after each case: where it is slow, so was the machine, and the case should be run again.
"""

import argparse
import statistics
import sys
from pathlib import Path
from typing import NamedTuple

import faiss
import numpy as np
import torch
import torch.nn.functional as F
from measure import THREADS, header, interleaved, probe, spread, write

from selfsight.evaluate.learners.neighbours import Metric, Neighbours
from selfsight.machine import keep_pages

INDEX = {"cosine": faiss.IndexFlatIP, "euclidean": faiss.IndexFlatL2}


class Case(NamedTuple):
    metric: Metric
    queries: int
    rows: int
    dim: int
    k: int


CASES = {
    f"{metric}, {queries:,} × {rows:,}, D = {dim}, k = {k}": Case(metric, queries, rows, dim, k)
    for metric, queries, rows, dim, k in (
        ("cosine", 10_000, 50_000, 512, 200),
        ("cosine", 10_000, 50_000, 512, 20),
        ("euclidean", 10_000, 50_000, 512, 5),
    )
}


def drawn(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries and rows."""
    torch.manual_seed(0)
    centres = torch.randn(100, case.dim)
    return tuple(
        centres[torch.randint(100, (n,))] + 2 * torch.randn(n, case.dim)
        for n in (case.queries, case.rows)
    )


def theirs(case: Case, q: torch.Tensor, x: torch.Tensor) -> np.ndarray:
    if case.metric == "cosine":
        q, x = F.normalize(q, dim=1), F.normalize(x, dim=1)
    index = INDEX[case.metric](case.dim)
    index.add(x.numpy())
    return index.search(q.numpy(), case.k)[1]


def ours(case: Case, q: torch.Tensor, x: torch.Tensor) -> np.ndarray:
    blocks = Neighbours(x, case.metric).search(q, case.k)
    return torch.cat([number for _, _, number in blocks]).numpy()


def timing(case: Case, turns: int) -> dict[str, object]:
    """Seconds of both sides, and the share of neighbours on which they agree."""
    q, x = drawn(case)
    before = probe()
    found = ours(case, q, x), theirs(case, q, x)
    agree = [len(np.intersect1d(a, b)) for a, b in zip(*found, strict=True)]
    sides = {
        "faiss": lambda runs: [theirs(case, q, x) for _ in range(runs)] and None,
        "selfsight": lambda runs: [ours(case, q, x) for _ in range(runs)] and None,
    }
    taken = interleaved(sides, turns, least=0)
    return {
        "faiss_s": spread(taken["faiss"]),
        "selfsight_s": spread(taken["selfsight"]),
        "faster": statistics.median(taken["faiss"]) / statistics.median(taken["selfsight"]),
        "turns": turns,
        "agree": sum(agree) / (len(q) * case.k),
        "probe_gflops": [before, probe()],
    }


def report(name: str, result: dict) -> None:
    sides = (
        "{} {median:.3f} s ({min:.3f} to {max:.3f})".format(side, **result[f"{side}_s"])
        for side in ("faiss", "selfsight")
    )
    speed = " then ".join(f"{p:.0f}" for p in result["probe_gflops"])
    print(f"{name}\n  {result['faster']:.2f}×  {', '.join(sides)}; probe {speed} GFLOP/s")
    print(f"  the same neighbours: {100 * result['agree']:.4f}%", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="where the numbers are written as JSON")
    parser.add_argument("--turns", type=int, default=7, help="counted turns of each side")
    parser.add_argument("--share", type=int, default=1, help="an N-th of the rows and queries")
    options = parser.parse_args()
    if options.out and (options.share > 1 or options.turns < 5):
        sys.exit("only whole cases of at least five turns are kept")
    torch.set_num_threads(THREADS)
    faiss.omp_set_num_threads(THREADS)
    if not keep_pages():
        sys.exit("this allocator cannot keep pages")
    cases = {}
    for name, case in CASES.items():
        queries, rows = case.queries // options.share, case.rows // options.share
        cases[name] = timing(case._replace(queries=queries, rows=rows), options.turns)
        report(name, cases[name])
    if options.out:
        write(
            options.out,
            {**header("python benchmarks/neighbours.py", "faiss-cpu"), "cases": cases},
        )


if __name__ == "__main__":
    main()
