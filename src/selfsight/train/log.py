"""What a run writes down and what it tells the person who waits."""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from selfsight.errors import StorageError
from selfsight.train.checkpoint import write_durably

__all__ = ["Lines", "Teller", "duration", "truncate"]


def truncate(path: Path, step: int) -> None:
    """Drop the lines of steps that a resumed run will do again."""
    if not path.exists():
        return
    kept = []
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            if json.loads(line)["step"] >= step:
                break
        except (ValueError, KeyError, TypeError):
            break
        if not line.endswith(b"\n"):  # the process was killed while it wrote this line
            break
        kept.append(line)
    temporary = path.with_suffix(".tmp")
    write_durably(temporary, b"".join(kept))
    temporary.rename(path)


class Lines:
    """Appends one JSON object per line."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            # Unbuffered: what a full disk refuses is not tried again when the file closes.
            self._file = open(path, "ab", buffering=0)  # noqa: SIM115, closed by close()
        except OSError as error:
            raise StorageError(f"cannot write {path}: {error.strerror}") from None

    def write(self, **values: Any) -> None:
        left = json.dumps(values).encode() + b"\n"
        size = len(left)
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            raise StorageError(
                f"cannot write {self._path} ({size:,} bytes): {error.strerror}"
            ) from None

    def settle(self) -> None:
        """Push what was written to the disk, so that no checkpoint is ahead of it."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise StorageError(f"cannot write {self._path}: {error.strerror}") from None

    def close(self) -> None:
        self._file.close()


def duration(seconds: float) -> str:
    """`2 h 05 min`, `3 min 10 s`, `12 s`"""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    if hours:
        return f"{hours} h {m:02d} min"
    return f"{m} min {s:02d} s" if m else f"{s} s"


class Teller:
    """Progress with rate and time left: a bar on a terminal, else a line every 30 s."""

    def __init__(
        self,
        total: int,
        images: int,
        *,
        quiet: bool = False,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
        interval: float = 30.0,
    ) -> None:
        self._total, self._images, self._quiet = total, images, quiet
        self._stream = stream or sys.stderr
        self._clock, self._interval = clock, interval
        self._first = self._last = 0
        self._start = self._told = clock()
        self._bar: Progress | None = None

    def __enter__(self) -> Self:
        console = Console(file=self._stream)
        if console.is_terminal and not self._quiet:
            columns = (BarColumn(), TextColumn("{task.description}"))
            self._bar = Progress(*columns, console=console, transient=True)
            self._bar.start()
            self._bar.add_task("starting", total=self._total)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, text: str) -> None:
        if self._quiet:
            return
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, markup=False)
        else:
            print(text, file=self._stream, flush=True)

    def started(self, step: int) -> None:
        """The first step of this process; time before it is no work."""
        self._first = step
        self._start = self._told = self._clock()

    def step(self, done: int, loss: float) -> None:
        """`done` steps are behind us."""
        now = self._clock()
        taken = done - self._first
        pace = (now - self._start) / max(1, taken)
        left = pace * (self._total - done)
        rate = self._images / max(pace, 1e-9)
        text = (
            f"step {done}/{self._total}  loss {loss:.4f}  {rate:,.0f} images/s  "
            f"{duration(left)} left"
        )
        if taken == 20:
            self.say(f"expected: {duration(pace * self._total)} for the whole run")
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done, description=text)
        elif now - self._told >= self._interval:
            self._told = now
            self.say(text)
