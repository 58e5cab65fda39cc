"""Every error a user can meet.

Error                     exit code
├── ConfigError           2    a wrong option, or one that does not fit the data or the encoder
├── DataError             2    images that cannot be used
├── Diverged              3    the loss or the gradients stopped being finite
├── Locked                73   another process writes to the same run
├── Stopped               75, 130 or 143: SIGUSR1, Ctrl-C or SIGTERM; the run can be resumed
└── StorageError          74   a file could not be read or written
    └── CheckpointError   74   no valid checkpoint where one is needed

A message says what, where, and what to do, in one line. Anything else that is
raised is a bug of ours and shows its traceback.
"""

import difflib
from collections.abc import Iterable

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "Diverged",
    "Error",
    "Locked",
    "Stopped",
    "StorageError",
    "suggestion",
]


class Error(Exception):
    """What a user can put right; the command line prints it as one line."""

    exit_code = 2


class ConfigError(Error):
    """A wrong option, or one that does not fit the data or the encoder."""


class DataError(Error):
    """Images that cannot be used."""


class Diverged(Error):
    """The loss or the gradients stopped being finite."""

    exit_code = 3


class Locked(Error):
    """Another process writes to the same run."""

    exit_code = 73


class StorageError(Error):
    """A file could not be read or written."""

    exit_code = 74


class CheckpointError(StorageError):
    """No valid checkpoint where one is needed."""


def suggestion(word: str, known: Iterable[str]) -> str:
    """`; did you mean temperature?`, or nothing when no known word is near."""
    # "MoCo v3", as papers write it, is near moco_v3 only when it is spelled like our names.
    spelled = word.lower().replace(" ", "_")
    near = difflib.get_close_matches(spelled, list(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else ""


class Stopped(Error):
    """A signal asked the run to stop; it can be resumed."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code
