"""What this machine can do, as its flags and limits say; nothing here is timed."""

import ctypes
import functools
import os
import platform
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import torch

from selfsight import __version__
from selfsight.errors import ConfigError

__all__ = [
    "cache_folder",
    "cores",
    "cpu_quota",
    "device_named",
    "keep_pages",
    "native_bf16",
    "versions",
]

# mallopt's parameter numbers in glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4


def device_named(name: str) -> str:
    """The device that is meant: auto is the fastest here."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdecimal()) or name.endswith(":"):
        raise ConfigError(f"unknown device {name}; it is auto, cpu or cuda")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device cuda: torch sees no CUDA device here; see selfsight doctor")
    if number and int(number) >= (torch.cuda.device_count() if kind == "cuda" else 1):
        raise ConfigError(f"device {name}: there is no device of that number here")
    return name


def versions() -> dict[str, str]:
    """Of what computes the numbers."""
    libraries = ("torch", "torchvision", "timm", "numba", "pillow")
    return {
        "selfsight": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in libraries},
    }


def native_bf16(device: str) -> bool:
    """Whether bf16 is computed by the hardware rather than emulated."""
    if device.startswith("cuda"):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(_flags() & {"avx512_bf16", "amx_bf16", "bf16"})


@functools.cache
def _flags() -> frozenset[str]:
    """The CPU's capability flags as Linux lists them; none are known elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return frozenset()
    found = (line.partition(":")[2] for line in lines if line.startswith(("flags", "Features")))
    return frozenset(next(found, "").split())


def cores() -> int:
    """Processors that this process may use."""
    affinity: set[int] = getattr(os, "sched_getaffinity", lambda _: set())(0)
    return len(affinity) or os.cpu_count() or 1


def cpu_quota(
    groups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> float | None:
    """How many cores' time the process's control groups allow it, as containers are limited;
    None without a limit."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return None
    return min((quota for line in lines for quota in _quotas(groups, line)), default=None)


def _quotas(groups: Path, line: str) -> Iterator[float]:
    """Of a group and of all around it."""
    _, controllers, path = line.split(":", 2)
    if controllers and "cpu" not in controllers.split(","):
        return
    base = groups / "cpu" if controllers else groups
    inner = base / path.lstrip("/")
    for folder in (inner, *inner.parents):
        files = ("cpu.cfs_quota_us", "cpu.cfs_period_us") if controllers else ("cpu.max",)
        try:
            words = " ".join((folder / file).read_text() for file in files).split()
        except OSError:
            continue
        if words[0] not in ("max", "-1"):
            yield int(words[0]) / int(words[1])


def cache_folder(cache: str | os.PathLike[str] | None = None) -> Path:
    """`cache`, else $SELFSIGHT_CACHE, else $XDG_CACHE_HOME/selfsight, else ~/.cache/selfsight."""
    if cache is not None:
        return Path(cache).expanduser()
    if named := os.environ.get("SELFSIGHT_CACHE"):
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "selfsight"


def keep_pages() -> bool:
    """Let glibc keep freed memory, so that large temporaries cost no page faults.

    Takes effect for allocations after the call, of the whole process, unless
    SELFSIGHT_KEEP_PAGES is 0; answers whether it was possible.
    """
    if os.environ.get("SELFSIGHT_KEEP_PAGES") == "0":
        return False
    if not sys.platform.startswith("linux") or platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    kept = libc.mallopt(_MMAP_MAX, 0) and libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    return bool(kept)
