"""How the CPU's kernels are compiled: once, to run without Python's lock.

numba keeps what it compiled as pickles. They are read only from a folder of the user's own
that nobody else can write to; without one every process compiles for itself.
"""

import contextlib
import functools
import hashlib
import os
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
    "bytes16",
    "exact",
    "kernel",
    "load4",
    "load16",
    "loose",
    "plus",
    "store",
    "store_planes",
    "times",
]

_RULES: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
# Sums may be reordered and a product and a sum may be one operation, so the rounding is a
# kernel's own, but the same for every sample: which loop runs never depends on the others.
_LOOSE = {"reassoc", "contract", "nsz", "arcp"}


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
        self._lock = threading.Lock()
        self._compiled: Any = None

    def __call__(self, *arguments: Any) -> None:
        if self._compiled is None:
            self.compile()
        self._compiled(*arguments)

    def compile(self) -> None:
        """Now rather than at the first call."""
        with self._lock, _kept() as keep:
            if self._compiled is None:
                self._compiled = numba.njit(self._signature, cache=keep, **_RULES)(self._function)


def kernel(*kinds: Any) -> Callable[[Callable[..., None]], Kernel]:
    """Makes a kernel of a function that takes these kinds and answers nothing."""
    return functools.partial(Kernel, types.void(*kinds))


@contextlib.contextmanager
def _kept() -> Iterator[bool]:
    """Points numba's cache to our folder, and tells whether there is one."""
    folder, before = _folder(), numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(folder or before)
    try:
        yield folder is not None
    finally:
        numba.config.CACHE_DIR = before


def _folder() -> Path | None:
    # numba looks at the time of one file; a kernel is made of several.
    sources = sorted(Path(__file__).parent.glob("*.py"))
    key = hashlib.sha256(numba.__version__.encode())
    for source in sources:
        key.update(source.read_bytes())
    folder = cache_folder() / "kernels" / key.hexdigest()[:16]
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with open(folder / ".writable", "wb"):
            pass
        found = folder.lstat()
    except OSError:
        return None
    ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
    return folder if ours and not found.st_mode & 0o077 else None


# Floats taken four (a pixel) or sixteen at a time, where the compiler does not find the
# parallelism of interleaved pixels or of a sum over taps by itself. What a machine's registers
# do not hold at once, LLVM splits.


@final
class _Floats(types.Type):
    def __init__(self, lanes: int) -> None:
        super().__init__(f"float32x{lanes}")
        self.vector = ir.VectorType(ir.FloatType(), lanes)


@register_model(_Floats)
class _Model(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: _Floats) -> None:
        super().__init__(manager, kind, kind.vector)


_FOUR, _SIXTEEN = _Floats(4), _Floats(16)


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
def load4(typing: Any, array: Any, index: Any) -> Any:
    """array[index : index + 4]"""
    return _load(_FOUR, array)


@intrinsic
def load16(typing: Any, array: Any, index: Any) -> Any:
    """array[index : index + 16]"""
    return _load(_SIXTEEN, array)


@intrinsic
def bytes16(typing: Any, array: Any, index: Any) -> Any:
    """array[index : index + 16], bytes, as floats"""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        vector = ir.VectorType(ir.IntType(8), 16)
        loaded = builder.load(_place(context, builder, signature.args[0], values, vector))
        loaded.align = 1
        return builder.uitofp(loaded, _SIXTEEN.vector)

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
def store_planes(
    typing: Any, r: Any, g: Any, b: Any, index: Any, p0: Any, p1: Any, p2: Any, p3: Any
) -> Any:
    """Four pixels, of which the first three floats are colours, into three planes."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        *planes, index, p0, p1, p2, p3 = values
        low = [_shuffled(builder, *pair, 0, 4, 1, 5) for pair in ((p0, p1), (p2, p3))]
        high = [_shuffled(builder, *pair, 2, 6, 3, 7) for pair in ((p0, p1), (p2, p3))]
        colours = (
            _shuffled(builder, *low, 0, 1, 4, 5),
            _shuffled(builder, *low, 2, 3, 6, 7),
            _shuffled(builder, *high, 0, 1, 4, 5),
        )
        for plane, kind, colour in zip(planes, signature.args[:3], colours, strict=True):
            place = _place(context, builder, kind, (plane, index), _FOUR.vector)
            builder.store(colour, place).align = 4
        return context.get_dummy_value()

    return types.void(r, g, b, types.uint64, p0, p1, p2, p3), generate


_LANE = ir.IntType(32)


def _shuffled(builder: Any, a: Any, b: Any, *lanes: int) -> Any:
    mask = ir.Constant(ir.VectorType(_LANE, len(lanes)), list(lanes))
    return builder.shuffle_vector(a, b, mask)
