"""How fast this machine does what training needs: views, decoding, a step. No downloads."""

import io
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from PIL import Image

from selfsight.data.base import Arrays
from selfsight.data.decode import decode
from selfsight.data.loader import Loader
from selfsight.errors import ConfigError, suggestion
from selfsight.machine import cores, keep_pages
from selfsight.methods.base import Clock
from selfsight.train.config import Settings, resolve
from selfsight.train.loop import Engine, Plan
from selfsight.views import View, apply, cpu, expand
from selfsight.views.presets import crops, fitted, simclr_view

__all__ = ["CASES", "Case", "Probe", "Timing", "probe", "quiet", "run"]

_TURNS = 5
_PHOTO = 400 * 300  # pixels
_LONG = 0.25  # seconds that a turn takes at least
_APART = 1.3  # two probes further apart than this were not of the same machine
_BUSY = 0.75  # CPU seconds a second that a thread gets on a quiet machine, at least

# What a case prepares once, given the number of threads: images per call, what to call, and
# a word on how it is done.
Work = tuple[int, Callable[[], Any], str]


@dataclass(frozen=True)
class Probe:
    """A matrix product for a moment. busy: CPU seconds per second, at most `threads`."""

    gflops: float
    busy: float
    threads: int

    @property
    def starved(self) -> bool:
        """Whether the threads had to wait for cores."""
        return self.threads > 1 and self.busy < _BUSY * self.threads


@final
@dataclass(frozen=True)
class Case:
    """what: in a few words; works: one preparation for each figure."""

    what: str
    works: tuple[Callable[[int], Work | None], ...]


@dataclass(frozen=True)
class Timing:
    """Images per second: the median of the turns, the slowest and the fastest.

    before, after: probes around it, which tell what else ran
    """

    case: str
    how: str
    median: float
    slowest: float
    fastest: float
    turns: int
    before: Probe
    after: Probe


def run(
    cases: Sequence[str] = (),
    *,
    threads: int | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> list[Timing]:
    """Time the named cases, or all.

    threads: of the views and of torch, by default as many as a run takes
    """
    for name in cases:
        if name not in CASES:
            near = suggestion(name, CASES) or f"; choose from {', '.join(CASES)}"
            raise ConfigError(f"unknown case {name}{near}")
    keep_pages()
    cpu.compile_kernels(tell)
    timings: list[Timing] = []
    with _threads(threads or torch.get_num_threads()):
        for name in dict.fromkeys(cases or CASES):
            for prepare in CASES[name].works:
                work = prepare(threads or cores())
                if work is not None:
                    tell(f"timing {name} ({work[2]})")
                    timings.append(_timing(name, *work))
    return timings


def quiet(timings: Sequence[Timing]) -> bool:
    """Whether the machine was equally fast throughout, and ours."""
    probes = [found for timing in timings for found in (timing.before, timing.after)]
    speeds = [found.gflops for found in probes]
    return max(speeds) <= _APART * min(speeds) and not any(found.starved for found in probes)


def probe(
    *, seconds: float = 0.25, threads: int | None = None, dtype: torch.dtype = torch.float32
) -> Probe:
    """How fast two matrices are multiplied just now.

    threads: by default torch's
    """
    count = threads or torch.get_num_threads()
    with _threads(count), torch.no_grad():
        side = 1024 if count <= 8 else 2048  # many threads share no small matrices
        a = torch.ones(side, side, dtype=dtype)
        b = a @ a  # the first product sets its threads up
        start, used, products = time.perf_counter(), time.process_time(), 0
        while (wall := time.perf_counter() - start) < seconds or not products:
            torch.mm(a, a, out=b)
            products += 1
        busy = (time.process_time() - used) / wall
    return Probe(2 * side**3 * products / wall / 1e9, busy, count)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _timing(name: str, images: int, call: Callable[[], Any], how: str) -> Timing:
    before = probe()
    call()
    first = _seconds(call, 1)
    times = max(1, round(_LONG / first))
    turns = [first] if times == 1 else []
    while len(turns) < _TURNS:
        turns.append(_seconds(call, times) / times)
    rates = [images / seconds for seconds in turns]
    return Timing(
        case=name,
        how=how,
        median=statistics.median(rates),
        slowest=min(rates),
        fastest=max(rates),
        turns=len(rates),
        before=before,
        after=probe(),
    )


def _seconds(call: Callable[[], Any], times: int) -> float:
    start = time.perf_counter()
    for _ in range(times):
        call()
    return time.perf_counter() - start


def _photos(count: int) -> list[bytes]:
    """JPEGs of 400 × 300 with smooth parts and some grain, as a camera's."""
    draw = np.random.default_rng(0)
    files = []
    for _ in range(count):
        coarse = Image.fromarray(draw.integers(0, 256, (6, 8, 3), np.uint8))
        smooth = np.asarray(coarse.resize((400, 300), Image.Resampling.BICUBIC), np.float32)
        grain = draw.normal(0, 6, (300, 400, 1)).astype(np.float32)
        file = io.BytesIO()
        pixels = (smooth + grain).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


def _small() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (1024, 32, 32, 3), np.uint8)


