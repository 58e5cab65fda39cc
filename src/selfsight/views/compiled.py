"""How the CPU's kernels are compiled: once, to run without Python's lock.

numba keeps what it compiled as pickles. They are read only from a folder of the user's own
that nobody else can write to; without one every process compiles for itself.
"""

import contextlib
import functools
import hashlib
import os
import shutil
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, final

import numba
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, models, register_model

from selfsight.machine import cache_folder

__all__ = [
    "Kernel",
    "exact",
    "kernel",
    "kernels_folder",
    "load16",
    "loose",
    "pixels4",
    "plus",
    "store",
    "store_columns",
    "store_planes",
    "times",
]

_RULES: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
# Sums may be reordered and a product and a sum may be one operation, so the rounding is a
# kernel's own, but the same for every sample: which loop runs never depends on the others.
_LOOSE = {"reassoc", "contract", "nsz", "arcp"}
_COMPILING = threading.Lock()  # of all kernels: numba has one CACHE_DIR


def exact(function: Callable[..., Any]) -> Any:
    """A part of kernels, compiled with them, that rounds as numpy does."""
    return numba.njit(**_RULES)(function)


def loose(function: Callable[..., Any]) -> Any:
    """A part of kernels, compiled with them, that may round in its own way."""
    return numba.njit(fastmath=_LOOSE, **_RULES)(function)


@final
class Kernel:
    """A kernel that Python calls; compiled, or read from the cache, at the first call."""

    def __init__(self, signature: Any, function: Callable[..., None]) -> None:
        self._signature, self._function = signature, function
        self._compiled: Any = None

    def __call__(self, *arguments: Any) -> None:
        if self._compiled is None:
            self.compile()
        self._compiled(*arguments)

    def ready(self) -> bool:
        """Whether it needs no compiling."""
        folder = kernels_folder()
        name = self._function.__name__
        return self._compiled is not None or (
            folder is not None and any(folder.glob(f"**/*.{name}-*.nbc"))
        )

    def compile(self) -> None:
        """Now rather than at the first call."""
        with _COMPILING, _kept() as folder:
            if self._compiled is not None:
                return
            if folder is not None:
                try:
                    self._compiled = self._made(cache=True)
                    return
                # A damaged pickle raises anything, a full disk an OSError.
                except Exception:
                    shutil.rmtree(folder, ignore_errors=True)
            self._compiled = self._made(cache=False)

    def _made(self, cache: bool) -> Any:
        return numba.njit(self._signature, cache=cache, **_RULES)(self._function)


def kernel(*kinds: Any) -> Callable[[Callable[..., None]], Kernel]:
    """Makes a kernel of a function that takes these kinds and answers nothing."""
    return functools.partial(Kernel, types.void(*kinds))


@contextlib.contextmanager
def _kept() -> Iterator[Path | None]:
    """Points numba's cache to our folder if there is one."""
    folder, before = kernels_folder(), numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(folder or before)
    try:
        yield folder
    finally:
        numba.config.CACHE_DIR = before


def kernels_folder() -> Path | None:
    """Where kernels are kept; None where nobody could keep them from others."""
    # numba looks at the time of one file; a kernel is made of several.
    sources = sorted(Path(__file__).parent.glob("*.py"))
    key = hashlib.sha256(numba.__version__.encode())
    for source in sources:
        key.update(source.read_bytes())
    every = cache_folder() / "kernels"
    folder = every / key.hexdigest()[:16]
    try:
        for place, closed in ((every.parent, 0o002), (every, 0o022), (folder, 0o077)):
            place.mkdir(parents=True, exist_ok=True, mode=0o700)
            found = place.stat() if place == every.parent else place.lstat()
            ours = found.st_uid == os.getuid() or place == every.parent
            shared = found.st_mode & closed and not found.st_mode & stat.S_ISVTX
            if not stat.S_ISDIR(found.st_mode) or not ours or shared:
                return None
        with open(folder / ".writable", "wb"):
            return folder
    except OSError:
        return None


# Sixteen floats at a time, where the compiler does not find the parallelism of interleaved
# pixels or of a sum over taps by itself. What a machine's registers do not hold at once, LLVM
# splits.


@final
class _Floats(types.Type):
    def __init__(self, lanes: int) -> None:
        super().__init__(f"float32x{lanes}")
        self.vector = ir.VectorType(ir.FloatType(), lanes)


@register_model(_Floats)
class _Model(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: _Floats) -> None:
        super().__init__(manager, kind, kind.vector)


_SIXTEEN = _Floats(16)


def _place(context: Any, builder: Any, kind: Any, element: Any, vector: Any) -> Any:
    """The address of an array's element, an array and an index, as that of a vector."""
    array, index = element
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), vector.as_pointer())


