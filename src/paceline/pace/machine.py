"""The pace machine: `step(state, event) -> commands`. It decides; everything else carries out.

No clock, no randomness, no input or output: the same events give the same commands, in the simulator, in threads
and on a cluster. An event that the protocol forbids raises `PaceError` and changes nothing.

    worker:    away --WorkerJoined--> idle --WorkRequested--> waiting --Grant--> computing --GradientPushed--> idle
    gradient:  ready --Grant--> leased --GradientPushed--> buffered --Apply--> applied | cut
                 ^                |                |
                 +--WorkerLeft----+                +--Drop (too late, and the pace does not hold its place)

(The diagram in docs/pace.md is drawn from `TRANSITIONS` below, and a test compares them.)

Rules that are easy to get wrong, each with the reason:
1. At a switch tokens that lie in the future are clamped to the current version, or sync -> gba -> sync deadlocks.
2. A round counts leases and buffered gradients of the current version, not workers: a dying worker cannot freeze it,
   and one worker alone can fill it. The global batch stays what it was.
3. When the data ends, a partly filled buffer becomes one last update, weighted by its samples.
4. Parts are sorted by gradient, so a sum never depends on the order of arrival.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any

from paceline.errors import PaceError
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
from paceline.pace.state import Lease, State

# (what, from, because of, to): the machine's life cycles, for the documentation and its test.
TRANSITIONS: tuple[tuple[str, str, str, str], ...] = (
    ("worker", "away", "WorkerJoined", "idle"),
    ("worker", "idle", "WorkRequested", "waiting"),
    ("worker", "waiting", "Grant", "computing"),
    ("worker", "computing", "GradientPushed", "idle"),
    ("worker", "idle", "WorkerLeft", "away"),
    ("worker", "waiting", "WorkerLeft", "away"),
    ("worker", "computing", "WorkerLeft", "away"),
    ("gradient", "unread", "BatchRead", "ready"),
    ("gradient", "ready", "Grant", "leased"),
    ("gradient", "leased", "WorkerLeft", "ready"),
    ("gradient", "leased", "GradientPushed", "buffered"),
    ("gradient", "leased", "Drop", "dropped"),
    ("gradient", "buffered", "Apply", "applied"),
    ("gradient", "buffered", "Apply (factor 0)", "dropped"),
    ("gradient", "buffered", "Drop", "dropped"),
)


def step(state: State, event: Event) -> list[Command]:
    """Take one event into `state` and return what is to be done, in order.

    Raises PaceError, with the last events, if the protocol forbids the event; the state is then as it was.
    """
    commands: list[Command] = []
    _HANDLERS[type(event)](state, event, commands)
    state.story.append(event)
    _apply_full_buffers(state, commands)
    _finish_data(state, commands)
    _grant(state, commands)
    return commands


def _refuse(state: State, event: Event, why: str) -> PaceError:
    told = "\n  ".join(map(repr, state.story)) or "(nothing)"
    return PaceError(f"{event!r} is not allowed: {why}. Version {state.version}; what happened before:\n  {told}")


# --- events -----------------------------------------------------------------------------------------------------


def _batch_read(state: State, event: BatchRead, _: list[Command]) -> None:
    if event.samples < 1:
        raise _refuse(state, event, "a batch has at least one sample")
    if state.ended and not state.drained:
        raise _refuse(state, event, "the data has ended and is not drained yet")
    state.ended = False
    state.drained = False
    state.samples[state.next_batch] = event.samples
    state.ready.append(state.next_batch)
    state.account.read += event.samples
    state.next_batch += 1


def _data_ended(state: State, event: DataEnded, _: list[Command]) -> None:
    if state.ended and not state.drained:
        raise _refuse(state, event, "the data has ended already")
    state.ended = True
    state.drained = False


def _worker_joined(state: State, event: WorkerJoined, _: list[Command]) -> None:
    if event.worker in state.steps:
        raise _refuse(state, event, f"{event.worker!r} is here already")
    # A newcomer starts level with the slowest: it neither holds the others back nor leads them.
    # (Without a bound nobody looks at the lead, and a switch begins to count it anew.)
    bounded = state.pace.spread is not None
    state.steps[event.worker] = min(state.steps.values(), default=0) if bounded else 0


def _worker_left(state: State, event: WorkerLeft, _: list[Command]) -> None:
    _must_be_here(state, event, event.worker)
    gradient = state.holding.pop(event.worker, None)
    if gradient is not None:
        if state.leases.pop(gradient).version == state.version:
            state.fresh -= 1
        state.put_back(gradient)
        state.account.lost_leases += 1
    del state.steps[event.worker]
    state.waiting.pop(event.worker, None)


def _work_requested(state: State, event: WorkRequested, _: list[Command]) -> None:
    _must_be_here(state, event, event.worker)
    if event.worker in state.waiting or event.worker in state.holding:
        raise _refuse(state, event, f"{event.worker!r} is waiting or computing already")
    state.waiting[event.worker] = None


def _gradient_pushed(state: State, event: GradientPushed, commands: list[Command]) -> None:
    if state.holding.get(event.worker) != event.gradient:
        raise _refuse(state, event, f"{event.worker!r} does not hold gradient {event.gradient}")
    del state.holding[event.worker]
    lease = state.leases.pop(event.gradient)
    if lease.version == state.version:
        state.fresh -= 1
    state.steps[event.worker] += 1
    if _too_stale(state, lease) and not state.pace.holds:
        _drop(state, event.gradient, lease, commands)
    else:
        state.buffer[event.gradient] = lease


def _pace_switched(state: State, event: PaceSwitched, commands: list[Command]) -> None:
    state.pace = event.pace
    for lease in (*state.leases.values(), *state.buffer.values()):
        lease.token = lease.version if event.pace.tokens == "version" else min(lease.token, state.version)
    state.restart_tokens()
    state.steps = dict.fromkeys(state.steps, 0)  # a lead is counted from the switch on
    if not event.pace.holds:
        for gradient in [g for g, lease in state.buffer.items() if _too_stale(state, lease)]:
            _drop(state, gradient, state.buffer.pop(gradient), commands)


def _snapshot_requested(state: State, _: SnapshotRequested, commands: list[Command]) -> None:
    commands.append(Snapshot(state.version, tuple(sorted(state.samples))))


_HANDLERS: dict[type, Callable[[State, Any, list[Command]], None]] = {
    BatchRead: _batch_read,
    DataEnded: _data_ended,
    WorkerJoined: _worker_joined,
    WorkerLeft: _worker_left,
    WorkRequested: _work_requested,
    GradientPushed: _gradient_pushed,
    PaceSwitched: _pace_switched,
    SnapshotRequested: _snapshot_requested,
}


# --- decisions --------------------------------------------------------------------------------------------------


def _must_be_here(state: State, event: Event, worker: str) -> None:
    if worker not in state.steps:
        raise _refuse(state, event, f"{worker!r} has not joined")


def _too_stale(state: State, lease: Lease) -> bool:
    return state.pace.limit is not None and state.version - lease.token > state.pace.limit


def _drop(state: State, gradient: int, lease: Lease, commands: list[Command]) -> None:
    state.account.dropped += state.samples.pop(gradient)
    state.account.gradients_dropped += 1
    commands.append(Drop(gradient, state.version - lease.token))


def _apply_full_buffers(state: State, commands: list[Command]) -> None:
    while len(state.buffer) >= state.pace.buffer:
        _apply(state, sorted(state.buffer)[: state.pace.buffer], commands)


def _apply(state: State, gradients: list[int], commands: list[Command]) -> None:
    """One update out of `gradients` (ascending). Cut gradients keep their place: the divisor counts them."""
    account = state.account
    total = sum(state.samples[g] for g in gradients)
    workers, law = len(state.steps), state.pace.weight
    parts = []
    for gradient in gradients:
        lease, samples = state.buffer.pop(gradient), state.samples.pop(gradient)
        weight = 1.0 if law is None else law.factor(state.version - lease.version, workers)
        if _too_stale(state, lease):
            factor = 0.0
            account.dropped += samples
            account.gradients_dropped += 1
        else:
            factor = 1.0 if law is None or law.scales == "step" else weight
            account.applied += samples
            account.gradients_applied += 1
        parts.append(Part(gradient, samples / total, factor, lease.token, weight, lease.version))
    state.version += 1
    state.fresh = 0
    account.updates += 1
    commands.append(Apply(state.version, tuple(parts), state.pace.limit, account.applied, law, workers))


def _finish_data(state: State, commands: list[Command]) -> None:
    if not state.ended or state.drained or state.ready or state.leases:
        return
    if state.buffer:
        _apply(state, sorted(state.buffer), commands)
    state.drained = True
    # The flush may have made a small update: the data order and the versions start level again.
    state.restart_tokens()
    commands.append(Drained(state.version))


def _grant(state: State, commands: list[Command]) -> None:
    if not state.ready or not state.waiting:
        return
    room = len(state.ready)
    if state.pace.round is not None:
        room = min(room, state.pace.round - len(state.buffer) - state.fresh)
    furthest = None
    if state.pace.spread is not None:
        furthest = min(state.steps.values()) + state.pace.spread
    if room <= 0:
        return
    # Without a bound the first in the line are served; a line of thousands is not copied for one place.
    for worker in list(state.waiting if furthest is not None else islice(state.waiting, room)):
        if room <= 0:
            break
        if furthest is not None and state.steps[worker] > furthest:
            continue
        gradient = state.ready.pop(0)
        token = state.next_token()
        state.leases[gradient] = Lease(worker, token, state.version)
        state.fresh += 1
        state.holding[worker] = gradient
        del state.waiting[worker]
        room -= 1
        commands.append(Grant(worker, gradient, token))
