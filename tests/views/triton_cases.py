"""What the GPU's kernels are tried on, in a process of its own: Triton decides on import
whether kernels are interpreted (TRITON_INTERPRET=1, on the CPU) or compiled.

python triton_cases.py render: JSON of name: [largest difference, share of pixels off by more
than 1 / 255] of each case in CASES, against the reference
python triton_cases.py compile: JSON of kernel: what it needs on an sm_90, without a GPU
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scenes import PLAIN, photo, table
from torch import Tensor

from selfsight import philox
from selfsight.errors import DataError
from selfsight.philox import Purpose
from selfsight.views import IMAGENET_MEAN, IMAGENET_STD, reference
from selfsight.views.presets import byol_views, dino_views, moco_view, simclr_view
from selfsight.views.sample import Table, sample
from selfsight.views.spec import View

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"

# More pixels than a program has threads, and no multiple of them.
SIZE = 23

SHAPES = [(40, 29), (1, 9), (31, 1), (1, 1)]

OPERATORS: dict[str, dict[str, Any]] = {
    "whole": {},
    "flip": {"flip": [1, 1, 0, 1]},
    "turns": {"turns": [3, 1, 1, 2], "flip": [0, 1, 0, 1]},
    "brightness": {"brightness": [1.8, 0.3, 1, 0.7]},
    "contrast": {"contrast": [1.8, 0.0, 1, 0.3]},
    "saturation": {"saturation": [1.8, 0.0, 1, 0.3]},
    "hue": {"hue": [0.13, -0.5, 0, 0.5]},
    "gray": {"gray": [1, 1, 0, 1]},
    "blur": {"sigma": [1.9, 0.1, 0, 2.0]},
    "solarize": {"solarize": [1, 1, 0, 1]},
    "equalize": {"equalize": [1, 1, 0, 1]},
    "cutout": {"cutout_x": [0.3, 0, 0.999, -1], "cutout_y": [0.8, 0, 0.2, -1]},
    "noise": {"noise": [0.1, 0.3, 0, 0.1]},
    "sobel": {"sobel": [1, 1, 0, 1]},
    "blur, solarize": {"sigma": 1.5, "solarize": 1},
    "blur, equalize": {"sigma": 1.5, "equalize": [1, 1, 0, 1]},
    "blur, sobel": {"sigma": [1.5, 0.3, 0, 1.5], "sobel": 1},
    "equalize, sobel": {"equalize": 1, "cutout_x": 0.3, "cutout_y": 0.5, "sobel": 1},
}
EVERYTHING = View(
    size=SIZE,
    **dict.fromkeys(
        ("flip", "rotate", "gray", "blur", "solarize", "equalize", "cutout", "noise", "sobel"), 0.4
    ),
)
CHAINS = {
    "simclr": simclr_view(),
    "moco_v1": moco_view(1),
    "moco_v2": moco_view(2),
    "byol, first": byol_views()[0],
    "byol, second": byol_views()[1],
    "dino, small": dino_views(1)[2],
    "everything": EVERYTHING,
}


def difference(x: Tensor, expected: Tensor) -> list[float]:
    assert x.shape == expected.shape
    off = (x.cpu().float() - expected).abs()
    return [float(off.max()), float((off > 1 / 255 + 1e-6).any(dim=1).float().mean())]


def both(images: Any, rows: Table, view: View, **statistics: Any) -> list[float]:
    from selfsight.views import cuda

    ours = cuda.render(images, rows, view, device=DEVICE, **statistics)
    assert ours.dtype == torch.float32
    assert ours.is_contiguous(memory_format=torch.channels_last)
    return difference(ours, reference.render(images, rows, view, **statistics))


def operator(name: str) -> list[float]:
    images = [photo(*shape, seed) for seed, shape in enumerate(SHAPES)]
    rows = table(images, **OPERATORS[name])
    return both(images, rows, View(size=SIZE, space="raw"), **PLAIN)


def chain(name: str) -> list[float]:
    view = CHAINS[name].scaled(SIZE, base=CHAINS[name].size)
    shapes = np.random.default_rng(1).integers(1, 40, (6, 2))
    images = [photo(*shape, seed) for seed, shape in enumerate(shapes)]
    position = 2**33 + 2**31 + np.arange(6)
    rows = sample(view, reference.sizes(images), seed=2**40 + 2**31, position=position, index=3)
    statistics = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD} if view.space == "rgb" else PLAIN
    largest, share = both(images, rows, view, **statistics)
    # In units before the normalisation.
    return [largest * min(statistics["std"]), share]


def boxes() -> list[float]:
    """Crops smaller and larger than the view, of one pixel, at the image's borders."""
    images = [photo(50, 60)] * 6
    columns = {
        "top": [3, 10, 49, 0, 20, 0],
        "left": [5, 0, 59, 10, 0, 17],
        "height": [20, 40, 1, 50, 1, 23],
        "width": [14, 9, 1, 50, 60, 23],
        "flip": [0, 1, 0, 1, 0, 0],
    }
    return both(images, table(images, **columns), View(size=SIZE, space="raw"), **PLAIN)


