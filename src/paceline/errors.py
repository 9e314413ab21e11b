"""Every error that paceline raises on purpose.

    PacelineError
    ├── UserError                 the user can put it right; exit code 2
    │   ├── ConfigError           a key or value of job.yaml or of the command line
    │   ├── DataError             a file, line or value of the log
    │   └── RunDirError           a run directory that is missing or does not fit
    │       └── RunDirInUse       another process runs there
    ├── TrainingError             the run could not go on (a worker failed); exit code 1
    │   ├── LossError             the loss or a gradient is not finite: the newest state is not worth keeping
    │   └── ClusterLost           a process of the cluster died; the job goes on by itself from the last snapshot
    ├── StorageError              the machine could not store or read state (disk full, bad checksum); exit code 1
    ├── Interrupted               Ctrl-C or SIGTERM ended a command; exit code 130
    └── PaceError                 a caller broke the pace machine's protocol: a bug in a runtime, never the user's

A message names what was being read (file, line or key), the value found, and the way out. Nothing here is ever
raised with a bare value: whoever reads the message should not need the traceback.
"""

from __future__ import annotations


class PacelineError(Exception):
    """Root of the tree. `exit_code` is what the command line ends with."""

    exit_code = 1


class UserError(PacelineError):
    """The user can put it right: a wrong key, file or value."""

    exit_code = 2


class ConfigError(UserError):
    """A key or value of the configuration; the message names the key and, where known, the line."""


class DataError(UserError):
    """A file, line or value of the log; the message names them."""


class RunDirError(UserError):
    """A run directory that is missing, in use by another process, or does not fit the request."""


class RunDirInUse(RunDirError):
    """Another process runs there."""


class TrainingError(PacelineError):
    """The run could not go on. The message says which checkpoint is good and how to resume."""


class LossError(TrainingError):
    """The loss or a gradient is not finite. The last checkpoint from before is the one to go back to.

    file: the number of the file in its day where it showed, if it showed in one.
    """

    def __init__(self, text: str, file: int | None = None) -> None:
        super().__init__(text)
        self.file = file


class ClusterLost(TrainingError):
    """A process that holds parameters is gone, and with it what was trained since the last snapshot. Never the end of a
    job: whoever watches over the cluster starts the process again and goes on.

    unreachable: addresses of shards that are there and cannot be reached, as far as is known.
    """

    def __init__(self, text: str, unreachable: tuple[str, ...] = ()) -> None:
        super().__init__(text)
        self.unreachable = unreachable


class StorageError(PacelineError):
    """State could not be stored or read back."""


class Interrupted(PacelineError):
    """Ctrl-C or SIGTERM ended a command; the message says what was kept."""

    exit_code = 130


class PaceError(PacelineError):
    """An event that the pace machine's protocol forbids. Raised before anything changes."""


def suggest(wrong: str, known: list[str] | tuple[str, ...]) -> str:
    """'; did you mean X?' for the closest known name, or the list of known names if none is close."""
    import difflib

    close = difflib.get_close_matches(wrong, known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(sorted(known))}"
