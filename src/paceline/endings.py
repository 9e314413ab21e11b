"""How a run ends that ends badly: what a person is told, and what must never be."""

from __future__ import annotations

import traceback
from pathlib import Path

from paceline import pace as p
from paceline.errors import PacelineError, TrainingError
from paceline.rundir import storing
from paceline.runtimes.body import Store


def unforeseen(error: BaseException, route: Store, run: Path, way_on: str) -> PacelineError:
    """What to raise for an error that nobody foresaw; its traceback is kept in the run directory. way_on: what can be
    done now."""
    if isinstance(error, MemoryError):
        size = f"{route.bytes >> 20:,} MB for {route.ids:,} ids"
        return TrainingError(
            f"out of memory ({error}); the table holds {size}. Use a smaller model.dim, rowwise_adagrad, fewer"
            f" workers or a smaller batch.local\n({way_on})"
        )
    log = run / "error.log"
    with storing(log):
        log.write_text("".join(traceback.format_exception(error)))
    return TrainingError(f"a worker failed: {type(error).__name__}: {error} (traceback in {log})\n({way_on})")


def check_account(account: p.Account, in_flight: int) -> None:
    """Every sample that was read ended once, or is among `in_flight`. Raises TrainingError if not."""
    if account.read != account.applied + account.dropped + in_flight:
        raise TrainingError(
            f"the account does not close: {account.read} samples read, {account.applied} applied, {account.dropped}"
            f" dropped, {in_flight} under way. This is a bug in paceline; please report it with pace.trace"
        )