def tiny() -> list[float]:
    """Views of one and two pixels, all operators on."""
    every = dict.fromkeys(("flip", "gray", "blur", "solarize", "cutout", "noise"), 1.0)
    images = [photo(2, 3), photo(1, 1)]
    results = []
    for size in (1, 2):
        view = View(size=size, space="raw", **every)
        rows = sample(view, reference.sizes(images), seed=0, position=np.arange(2), index=0)
        results.append(both(images, rows, view, **PLAIN))
    return np.max(results, axis=0).tolist()


def wide() -> list[float]:
    """A blur of seven taps, all in use or not."""
    images = [photo(61, 61), photo(70, 50)]
    rows = table(images, sigma=[2.0, 0.3], contrast=1.5)
    return both(images, rows, View(size=61, space="raw"), **PLAIN)


def orders() -> list[float]:
    images = [photo(5, 6, seed) for seed in range(24)]
    jitter = {"brightness": 1.5, "contrast": 1.6, "saturation": 0.4, "hue": 0.15}
    rows = table(images, order=list(range(24)), gray=[0, 0, 0, 1] * 6, **jitter)
    return both(images, rows, View(size=5, space="raw"), **PLAIN)


def lab() -> list[float]:
    images = [photo(20, 21), np.zeros((2, 2, 3), np.uint8), np.full((2, 2, 3), 5, np.uint8)]
    return both(images, table(images), View(size=SIZE, space="lab"), **PLAIN)


def draws() -> list[float]:
    """The normal numbers themselves, of a long seed and a long position."""
    from selfsight.views import cuda

    image = np.full((SIZE, SIZE, 3), 128, np.uint8)
    plain = table([image, image], noise=0.05)
    rows = Table(plain.values, 2**63 + 2**31 + 7, np.array([2**35 + 2**31, 3]), 5)
    x = cuda.render([image] * 2, rows, View(size=SIZE, space="raw"), device=DEVICE, **PLAIN)
    numbers = philox.normal(rows.seed, rows.position, Purpose.NOISE, x[0].numel(), rows.index)
    expected = torch.from_numpy(numbers).view(2, 3, SIZE, SIZE)
    return difference((x.cpu() - 128 / 255) / 0.05, expected)


def bits() -> list[float]:
    """Two calls, other neighbours, other containers: the same bits."""
    from selfsight.views import cuda

    images = np.stack([photo(20, 31, seed) for seed in range(2)])
    rows = sample(EVERYTHING, reference.sizes(images), seed=3, position=np.array([1, 6]), index=1)

    def render(images: Any, rows: Table) -> Tensor:
        x: Tensor = cuda.render(images, rows, EVERYTHING, device=DEVICE, **PLAIN)
        return x

    first = render(images, rows)
    resident = torch.tensor(images).to(DEVICE)
    others = (
        render(list(images), rows),
        render(resident, rows),
        render(resident.mT.contiguous().mT, rows),
        torch.cat([render(images[i : i + 1], rows.take(slice(i, i + 1))) for i in (0, 1)]),
        render(images[::-1], rows.take(np.array([1, 0]))).flip(0),
    )
    assert all(torch.equal(first, other) for other in others)
    return [0.0, 0.0]


