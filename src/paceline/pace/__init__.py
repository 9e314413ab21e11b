"""The pace machine: which worker may start, when gradients become an update, how much each one weighs.

Pure: standard library only, no clock, no randomness, no input or output. See docs/pace.md.
"""

from paceline.pace.machine import TRANSITIONS, step
from paceline.pace.messages import (
    Apply,
    BatchRead,
    Command,
    DataEnded,
    Drained,
    Drop,
    Event,
    GradientPushed,
    Grant,
    PaceSwitched,
    Part,
    Snapshot,
    SnapshotRequested,
    WorkerJoined,
    WorkerLeft,
    WorkRequested,
)
from paceline.pace.pilot import Decision, Fact, Pilot
from paceline.pace.state import Account, Lease, State, begin, from_json, to_json
from paceline.pace.trace import command_line, decision_line, event_line, fact_line, replay, start_line
from paceline.pace.values import (
    Pace,
    asynchronous,
    backup_workers,
    bounded_staleness,
    bulk_synchronous,
    damped,
    gba,
    sync,
)
from paceline.pace.weights import Weight

__all__ = [
    "TRANSITIONS",
    "Account",
    "Apply",
    "BatchRead",
    "Command",
    "DataEnded",
    "Decision",
    "Drained",
    "Drop",
    "Event",
    "Fact",
    "GradientPushed",
    "Grant",
    "Lease",
    "Pace",
    "PaceSwitched",
    "Part",
    "Pilot",
    "Snapshot",
    "SnapshotRequested",
    "State",
    "Weight",
    "WorkRequested",
    "WorkerJoined",
    "WorkerLeft",
    "asynchronous",
    "backup_workers",
    "begin",
    "bounded_staleness",
    "bulk_synchronous",
    "command_line",
    "damped",
    "decision_line",
    "event_line",
    "fact_line",
    "from_json",
    "gba",
    "replay",
    "start_line",
    "step",
    "sync",
    "to_json",
]
