"""Takes the tensors out of a checkpoint that nobody vouches for.

Run as a program of its own, by its file: `quarantine.py CHECKPOINT OUT BYTES SECONDS`. It
imports nothing of ours, so that nothing of ours is within a checkpoint's reach, reads by
torch's restricted unpickler alone, under limits of memory, time and file size, and leaves a
safetensors file at OUT, or one line on standard error and exit code 1. A checkpoint that is
refused is never opened in another way.
"""

import contextlib
import os
import sys
import warnings
from typing import Any

import torch
from safetensors.torch import save_file

__all__ = ["Settings", "main", "tensors"]

# No checkpoint nests deeper; one that holds itself has no end.
_DEPTH = 8


class Settings:
    """Stands for argparse.Namespace, in which official checkpoints keep how they were made.

    A class that forgets what it is given has no attributes to set, so neither a method nor a
    class can be slipped into it, which a Namespace would let happen.
    """

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        pass


def main(checkpoint: str, out: str) -> int:
    """The exit code."""
    try:
        found = tensors(checkpoint)
        if not found:
            raise ValueError("it holds no tensors by name")
        save_file(found, out)
    except Exception as error:
        print(type(error).__name__, " ".join(str(error).split()), file=sys.stderr)
        return 1
    return 0


def tensors(checkpoint: str) -> dict[str, torch.Tensor]:
    """Those in dictionaries with names for keys, named by dots from the outside in."""
    with torch.serialization.safe_globals([(Settings, "argparse.Namespace")]):
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    found: dict[str, torch.Tensor] = {}
    _collect(content, "", 0, found)
    return found


def _collect(value: Any, name: str, depth: int, found: dict[str, torch.Tensor]) -> None:
    if isinstance(value, torch.Tensor):
        if name and value.layout is torch.strided and not value.is_quantized:
            # Weights that two names share, or views of larger ones, each get their own place.
            found[name] = value.detach().clone(memory_format=torch.contiguous_format)
    elif isinstance(value, dict) and depth < _DEPTH:
        for key, part in value.items():
            if type(key) is str:
                _collect(part, f"{name}.{key}" if name else key, depth + 1, found)


def _limit(memory: int, seconds: int) -> None:
    """As far as the system has such limits; whoever started this also waits only so long.

    memory: bytes that reading may take beside what torch itself needs, and OUT at most
    """
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    try:
        import resource
    except ImportError:
        return
    wanted = {
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_FSIZE: memory,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NPROC: 0,  # no child processes
    }
    try:
        with open("/proc/self/statm", encoding="ascii") as stream:
            mapped = int(stream.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        wanted[resource.RLIMIT_AS] = mapped + memory
    except OSError:
        pass
    for kind, value in wanted.items():
        _, most = resource.getrlimit(kind)
        value = value if most == resource.RLIM_INFINITY else min(value, most)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(kind, (value, value))


if __name__ == "__main__":
    _limit(int(sys.argv[3]), int(sys.argv[4]))
    sys.exit(main(sys.argv[1], sys.argv[2]))
