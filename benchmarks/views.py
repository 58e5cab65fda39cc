"""Augmented views per second beside four libraries: from pixels in memory, and from JPEGs.

    pip install -e ".[bench]"
    python benchmarks/views.py --photos FOLDER [--only small jpeg crops] \\
        [--out benchmarks/results/views.json]

FOLDER holds photographs: at least 64 JPEGs, larger than 400×300. All sides make the same views
in float32 batches: crop, flip, colour jitter, grey, blur where said, normalised. They take
turns of half a second or more; the first runs, in which some compile, are not counted.

Ours is one process with two threads, which draws, decodes and paints through `views.apply` or
the loader, as it does for a user. Peers that take an image at a time get two processes with a
thread each, started and warm before the turn, which keep the batches they made: handing them
over is not counted. So do batched ones; the fastest of those runs on two threads of one process
as well. Everybody's allocator keeps its pages. About eight minutes on two idle cores.
"""

import argparse
import io
import os
from bisect import bisect
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from measure import (
    THREADS,
    Crew,
    Work,
    header,
    interleaved,
    photographs,
    probe,
    rates,
    summary,
    write,
)  # fmt: skip
from PIL import Image, ImageOps
from torch import Tensor
from views_peers import BATCHED, PER_IMAGE, one_by_one

from selfsight.data.base import Pixels, Source
from selfsight.data.decode import decode
from selfsight.data.loader import Loader
from selfsight.views import IMAGENET_MEAN, IMAGENET_STD, apply, cpu, expand
from selfsight.views.presets import crops, simclr_view
from selfsight.views.spec import View

PHOTOS, EXTENT, BYTES = 64, (400, 300), 33_000
SMALL, SIDE = 4096, 32
BATCH = {"small": 256, "jpeg": 32, "crops": 32}  # of a peer's process
TURN = 0.5  # seconds at least
PACKAGES = (
    *("lightly", "albumentations", "kornia", "torchvision"),
    *("pillow", "simplejpeg", "opencv-python-headless", "numba"),
)


class Case(NamedTuple):
    """pair: peers on two processes of a thread each; one: what runs in one on two threads"""

    title: str
    views: list[View]
    pair: tuple[str, ...]
    one: tuple[str, ...]


_FASTEST = "torch, compiled, matrix products"

CASES = {
    "small": Case(
        "two SimCLR views of 32 px, no blur, from 32 × 32 bytes in memory",
        [simclr_view(size=SIDE, blur=0.0, count=2)],
        (*PER_IMAGE, *BATCHED),
        (
            *(f"{_FASTEST}, two threads", "copy of the output", "copy of the output, in cache"),
            *("selfsight", "selfsight, batches of 256", "selfsight, bfloat16"),
        ),
    ),
    "jpeg": Case(
        "two SimCLR views of 224 px, blur with probability 0.5, from JPEGs of 400 × 300",
        [simclr_view(count=2)],
        ("lightly", "torchvision v1, PIL", "torchvision v2, tensors", "albumentations"),
        ("decoding alone", "selfsight"),
    ),
    "crops": Case(
        "SwAV's 2 × 224 + 6 × 96 px from JPEGs of 400 × 300",
        crops(simclr_view(), 6),
        ("lightly", "torchvision v1, PIL", "albumentations"),
        ("selfsight",),
    ),
}


class Jpegs(Source):
    """Files whose bytes lie in memory."""

    def __init__(self, files: Sequence[bytes]) -> None:
        self.name, self.files = "JPEGs", files
        self.sizes = np.array([decode(file).shape[:2] for file in files], np.int32)

    def read(self, index: int, least: int = 0) -> Pixels:
        return decode(self.files[index], least)

    def path(self, index: int) -> str:
        return str(index)

    def digest(self, index: int) -> bytes:
        return b""

    @property
    def fingerprint(self) -> str:
        return ""


def jpegs(folder: Path) -> list[bytes]:
    """Photographs of one extent, at the lowest quality at which they weigh BYTES on average."""
    images = []
    for file in photographs(folder, PHOTOS):
        with Image.open(file) as image:
            images.append(ImageOps.fit(image.convert("RGB"), EXTENT))

    def saved(quality: int) -> list[bytes]:
        found = []
        for image in images:
            stream = io.BytesIO()
            image.save(stream, "JPEG", quality=quality)
            found.append(stream.getvalue())
        return found

    def weight(quality: int) -> float:
        return sum(map(len, saved(quality))) / len(images)

    qualities = range(50, 100)
    return saved(qualities[min(bisect(qualities, BYTES, key=weight), len(qualities) - 1)])


