"""The pace machine's trace: one line per event ('>') and per command ('<'), and its replay.

A trace starts with `= {state}` (a new machine, or one restored from a checkpoint) and can be read by a person:

    = {"pace": {"name": "sync", ...}, "version": 0, ...}
    > joined worker-0
    > read 256
    > asked worker-0
    < grant worker-0 0 token 0
    > pushed worker-0 0
    < apply 1 limit 0 samples 256 | 0 share 1.0 factor 1.0 token 0

Under an autopilot, besides, what it was told ('?': who, samples, seconds of computing, moment) and what it decided:

    ? worker-0 256 0.0123 17.5
    ! {"pace": "gba", "measured": 390.1, ...}
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from paceline.errors import PaceError
from paceline.pace.machine import step
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
from paceline.pace.state import State, from_json, to_json
from paceline.pace.values import Pace


def start_line(state: State) -> str:
    """The line that a replay begins with."""
    return "= " + json.dumps(to_json(state))


def event_line(event: Event) -> str:
    """One event as a line of the trace."""
    match event:
        case BatchRead(samples):
            return f"> read {samples}"
        case GradientPushed(worker, gradient):
            return f"> pushed {worker} {gradient}"
        case WorkRequested(worker):
            return f"> asked {worker}"
        case WorkerJoined(worker):
            return f"> joined {worker}"
        case WorkerLeft(worker):
            return f"> left {worker}"
        case PaceSwitched(pace):
            return "> switched " + json.dumps(pace.to_json())
        case DataEnded():
            return "> ended"
        case SnapshotRequested():
            return "> snapshot"


def fact_line(fact: Fact) -> str:
    """What an autopilot is told and the machine does not know."""
    return f"? {fact.worker} {fact.samples} {fact.seconds!r} {fact.now!r}"


def decision_line(decision: Decision) -> str:
    """What an autopilot decided, with its reasons."""
    return "! " + json.dumps(decision.to_json())


def command_line(command: Command) -> str:
    """One command as a line of the trace. Floats are written so that they read back exactly."""
    match command:
        case Grant(worker, gradient, token):
            return f"< grant {worker} {gradient} token {token}"
        case Apply(version, parts, row_limit, samples, weighing, workers):
            told = "; ".join(map(_part, parts))
            limit = "none" if row_limit is None else row_limit
            law = (
                f" {weighing.law} {weighing.k!r} of {weighing.rows} on {weighing.scales}, {workers}" if weighing else ""
            )
            return f"< apply {version} limit {limit} samples {samples}{law} | {told}"
        case Drop(gradient, staleness):
            return f"< drop {gradient} staleness {staleness}"
        case Snapshot(version, pending):
            return f"< snapshot {version} pending {','.join(map(str, pending)) or 'none'}"
        case Drained(version):
            return f"< drained {version}"


def _part(part: Part) -> str:
    weight = f" weight {part.weight!r}" if part.weight != 1.0 else ""
    return (
        f"{part.gradient} share {part.share!r} factor {part.factor!r} token {part.token} version {part.version}{weight}"
    )


def read_event(line: str) -> Event:
    """The event of a '>' line. Raises PaceError for a line that is none."""
    kind, _, rest = line.removeprefix("> ").strip().partition(" ")
    match kind:
        case "read":
            return BatchRead(int(rest))
        case "pushed":
            worker, gradient = rest.rsplit(" ", 1)
            return GradientPushed(worker, int(gradient))
        case "asked":
            return WorkRequested(rest)
        case "joined":
            return WorkerJoined(rest)
        case "left":
            return WorkerLeft(rest)
        case "switched":
            return PaceSwitched(Pace.from_json(json.loads(rest)))
        case "ended":
            return DataEnded()
        case "snapshot":
            return SnapshotRequested()
    raise PaceError(f"not an event of a pace trace: {line!r}")


def replay(lines: Iterable[str], pilot: Pilot | None = None) -> State:
    """Run a recorded trace through the machine again, and through `pilot` if given, and return the last state.

    Raises PaceError at the first command or decision that differs from the recorded one.
    """
    state: State | None = None
    expected: list[str] = []
    for number, line in enumerate(lines, 1):
        text = line.rstrip("\n")
        if text.startswith("?") and pilot is None:
            continue
        if text.startswith(("<", "!")):
            if text.startswith("!") and pilot is None:
                continue
            made = expected.pop(0) if expected else "(no command)"
            if made != text:
                raise PaceError(f"trace line {number}: recorded {text!r}, but the machine says {made!r}")
            continue
        if expected:
            raise PaceError(f"trace line {number}: the machine also says {expected[0]!r}, which was not recorded")
        if text.startswith("="):
            if pilot is not None and state is not None:  # as the one of a resumed run, which begins without a window
                told, pilot = pilot.to_json(), Pilot(pilot.candidates, pilot.margin, pilot.patience)
                pilot.restore(told)
            state = from_json(json.loads(text[2:]))
        elif text.startswith(">"):
            if state is None:
                raise PaceError(f"trace line {number}: an event before the start line ('= ...')")
            expected = [command_line(c) for c in step(state, read_event(text))]
            if pilot is not None and state.drained:
                pilot.pause()
        elif text.startswith("?") and pilot is not None and state is not None:
            worker, samples, seconds, now = text.removeprefix("? ").rsplit(" ", 3)
            applied = state.account.applied
            fact = Fact(worker, int(samples), float(seconds), float(now), applied, state.version, state.steps.keys())
            decision = pilot.observe(fact)
            if state.drained:
                pilot.pause()
            expected = [] if decision is None else [decision_line(decision)]
    if state is None:
        raise PaceError("an empty trace: there is no start line ('= ...')")
    if expected:
        raise PaceError(f"the trace ends before {expected[0]!r}, which the machine says")
    return state
