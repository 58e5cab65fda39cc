"""The CPU's kernels never touch memory beside an image or beside their views."""

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from scenes import PLAIN, photo
from torch import Tensor

from selfsight.views import cpu, reference
from selfsight.views.sample import sample
from selfsight.views.spec import View

VIEW = View(
    rotate=0.5, solarize=0.3, equalize=0.2, cutout=0.5, noise=0.5, sobel=0.3, blur_sigma=(0.1, 5)
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 15, 16, 17, 31, 32, 33])
def test_the_views_beside_those_asked_for_stay_as_they_are(size, dtype):
    images = [photo(5 + i, 60 - 3 * i, i) for i in range(12)]
    view = replace(VIEW, size=size)
    drawn = sample(view, reference.sizes(images), seed=0, position=np.arange(12), index=0)
    canvas = cpu.empty(20, view, dtype).fill_(torch.nan)
    cpu.paint(images, drawn, view, out=canvas[4:16], **PLAIN)
    assert canvas[:4].isnan().all()
    assert canvas[16:].isnan().all()
    assert torch.equal(canvas[4:16], cpu.render(images, drawn, view, dtype=dtype, **PLAIN))


def test_what_was_in_the_views_memory_leaves_no_trace():
    images = [photo(20, 30, i) for i in range(6)]
    for size in (1, 7, 32):
        view = replace(VIEW, size=size)
        drawn = sample(view, reference.sizes(images), seed=0, position=np.arange(6), index=0)

        def painted(before: float, view: View = view, drawn=drawn) -> Tensor:
            out = cpu.empty(6, view, torch.float32).fill_(before)
            cpu.paint(images, drawn, view, out=out, **PLAIN)
            return out

        assert torch.equal(painted(torch.inf), painted(0.0))


# Pages that end the process when they are touched lie before and behind each image and its view.
FENCED = """
import ctypes, mmap, os, signal
import numba, numpy as np, torch
from dataclasses import replace
from scenes import PLAIN, photo, table
from types import SimpleNamespace
from selfsight.views import cpu, geometry
from selfsight.views.sample import sample
from test_bounds import VIEW

PAGE = mmap.PAGESIZE
protect = ctypes.CDLL(None).mprotect
protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

def fenced(count, at_the_end):
    pages = -(-count // PAGE)
    block = mmap.mmap(-1, (pages + 2) * PAGE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(block))
    for fence in (start, start + (pages + 1) * PAGE):
        assert protect(fence, PAGE, 0) == 0
    first = (pages + 1) * PAGE - count if at_the_end else PAGE
    return np.frombuffer(block, np.uint8)[first - 1 : first + count + 1]

whole = fenced(48, True)
for outside in (0, -1):
    child = os.fork()
    if child == 0:
        whole = fenced(PAGE, True)
        whole[outside].item()
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) in (signal.SIGSEGV, signal.SIGBUS)

def check(image, drawn, view, dtype):
    expected = cpu.render([image] * len(drawn), drawn, view, dtype=dtype, **PLAIN)
    width = torch.empty(0, dtype=dtype).element_size()
    for at_the_end in (False, True):
        pixels = fenced(image.size, at_the_end)[1:-1].reshape(1, *image.shape)
        pixels[:] = image
        room = fenced(3 * view.size**2 * width, at_the_end)[1:-1]
        room = torch.from_numpy(room.view(np.float32 if width == 4 else np.int16)).view(dtype)
        out = room.view(1, view.size, view.size, 3).permute(0, 3, 1, 2)
        for i in range(len(drawn)):
            cpu.paint(pixels, drawn.take(slice(i, i + 1)), view, out=out, **PLAIN)
            assert torch.equal(out[0], expected[i])

count = 0
shapes = [(1, 1), (1, 2), (2, 1), (1, 5), (1, 6), (2, 2), (5, 7), (1, 17), (17, 1), (16, 16),
          (33, 31), (3, 200), (200, 3), (90, 70)]
for height, width in shapes:
    image = photo(height, width)
    for size in (1, 2, 3, 5, 8, 16, 31, 32, 33, 48):
        view = replace(VIEW, size=size)
        extent = np.tile([height, width], (8, 1))
        crops = sample(view, extent, seed=size, position=np.arange(8), index=0)
        h, w = -(-height // 2), -(-width // 2)
        corners = table([image] * 5, top=[0, 0, 0, height - h, height - h],
                        left=[0, 0, width - w, 0, width - w], height=[height, h, h, h, h],
                        width=[width, w, w, w, w], flip=[1, 0, 1, 0, 1])
        for drawn in (crops, corners):
            check(image, drawn, view, torch.float32 if size % 2 else torch.bfloat16)
            count += len(drawn)

# Once more by the kernel's parts, with all it works in between fences, too: an overflow in the
# heap would not be seen.

def own(array):
    copy = fenced(array.nbytes, at_the_end)[1:-1].view(array.dtype).reshape(array.shape)
    copy[:] = array
    return copy

def empty(shape, kind):
    whole = np.full(shape, np.nan if np.dtype(kind).kind == "f" else 0, kind)
    if not whole.size:
        return whole
    return own(whole) if whole.ndim == 1 else [own(row) for row in whole]

@numba.njit
def workspace(height, width, size):
    return geometry.workspace(height, width, size)

compiled = {name: vars(cpu)[name] for name in ("np", "workspace", "_paint")}
by_parts = {
    "np": SimpleNamespace(**{**vars(np), "empty": empty}),
    "workspace": lambda *extent: tuple(map(own, workspace(*extent))),
    "_paint": cpu._paint._function,
}
rng, close = np.random.default_rng(0), []
for height, width in [*shapes, (301, 203), *rng.integers(1, 120, (12, 2)).tolist()]:
    image = photo(height, width)
    for size in (1, 2, 3, 5, 8, 16, 17, 31, 33, 64):
        view = replace(VIEW, size=size, space="raw", flip=0.5, blur=1)
        extent = np.tile([height, width], (4, 1))
        drawn = sample(view, extent, seed=size, position=np.arange(4), index=0)
        exact = cpu.render([image] * 4, drawn, view, **PLAIN)
        for at_the_end in (False, True):
            vars(cpu).update(by_parts)
            again = cpu.render([image] * 4, drawn, view, **PLAIN)
            vars(cpu).update(compiled)
            close.append(((again - exact).abs() < 1e-3).all(dim=1).flatten())
            count += 4
assert torch.cat(close).float().mean() > 0.999
print(count)
"""


def test_nothing_outside_an_image_is_read_nor_outside_a_view_written() -> None:
    here = os.pathsep.join([os.path.dirname(__file__), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", FENCED],
        env={**os.environ, "PYTHONPATH": here},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == 14 * 10 * 13 + 27 * 10 * 2 * 4