def _load(floats: _Floats, array: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        place = _place(context, builder, signature.args[0], values, floats.vector)
        loaded = builder.load(place)
        loaded.align = 4
        return loaded

    return floats(array, types.uint64), generate


@intrinsic
def load16(typing: Any, array: Any, index: Any) -> Any:
    """array[index : index + 16]"""
    return _load(_SIXTEEN, array)


@intrinsic
def pixels4(typing: Any, array: Any, index: Any) -> Any:
    """Four pixels of three bytes from array[index] on, as floats, each with one more behind
    it; 16 bytes are read."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        vector = ir.VectorType(ir.IntType(8), 16)
        loaded = builder.load(_place(context, builder, signature.args[0], values, vector))
        loaded.align = 1
        # Each byte to the bottom of four, the others zero: one shuffle instead of two.
        firsts = [3 * pixel + lane for pixel in range(4) for lane in range(4)]
        lanes = [place for first in firsts for place in (first, 16, 16, 16)]
        words = _shuffled(builder, loaded, ir.Constant(vector, None), *lanes)
        words = builder.bitcast(words, ir.VectorType(ir.IntType(32), 16))
        return builder.sitofp(words, _SIXTEEN.vector)

    return _SIXTEEN(array, types.uint64), generate


@intrinsic
def store(typing: Any, array: Any, index: Any, floats: Any) -> Any:
    """array[index : index + lanes] = floats"""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        place = _place(context, builder, signature.args[0], values[:2], floats.vector)
        builder.store(values[2], place).align = 4
        return context.get_dummy_value()

    return types.void(array, types.uint64, floats), generate


@intrinsic
def times(typing: Any, floats: Any, factor: Any) -> Any:
    """All of the floats times one number."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        vector = floats.vector
        one = builder.insert_element(
            ir.Constant(vector, ir.Undefined), values[1], ir.Constant(_LANE, 0)
        )
        splat = _shuffled(builder, one, one, *[0] * vector.count)
        return builder.fmul(values[0], splat, flags=["contract"])

    return floats(floats, types.float32), generate


@intrinsic
def plus(typing: Any, a: Any, b: Any) -> Any:
    """Sums, lane by lane."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.fadd(*values, flags=["contract"])

    return a(a, b), generate


@intrinsic
def store_columns(typing: Any, array: Any, index: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
    """Four rows of four pixels at array[index], by columns: the first pixels of all rows, …"""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        array, index, *rows = values
        for number, column in enumerate(_transposed(builder, rows, 4)):
            element = array, builder.add(index, ir.Constant(ir.IntType(64), 16 * number))
            place = _place(context, builder, signature.args[0], element, _SIXTEEN.vector)
            builder.store(column, place).align = 4
        return context.get_dummy_value()

    return types.void(array, types.uint64, a, b, c, d), generate


@intrinsic
def store_planes(
    typing: Any, r: Any, g: Any, b: Any, index: Any, pitch: Any, p: Any, q: Any, s: Any, t: Any
) -> Any:
    """Four columns of four pixels into three planes whose rows are `pitch` long."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        *planes, index, pitch, p, q, s, t = values
        colours = _transposed(builder, (p, q, s, t), 1)[:3]
        for row in range(4):
            for plane, kind, colour in zip(planes, signature.args[:3], colours, strict=True):
                four = _shuffled(builder, colour, colour, *range(4 * row, 4 * row + 4))
                place = _place(context, builder, kind, (plane, index), four.type)
                builder.store(four, place).align = 4
            index = builder.add(index, pitch)
        return context.get_dummy_value()

    return types.void(r, g, b, types.uint64, types.uint64, p, q, s, t), generate


def _transposed(builder: Any, rows: Any, size: int) -> list[Any]:
    """Of four vectors of 16: the 4 × 4 matrices of elements `size` long (1, four of them
    side by side, or 4) transposed, in two rounds that exchange halves."""
    a, b, c, d = rows
    if size == 1:
        first = [4 * i + j for i in range(4) for j in (0, 16, 1, 17)]
        second = [4 * i + j for i in range(4) for j in (2, 18, 3, 19)]
        low = [4 * i + j for i in range(4) for j in (0, 1, 16, 17)]
        high = [4 * i + j for i in range(4) for j in (2, 3, 18, 19)]
    else:
        first = [*range(4), *range(16, 20), *range(4, 8), *range(20, 24)]
        second = [*range(8, 12), *range(24, 28), *range(12, 16), *range(28, 32)]
        low, high = [*range(8), *range(16, 24)], [*range(8, 16), *range(24, 32)]
    ab, cd = _shuffled(builder, a, b, *first), _shuffled(builder, c, d, *first)
    ab2, cd2 = _shuffled(builder, a, b, *second), _shuffled(builder, c, d, *second)
    return [
        _shuffled(builder, ab, cd, *low),
        _shuffled(builder, ab, cd, *high),
        _shuffled(builder, ab2, cd2, *low),
        _shuffled(builder, ab2, cd2, *high),
    ]


_LANE = ir.IntType(32)


def _shuffled(builder: Any, a: Any, b: Any, *lanes: int) -> Any:
    mask = ir.Constant(ir.VectorType(_LANE, len(lanes)), list(lanes))
    return builder.shuffle_vector(a, b, mask)
