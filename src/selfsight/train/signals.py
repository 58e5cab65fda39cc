"""Signals that end a run politely: finish the step, save, leave with a code."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

__all__ = ["Signals"]

# 75 tells a scheduler to queue the run again.
_CODES = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGUSR1: 75}


class Signals:
    """code: 0, or the exit code of the first signal. A second signal ends the process."""

    def __init__(self) -> None:
        self.code = 0

    @staticmethod
    def name(code: int) -> str:
        return next(s.name for s, c in _CODES.items() if c == code)

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Catch them for a while. Only Python's main thread can; elsewhere nothing changes."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before: dict[signal.Signals, Any] = {s: signal.signal(s, self._note) for s in _CODES}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.code:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.code = _CODES[signal.Signals(number)]
