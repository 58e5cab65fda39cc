"""A count for the person who waits."""

import sys
import time
from collections.abc import Callable

__all__ = ["counting"]


def counting(what: str) -> Callable[[int, int], None]:
    """Called with (done, total): a moving count on a terminal, else a line every 30 s."""
    terminal = sys.stderr.isatty()
    interval = 0.1 if terminal else 30.0
    told = time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal told
        now = time.monotonic()
        if now - told < interval and not (terminal and done == total):
            return
        told = now
        begin, end = ("\r", "\n" if done == total else "") if terminal else ("", "\n")
        print(f"{begin}{what} {done:,}/{total:,}", end=end, file=sys.stderr, flush=True)

    return tell