def small(files: Sequence[bytes]) -> np.ndarray:
    """(SMALL, 32, 32, 3): squares of the photographs."""
    width, height = (side // SIDE * SIDE for side in EXTENT)
    photos = np.stack([decode(file)[:height, :width] for file in files])
    tiles = photos.reshape(len(files), height // SIDE, SIDE, width // SIDE, SIDE, 3)
    return np.ascontiguousarray(tiles.swapaxes(2, 3).reshape(-1, SIDE, SIDE, 3)[:SMALL])


def build(case: str, content: Any, name: str, number: int, processes: int) -> Work:
    """What a process does in one run of `name`: its share of the content, once."""
    own, views = content[number::processes], expand(CASES[case].views)
    if name in PER_IMAGE:
        peer = PER_IMAGE[name](views)
        return lambda: one_by_one(peer, own, BATCH[case])
    if name.removesuffix(", two threads") in BATCHED:
        return _batched(name.removesuffix(", two threads"), views[0], own)
    if name.startswith("copy"):
        return _copy(BATCH[case] if name.endswith("in cache") else SMALL)
    if name == "decoding alone":
        return lambda: _decode(own)
    if case == "small":
        batch = BATCH[case] if name.endswith("of 256") else SMALL
        dtype = torch.bfloat16 if name.endswith("bfloat16") else torch.float32
        return _applied(views, own, batch, dtype)
    return _loaded(views, own)


def _batched(name: str, view: View, images: np.ndarray) -> Work:
    made = BATCHED[name](view)
    batches = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().split(BATCH["small"])

    @torch.inference_mode()
    def work() -> None:
        for batch in batches:
            made(batch)

    return work


def _copy(count: int) -> Work:
    """Of SMALL images' views, through a buffer of `count`."""
    pixels = torch.rand(count, 2, 3, SIDE, SIDE)
    out = torch.empty_like(pixels)

    def work() -> None:
        for _ in range(SMALL // count):
            out.copy_(pixels)

    return work


def _decode(files: Sequence[bytes]) -> None:
    """In parts as long as the loader's."""

    def part(of: slice) -> None:
        for file in files[of]:
            decode(file)

    cpu.in_parts(part, len(files), EXTENT[0] * EXTENT[1], THREADS)


def _applied(views: list[View], images: np.ndarray, batch: int, dtype: torch.dtype) -> Work:
    position = 0

    def work() -> None:
        nonlocal position
        for start in range(0, len(images), batch):
            part = images[start : start + batch]
            apply(part, views, position=position, dtype=dtype, threads=THREADS)
            position += 1

    return work


def _loaded(views: list[View], files: Sequence[bytes]) -> Work:
    """Whole batches as a run has them; each image is decoded for each."""
    loader = Loader(
        Jpegs(files), views, batch=len(files), seed=0, mean=IMAGENET_MEAN, std=IMAGENET_STD,
        threads=THREADS, ram_bytes=0,
    )  # fmt: skip
    step = 0

    def work() -> None:
        nonlocal step
        made: list[Tensor] = loader.batch(step).views
        assert len(made) == len(views)
        step += 1

    return work


def measured(name: str, content: Any, turns: int) -> dict[str, object]:
    case = CASES[name]
    print(case.title, flush=True)
    with ExitStack() as stack:
        made = partial(build, name, content)
        pair = stack.enter_context(Crew(made, processes=THREADS, threads=1))
        one = stack.enter_context(Crew(made))
        sides = {peer: pair.side(peer) for peer in case.pair}
        sides |= {other: one.side(other) for other in case.one}
        before = probe()
        taken = interleaved(sides, turns, TURN)
        after = probe()
    found = {side: rates(len(content), times) for side, times in taken.items()}
    summary(found, [before, after])
    return {
        "title": case.title,
        "images": len(content),
        "turns": turns,
        "rates": found,
        "probe_gflops": [before, after],
        "load": os.getloadavg(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--photos", type=Path, required=True, help="a folder of JPEGs")
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), metavar="CASE")
    parser.add_argument("--turns", type=int, default=7, help="that are counted")
    parser.add_argument("--out", type=Path, help="where the numbers are written as JSON")
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # it would ask the network for its version
    files = jpegs(options.photos)
    weight = sum(map(len, files)) / len(files)
    print(f"{len(files)} JPEGs of {weight:,.0f} bytes", flush=True)
    cases = {}
    for name in options.only:
        content = small(files) if name == "small" else files
        cases[name] = measured(name, content, options.turns)
    result = {
        **header("python benchmarks/views.py --photos FOLDER", *PACKAGES),
        "jpegs": {"count": len(files), "extent": EXTENT, "bytes": round(weight)},
        "cases": cases,
    }
    if options.out:
        write(options.out, result)


if __name__ == "__main__":
    main()
