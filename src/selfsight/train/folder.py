"""A run's folder: what lies where, who may write, and what the run was."""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from selfsight.errors import ConfigError, Locked, StorageError
from selfsight.train.checkpoint import flush_folder, write_durably

__all__ = ["RunFolder"]


class RunFolder:
    """run.json, metrics.jsonl, timing.jsonl, skipped.jsonl, checkpoints/ and model/."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.record_path = self.path / "run.json"
        self.metrics = self.path / "metrics.jsonl"
        self.timing = self.path / "timing.jsonl"
        self.skipped = self.path / "skipped.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.model = self.path / "model"

    @property
    def started(self) -> bool:
        return self.record_path.exists()

    def claim(self, *, resume: bool) -> None:
        """Make the folder, or refuse one that holds something else."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            # What a run leaves that was killed before it had written run.json.
            ours = {"lock", "run.tmp"}
            occupied = [p.name for p in self.path.iterdir() if p.name not in ours]
        except OSError as error:
            raise StorageError(f"cannot use --out {self.path}: {error.strerror}") from None
        if not occupied or (resume and self.started):
            return
        if self.started:
            raise ConfigError(
                f"--out {self.path} already holds a run; add --resume to continue it, "
                "or choose another folder"
            )
        raise ConfigError(f"--out {self.path} is not empty; choose a new folder")

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run against other writers; the system frees it if we are killed."""
        with self._lock_file() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                holder = file.read().strip() or "another process"
                raise Locked(
                    f"{self.path} is in use by {holder}; wait for it, or stop it"
                ) from None
            except OSError as error:
                raise StorageError(f"cannot lock {self.path}: {error.strerror}") from None
            file.truncate(0)
            file.write(f"process {os.getpid()}")
            file.flush()
            try:
                yield
            finally:
                if not self.started:
                    self._vanish()

    def forget(self) -> None:
        """Take back a run that was refused before its first checkpoint."""
        if self.checkpoints.is_dir() and any(self.checkpoints.iterdir()):
            return
        with contextlib.suppress(OSError):
            for path in (self.metrics, self.timing, self.skipped, self.record_path):
                path.unlink(missing_ok=True)
            self.checkpoints.rmdir()

    def _vanish(self) -> None:
        """A run that was refused leaves no folder behind."""
        with contextlib.suppress(OSError):
            (self.path / "lock").unlink()
            self.path.rmdir()

    def _lock_file(self) -> TextIO:
        try:
            return open(self.path / "lock", "a+")
        except OSError as error:
            raise StorageError(f"cannot write in {self.path}: {error.strerror}") from None

    def read(self) -> dict[str, Any]:
        """What run.json says."""
        try:
            record = json.loads(self.record_path.read_bytes())
        except OSError as error:
            raise StorageError(f"{self.path} holds no run: {error.strerror}") from None
        except ValueError as error:
            raise StorageError(f"{self.record_path} is damaged: {error}") from None
        if not isinstance(record, dict) or "config" not in record:
            raise StorageError(f"{self.record_path} is not a run of selfsight")
        return record

    def write(self, record: dict[str, Any]) -> None:
        temporary = self.record_path.with_suffix(".tmp")
        write_durably(temporary, json.dumps(record, indent=1, ensure_ascii=True).encode())
        temporary.rename(self.record_path)
        flush_folder(self.path)