def types() -> list[float]:
    """The other types are float32, rounded."""
    from selfsight.views import cuda

    images = [photo(30, 31, seed) for seed in range(2)]
    rows = table(images, contrast=1.4, sigma=[0, 1])
    options = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD, "device": DEVICE}
    whole = cuda.render(images, rows, View(size=SIZE), **options)
    for dtype in (torch.bfloat16, torch.float16):
        x = cuda.render(images, rows, View(size=SIZE), dtype=dtype, **options)
        assert x.dtype == dtype
        assert x.is_contiguous(memory_format=torch.channels_last)
        if DEVICE == "cpu" and dtype == torch.bfloat16:
            # The interpreter cuts digits off where hardware rounds.
            assert ((x.float() - whole).abs() <= whole.abs() / 128).all()
        else:
            assert torch.equal(x, whole.to(dtype)), dtype
    return [0.0, 0.0]


def refusals() -> list[float]:
    """What is no image, and a table of another length; nothing for nothing."""
    from selfsight.views import cuda

    images, view = [photo(8, 8)] * 2, View(size=8)
    for wrong in (images[:1], [np.zeros((8, 8, 3), np.float32)] * 2):
        try:
            cuda.render(wrong, table(images), view, device=DEVICE, **PLAIN)
        except DataError:
            continue
        raise AssertionError("not refused")
    none = table(images).take(slice(0, 0))
    assert cuda.render([], none, view, device=DEVICE, **PLAIN).shape == (0, 3, 8, 8)
    return [0.0, 0.0]


CASES: dict[str, Callable[[], list[float]]] = {
    **{name: lambda name=name: operator(name) for name in OPERATORS},  # type: ignore[misc]
    **{name: lambda name=name: chain(name) for name in CHAINS},  # type: ignore[misc]
    **{c.__name__: c for c in (boxes, tiny, wide, orders, lab, draws, bits, types, refusals)},
}


def compiled() -> dict[str, dict[str, int]]:
    """Registers, stack and shared memory of the kernels, by Triton's compiler and assembler."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from selfsight.views import cuda

    pointers = {"pixels": "*u8", "rows": "*fp32", "canvas": "*fp32", "across": "*fp32"}
    pointers["sums"] = "*i64"
    constants = {"SIZE": 224, "RADIUS": 11}
    found = {}
    for name, kernel, kind, space in (
        ("begin", cuda._begin, "fp32", "rgb"),
        ("finish to float32", cuda._finish, "fp32", "rgb"),
        ("finish to bfloat16", cuda._finish, "bf16", "rgb"),
        ("finish to lab", cuda._finish, "bf16", "lab"),
    ):
        known = {**constants, "LAB": space == "lab"}
        signature = {**pointers, "views": f"*{kind}"}
        names = kernel.arg_names
        source = ASTSource(
            kernel,
            {argument: signature.get(argument, "constexpr") for argument in names},
            {argument: known[argument] for argument in names if argument in known},
            {(i,): [["tt.divisibility", 16]] for i, a in enumerate(names) if a in signature},
        )
        target = GPUTarget("cuda", 90, 32)
        made = triton.compile(source, target=target, options=dict(cuda._LAUNCH))
        assert ".target sm_90" in made.asm["ptx"]
        found[name] = {"shared": made.metadata.shared, **resources(made.asm["cubin"])}
    return found


def resources(cubin: bytes) -> dict[str, int]:
    import triton

    folder = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    file = Path(os.environ["TRITON_CACHE_DIR"]) / "kernel.cubin"
    file.write_bytes(cubin)
    command = [folder / "cuobjdump", "-res-usage", file]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {name.lower(): int(n) for name, n in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}


if __name__ == "__main__":
    if sys.argv[1] == "compile":
        print(json.dumps(compiled()))
    else:
        print(json.dumps({name: case() for name, case in CASES.items()}))
