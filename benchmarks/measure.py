"""What the benchmarks share: turns taken side by side, and what the machine was like."""

import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self

import torch

from selfsight import __version__
from selfsight.machine import keep_pages

__all__ = [
    "THREADS",
    "Crew",
    "apart",
    "header",
    "interleaved",
    "photographs",
    "probe",
    "processor",
    "rates",
    "resident",
    "seconds",
    "spread",
    "summary",
    "write",
]

THREADS = 2

Work = Callable[[], object]
# (what, which process of a crew, of how many) → one run of this process's part
Build = Callable[[str, int, int], Work]
Side = Callable[[int], object]  # so many runs


def seconds(function: Work) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def probe() -> float:
    """GFLOP/s of a float32 product, the best of five."""
    x = torch.randn(2048, 2048)
    x @ x
    return 2 * 2048**3 / min(seconds(lambda: x @ x) for _ in range(5)) / 1e9


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def processor() -> str:
    """What the CPU calls itself."""
    lines = Path("/proc/cpuinfo")
    if not lines.is_file():
        return platform.processor() or platform.machine()
    text = lines.read_text(encoding="ascii", errors="replace")
    names = [line.partition(":")[2].strip() for line in text.splitlines() if "model name" in line]
    return names[0] if names else platform.machine()


def resident(field: str) -> float:
    """MiB that /proc/self/status gives for VmRSS (now) or VmHWM (the peak)."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def apart(script: str, *arguments: str) -> dict[str, object]:
    """The script in a fresh process; its answer."""
    command = [sys.executable, script, *arguments]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    result: dict[str, object] = json.loads(answer)
    return result


def header(command: str, *packages: str) -> dict[str, object]:
    """How a result came about."""
    return {
        "command": command,
        "python": platform.python_version(),
        "selfsight": __version__,
        **{package: version(package) for package in ("torch", *packages)},
        "cpu": processor(),
        "threads": THREADS,
        "load": os.getloadavg(),
    }


def write(file: Path, results: Mapping[str, Any]) -> None:
    """Cases that were measured before, and not now, stay as long as all versions do."""
    if file.is_file():
        before, now = json.loads(file.read_bytes()), json.loads(json.dumps(results))
        if all(before.get(k) == v for k, v in now.items() if k not in ("cases", "load")):
            results = {**results, "cases": {**before["cases"], **results["cases"]}}
    text = json.dumps(results, indent=1, ensure_ascii=False)
    file.write_text(text + "\n", encoding="utf-8")


def photographs(folder: Path, count: int) -> list[Path]:
    """So many of a folder's JPEGs, evenly spread over it."""
    files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in (".jpg", ".jpeg"))
    if len(files) < count:
        sys.exit(f"{folder} holds {len(files)} JPEGs; {count} are needed")
    return [files[i * len(files) // count] for i in range(count)]


class Crew:
    """Processes that were started, and have built their work, before a turn begins.

    threads: of torch in each; keep: whether their allocator keeps its pages
    """

    def __init__(
        self, build: Build, *, processes: int = 1, threads: int = THREADS, keep: bool = True
    ) -> None:
        context = get_context("spawn")
        self._crew = []
        for number in range(processes):
            here, there = context.Pipe()
            arguments = (there, build, number, processes, threads, keep)
            process = context.Process(target=_serve, args=arguments)
            process.start()
            there.close()
            self._crew.append((process, here))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for _, pipe in self._crew:
            pipe.close()
        for process, _ in self._crew:
            process.join()

    def side(self, name: str) -> Side:
        """All of the crew do their parts at once."""
        return lambda runs: self.ask(name, runs)

    def ask(self, name: str, runs: int) -> list[Any]:
        """What each answers at the end of its last run."""
        for _, pipe in self._crew:
            pipe.send((name, runs))
        try:
            return [pipe.recv() for _, pipe in self._crew]
        except EOFError:
            sys.exit(f"{name} failed; its own message stands above")


def _serve(
    pipe: Connection, build: Build, number: int, processes: int, threads: int, keep: bool
) -> None:
    torch.set_num_threads(threads)
    if keep and not keep_pages():
        sys.exit("this allocator cannot keep pages")
    built: dict[str, Work] = {}
    while True:
        try:
            name, runs = pipe.recv()
        except EOFError:
            return
        if name not in built:
            built[name] = build(name, number, processes)
        answer = None
        for _ in range(runs):
            answer = built[name]()
        pipe.send(answer)


def interleaved(sides: Mapping[str, Side], turns: int, least: float) -> dict[str, list[float]]:
    """Seconds of one run in each counted turn of each side, after a warm-up; a turn is as
    many runs as take `least` seconds, or one."""
    runs = {}
    for name, side in sides.items():
        first = seconds(partial(side, 1))
        runs[name] = math.ceil(least / seconds(partial(side, 1))) if least else 1
        print(f"  {name}: {first:.2f} s at first, then {runs[name]} runs a turn", flush=True)
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(turns):
        for name, side in sides.items():
            taken[name].append(seconds(partial(side, runs[name])) / runs[name])
    return taken


def rates(count: int, taken: Iterable[float]) -> dict[str, float]:
    """Images per second, from the seconds that so many took."""
    return spread([count / t for t in taken])


def summary(found: Mapping[str, Mapping[str, float]], gflops: Sequence[float]) -> None:
    for name, rate in found.items():
        print("  {:40} {median:12,.0f} ({min:,.0f} to {max:,.0f}) images/s".format(name, **rate))
    print("  probe " + " then ".join(f"{p:.0f}" for p in gflops) + " GFLOP/s", flush=True)
