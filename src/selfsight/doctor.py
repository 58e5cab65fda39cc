"""What of this machine and this installation decides whether, and how fast, training runs."""

import importlib
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from math import ceil
from pathlib import Path
from typing import Literal

__all__ = ["Finding", "examine", "fits"]

_GIB = 2**30


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, whether it is well, what it is, and what to do."""

    name: str
    status: Literal["ok", "warn", "fail"]
    value: str
    advice: str = ""


def examine() -> list[Finding]:
    """Everything, in the order in which one thing rests on another."""
    findings: list[Finding] = []
    for check in _CHECKS:
        try:
            findings.append(check())
        except Exception as error:
            # What is examined may be broken in any way; the others are still looked at.
            name = check.__name__.strip("_").replace("_", " ")
            reason = (str(error) or type(error).__name__).splitlines()[0]
            findings.append(Finding(name, "fail", reason, "repair the lines above first"))
    return findings


def fits(version: str, requirement: str) -> bool:
    """Whether `version` meets a requirement like `timm<1.1,>=1.0.31`."""
    have = _numbers(version)
    compare: dict[str, Callable[[tuple[int, ...]], bool]] = {
        ">=": lambda want: have >= want,
        "<": lambda want: have < want,
        "!=": lambda want: have != want,
    }
    rules = re.findall(r"(>=|<|!=)\s*([\d.]+)", requirement.partition(";")[0])
    return all(compare[sign](_numbers(want)) for sign, want in rules)


def _numbers(version: str) -> tuple[int, ...]:
    plain = re.match(r"[\d.]*", version)
    numbers = [int(part) for part in plain[0].split(".") if part] if plain else []
    return tuple([*numbers, 0, 0, 0, 0][:4])


def _python() -> Finding:
    version = f"{platform.python_version()} ({sys.executable})"
    return Finding("python", "ok", version)


def _system() -> Finding:
    value = f"{platform.system()} {platform.release()} {platform.machine()}"
    if sys.platform == "win32":
        return Finding("system", "fail", value, "run it inside WSL2")
    return Finding("system", "ok", value)


def _package(name: str) -> Callable[[], Finding]:
    def check() -> Finding:
        wanted = [r for r in metadata.requires("selfsight") or [] if re.match(rf"{name}\b", r)]
        repair = f"pip install '{wanted[0] if wanted else name}'"
        try:
            version = metadata.version(name)
            importlib.import_module({"pillow": "PIL"}.get(name, name))
        except Exception as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            return Finding(name, "fail", f"cannot be loaded: {reason}", repair)
        if not all(fits(version, requirement) for requirement in wanted):
            return Finding(name, "fail", f"{version}, but selfsight needs {wanted[0]}", repair)
        return Finding(name, "ok", version)

    check.__name__ = name
    return check


def _torch_and_torchvision() -> Finding:
    import torch

    try:
        # Its operators are compiled against one torch and missing beside any other.
        nms = importlib.import_module("torchvision.ops").nms
        kept = nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([1.0]), 0.5)
        assert kept.tolist() == [0]
    except Exception as error:
        advice = "pip install --upgrade --force-reinstall torch torchvision (both, from one source)"
        reason = (str(error) or type(error).__name__).splitlines()[0]
        return Finding("torch + torchvision", "fail", f"do not match: {reason}", advice)
    return Finding("torch + torchvision", "ok", "match")


def _cores() -> Finding:
    import torch

    from selfsight.machine import cores

    usable = cores()
    threads = torch.get_num_threads()
    value = f"{usable} usable of {os.cpu_count()}, {threads} threads"
    if threads > usable:
        return Finding("cores", "warn", value, f"set OMP_NUM_THREADS={usable}")
    return Finding("cores", "ok", value)


def _memory() -> Finding:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else ""
    allowed = min(total, int(text)) if text.isdigit() else total
    value = f"{allowed / _GIB:.1f} GiB"
    if allowed < 4 * _GIB:
        return Finding("memory", "warn", value, "use a small --batch and --size")
    return Finding("memory", "ok", value)


def _bf16() -> Finding:

    from selfsight.machine import device_named, native_bf16

    device = device_named("auto")
    where = "GPU" if device == "cuda" else "CPU"
    value = f"native on this {where}" if native_bf16(device) else "no; float32 is used"
    return Finding("bf16", "ok", value)


def _cuda() -> Finding:
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return Finding("cuda", "ok", f"{torch.version.cuda}: {', '.join(names)}")
    if Path("/proc/driver/nvidia/version").exists():
        build = torch.version.cuda or "no CUDA"
        advice = "update the NVIDIA driver, or install a torch build that fits it"
        return Finding("cuda", "warn", f"a GPU that torch (built for {build}) cannot use", advice)
    return Finding("cuda", "ok", "no GPU; training runs on the CPU")


def _speed() -> Finding:
    import torch

    from selfsight.bench import probe
    from selfsight.machine import cores, cpu_quota, native_bf16

    found = probe(seconds=0.5, threads=min(torch.get_num_threads(), cores()))
    threads, quota = found.threads, cpu_quota()
    value = f"{found.gflops:.0f} GFLOP/s"
    if native_bf16("cpu"):
        value += f", {probe(threads=threads, dtype=torch.bfloat16).gflops:.0f} in bf16"
    value += f"; {threads} thread{'s' * (threads > 1)}, {found.busy:.2f} CPU seconds a second"
    if not found.starved:
        return Finding("speed", "ok", value)
    if quota is not None and quota < threads:
        advice = f"a CPU quota of {quota:g} cores: raise it, or set OMP_NUM_THREADS={ceil(quota)}"
        return Finding("speed", "warn", value, advice)
    return Finding("speed", "warn", value, "another process takes the cores: end it, or wait")


def _malloc() -> Finding:
    from selfsight.machine import keep_pages

    libc, version = platform.libc_ver()
    if libc != "glibc" or sys.platform != "linux":
        return Finding("malloc", "ok", f"{libc or 'the system'}: left as it is")
    switch = os.environ.get("SELFSIGHT_KEEP_PAGES")
    if keep_pages():
        state = "a run keeps freed pages for reuse (SELFSIGHT_KEEP_PAGES=0 turns it off)"
    elif switch == "0":
        state = "a run gives freed pages back: SELFSIGHT_KEEP_PAGES=0"
    else:
        state = "it does not let a run keep freed pages"
    return Finding("malloc", "ok", f"glibc {version}: {state}")


def _simplejpeg() -> Finding:
    from selfsight.data.jpeg import FAST

    try:
        version = metadata.version("simplejpeg")
    except metadata.PackageNotFoundError:
        return Finding("simplejpeg", "ok", "absent: Pillow decodes JPEGs, to the same pixels")
    if not FAST:
        advice = "pip install --force-reinstall simplejpeg; Pillow decodes until then"
        return Finding("simplejpeg", "warn", f"{version} cannot be loaded", advice)
    return Finding("simplejpeg", "ok", version)


def _kernels() -> Finding:
    from selfsight.machine import cache_folder
    from selfsight.views.compiled import kernels_folder

    folder = kernels_folder()
    if folder is not None:
        return Finding("kernels", "ok", f"compiled once, kept in {folder}")
    why = f"others can reach into {cache_folder() / 'kernels'}"
    try:
        cache_folder().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache_folder()):
            pass
    except OSError as error:
        why = f"{cache_folder()}: {error.strerror}"
    advice = "set SELFSIGHT_CACHE to a folder of your own"
    return Finding("kernels", "warn", f"compiled by every process for itself: {why}", advice)


def _decoding() -> Finding:
    from PIL import features

    from selfsight.data.decode import DECODER, FORMATS

    needed = {"JPEG": "jpg", "PNG": "zlib", "WEBP": "webp", "TIFF": "libtiff"}
    lost = [name for name in FORMATS if name in needed and not features.check(needed[name])]
    value = f"{', '.join(name for name in FORMATS if name not in lost)} ({DECODER})"
    if lost:
        advice = "install a Pillow wheel instead of building it"
        return Finding("image formats", "warn", f"{value}; not {', '.join(lost)}", advice)
    return Finding("image formats", "ok", value)


def _cache_folder() -> Finding:
    from selfsight.machine import cache_folder

    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        advice = "set SELFSIGHT_CACHE to a folder that can be written"
        return Finding("cache", "fail", f"{folder}: {error.strerror}", advice)
    return Finding("cache", "ok", str(folder))


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free
    value = f"{free / _GIB:.1f} GiB free in {Path.cwd()}"
    if free < 2 * _GIB:
        advice = "a ResNet-50 run keeps about 1 GiB; free some space or choose --out elsewhere"
        return Finding("disk", "warn" if free > _GIB // 4 else "fail", value, advice)
    return Finding("disk", "ok", value)


_PACKAGES = (
    *("torch", "torchvision", "timm", "numpy", "numba", "pillow"),
    *("safetensors", "pyarrow", "rich"),
)
_CHECKS: tuple[Callable[[], Finding], ...] = (
    _python,
    _system,
    *map(_package, _PACKAGES),
    _simplejpeg,
    _torch_and_torchvision,
    _cores,
    _memory,
    _bf16,
    _cuda,
    _speed,
    _malloc,
    _decoding,
    _cache_folder,
    _kernels,
    _disk,
)
