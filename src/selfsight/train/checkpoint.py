"""Checkpoints: directories of safetensors and JSON that are whole or absent.

A checkpoint is written under a temporary name, every file is flushed to the disk, the
manifest of SHA-256 sums comes last, and a rename makes it appear. Nothing is pickled.
"""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from selfsight.errors import CheckpointError, StorageError

__all__ = [
    "Checkpoint",
    "flush_folder",
    "load",
    "name",
    "newest",
    "optimizer_tensors",
    "restore_optimizer",
    "save",
    "write_durably",
]

_MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Checkpoint:
    """step: optimizer steps done; method, optimizer: named tensors; state: plain values."""

    step: int
    method: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: dict[str, Any]


def write_durably(path: Path, content: bytes) -> None:
    """Write a file so that it survives a power cut; a failure names the file and its size."""
    try:
        with open(path, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        path.unlink(missing_ok=True)
        reason = error.strerror or error
        raise StorageError(f"cannot write {path} ({len(content):,} bytes): {reason}") from None


def flush_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def name(step: int) -> str:
    """The folder of the checkpoint after `step` steps."""
    return f"step-{step:08d}"


def save(folder: Path, checkpoint: Checkpoint, *, keep: int = 2) -> Path:
    """Add a checkpoint to a run's folder and drop all but the newest `keep`."""
    final = folder / name(checkpoint.step)
    temporary = folder / f".tmp-{uuid.uuid4().hex}"
    try:
        # Never `parents`: a run's folder that has vanished is an error, not an empty place.
        folder.mkdir(exist_ok=True)
        temporary.mkdir()
        files = {
            "method.safetensors": safetensors.torch.save(_contiguous(checkpoint.method)),
            "optimizer.safetensors": safetensors.torch.save(_contiguous(checkpoint.optimizer)),
            "state.json": json.dumps({"step": checkpoint.step, **checkpoint.state}).encode(),
        }
        for file, content in files.items():
            write_durably(temporary / file, content)
        sums = {file: hashlib.sha256(content).hexdigest() for file, content in files.items()}
        write_durably(temporary / _MANIFEST, json.dumps(sums, indent=1).encode())
        flush_folder(temporary)
        temporary.rename(final)
        flush_folder(folder)
        flush_folder(folder.parent)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        reason = error.strerror or error
        raise StorageError(f"cannot write the checkpoint {final}: {reason}") from None
    except StorageError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _prune(folder, keep)
    return final


def _prune(folder: Path, keep: int) -> None:
    for old in _candidates(folder)[max(2, keep) :]:
        shutil.rmtree(old, ignore_errors=True)
    for debris in folder.glob(".tmp-*"):
        shutil.rmtree(debris, ignore_errors=True)


def _candidates(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-[0-9]*"), reverse=True)


def _contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # A channels-last weight is stored in its logical order; loading restores the strides.
    return {key: t.detach().cpu().contiguous() for key, t in tensors.items()}


def load(path: Path) -> Checkpoint:
    """Read a checkpoint, checking every byte; CheckpointError when it is not whole."""
    try:
        sums = json.loads((path / _MANIFEST).read_bytes())
        content = {file: (path / file).read_bytes() for file in _files(sums)}
        for file, data in content.items():
            if hashlib.sha256(data).hexdigest() != sums[file]:
                raise CheckpointError(f"{path / file} is damaged: its SHA-256 has changed")
        state = json.loads(content["state.json"])
        if name(state["step"]) != path.name:
            raise ValueError(f"it holds step {state['step']}")
        return Checkpoint(
            step=state.pop("step"),
            method=safetensors.torch.load(content["method.safetensors"]),
            optimizer=safetensors.torch.load(content["optimizer.safetensors"]),
            state=state,
        )
    except OSError as error:
        if isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError):
            raise CheckpointError(f"{path} is not a whole checkpoint: {error}") from None
        # The disk may read it tomorrow: that is no reason to give it up.
        raise StorageError(f"cannot read {path}: {error.strerror}; try again") from None
    except (
        *(ValueError, KeyError, TypeError, AttributeError, RecursionError),
        safetensors.SafetensorError,
    ) as error:
        raise CheckpointError(f"{path} is not a whole checkpoint: {error}") from None


def _files(sums: Any) -> list[str]:
    expected = ["method.safetensors", "optimizer.safetensors", "state.json"]
    if not isinstance(sums, dict) or sorted(sums) != expected:
        raise ValueError(f"{_MANIFEST} does not list {', '.join(expected)}")
    return expected


def newest(folder: Path, passed_over: Callable[[str], None]) -> Checkpoint | None:
    """The newest valid checkpoint, or None; damaged ones are reported to `passed_over`.

    They are set aside, lest they count as kept while valid ones are dropped.
    """
    for path in _candidates(folder):
        try:
            return load(path)
        except CheckpointError as error:
            passed_over(f"{error}; trying the one before")
            try:
                path.rename(folder / f"damaged-{path.name}-{uuid.uuid4().hex[:8]}")
            except OSError as refused:
                raise StorageError(f"cannot set {path} aside: {refused.strerror}") from None
    return None


def optimizer_tensors(optimizer: torch.optim.Optimizer, method: nn.Module) -> dict[str, Tensor]:
    """The optimizer's state as `<parameter>/<key>` → tensor."""
    names: dict[Tensor, str] = {p: key for key, p in method.named_parameters()}
    return {
        f"{names[p]}/{key}": torch.as_tensor(value)
        for p, values in optimizer.state.items()
        for key, value in values.items()
        if value is not None
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer, method: nn.Module, tensors: Mapping[str, Tensor]
) -> None:
    """Put `optimizer_tensors` back."""
    params = dict(method.named_parameters())
    optimizer.state.clear()
    for full, value in tensors.items():
        owner, _, key = full.rpartition("/")
        p = params[owner]
        placed = torch.empty_like(p).copy_(value) if value.shape == p.shape else value.clone()
        optimizer.state[p][key] = placed