def _views32(threads: int) -> Work:
    images, views = _small(), fitted(crops(simclr_view(blur=0.0), 0), 32)
    return len(images), lambda: apply(images, views, threads=threads), _shared(threads)


def _views224(threads: int) -> Work:
    return _painted(crops(simclr_view(), 0), threads)


def _multicrop(threads: int) -> Work:
    return _painted(crops(simclr_view(), 6), threads)


def _painted(views: Sequence[View], threads: int) -> Work:
    """Decoded and painted by the same thread, as the loader does it."""
    files = _photos(32)

    def paint(part: slice) -> None:
        apply([decode(data) for data in files[part]], views, position=part.start, threads=1)

    def call() -> None:
        painted = sum(view.size**2 for view in expand(views))
        cpu.in_parts(paint, len(files), painted + _PHOTO, threads)

    return len(files), call, _shared(threads)


def _decode(threads: int) -> Work:
    files = _photos(32)

    def part(rows: slice) -> None:
        for data in files[rows]:
            decode(data)

    return len(files), lambda: cpu.in_parts(part, len(files), _PHOTO, threads), _shared(threads)


def _step(precision: str) -> Callable[[int], Work | None]:
    def prepare(threads: int) -> Work | None:
        source = Arrays("noise", _small()[:64])
        asked = Settings(
            method="simclr", encoder="resnet18_small", size=32, batch=64, epochs=1,
            precision=precision,
        )  # fmt: skip
        built = resolve(asked, source)
        config, encoder = built.config, built.method.encoder
        if precision == "auto" and config.precision == "fp32":
            return None  # it has been timed
        plan = Plan(
            total=1_000_000, per_epoch=1, seed=0, lr=1e-3, warmup=0, micros=1,
            precision=config.precision, device=config.device,
        )  # fmt: skip
        engine = Engine(built.method, built.recipe, plan)
        loader = Loader(
            source, built.method.views, batch=64, seed=0, mean=encoder.mean, std=encoder.std,
            device=config.device, threads=threads,
        )  # fmt: skip
        batch, steps = loader.batch(0), itertools.count()

        def call() -> None:
            engine.step(Clock(next(steps), plan.total, 1), [batch], _nothing)

        return 64, call, f"{config.precision}, {config.device}"

    return prepare


def _nothing(network: torch.nn.Module, view: View) -> Iterator[Any]:
    """A sweep: SimCLR looks at nothing but its batches."""
    return iter(())


def _shared(threads: int) -> str:
    return f"{threads} thread{'s' * (threads > 1)}"


CASES = {
    "views32": Case("two views of 32 px of images in memory", (_views32,)),
    "views224": Case("JPEGs of 400 × 300 decoded, two blurred views of 224 px", (_views224,)),
    "multicrop": Case("JPEGs of 400 × 300 decoded, 2 × 224 and 6 × 96 px", (_multicrop,)),
    "decode": Case("JPEGs of 400 × 300 decoded", (_decode,)),
    "step": Case("SimCLR, ResNet-18 with a small stem, 32 px", (_step("fp32"), _step("auto"))),
}
