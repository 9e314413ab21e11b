"""Drives the pace machine as a runtime would: workers of random speeds that ask, compute and push."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from paceline import pace as p


@dataclass
class Driver:
    """A machine, the workers that stand before it, and what it ordered. Checks every promise after every event."""

    state: p.State
    computing: dict[str, p.Grant] = field(default_factory=dict)
    idle: set[str] = field(default_factory=set)
    settled: dict[int, str] = field(default_factory=dict)
    samples: dict[int, int] = field(default_factory=dict)
    grants: list[p.Grant] = field(default_factory=list)
    granted_at: dict[int, int] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    applies: list[tuple[p.Apply, p.Pace]] = field(default_factory=list)
    drained: int = 0

    def __post_init__(self) -> None:
        self.lines.append(p.start_line(self.state))

    def send(self, event: p.Event) -> list[p.Command]:
        before, pace = self.state.version, event.pace if isinstance(event, p.PaceSwitched) else self.state.pace
        if isinstance(event, p.BatchRead):
            self.samples[self.state.next_batch] = event.samples
        if isinstance(event, p.GradientPushed):
            del self.computing[event.worker]
            self.idle.add(event.worker)
        if isinstance(event, p.WorkerLeft):
            self.computing.pop(event.worker, None)
            self.idle.discard(event.worker)
        if isinstance(event, p.WorkerJoined):
            self.idle.add(event.worker)
        if isinstance(event, p.WorkRequested):
            self.idle.discard(event.worker)
        commands = p.step(self.state, event)
        self.lines.append(p.event_line(event))
        self.lines += [p.command_line(c) for c in commands]
        for command in commands:
            self._carry_out(command, pace, before)
        self.check()
        return commands

    def _carry_out(self, command: p.Command, pace: p.Pace, before: int) -> None:
        match command:
            case p.Grant(worker, gradient, _):
                assert gradient not in self.settled, "a settled gradient was granted"
                assert worker not in self.computing, "a worker was granted two gradients"
                self.computing[worker] = command
                self.grants.append(command)
                self.granted_at[gradient] = self.state.version
            case p.Apply(version, parts, row_limit):
                assert version > before
                self.applies.append((command, pace))
                assert [x.gradient for x in parts] == sorted(x.gradient for x in parts)
                assert abs(sum(x.share for x in parts) - 1.0) < 1e-12
                for part in parts:
                    stale = version - 1 - part.token
                    cut = pace.limit is not None and stale > pace.limit
                    law, workers = pace.weight, len(self.state.steps)
                    weight = law.factor(version - 1 - part.version, workers) if law else 1.0
                    assert 0.0 < weight <= 1.0
                    full = weight if law and law.scales == "gradient" else 1.0
                    assert part.factor == (0.0 if cut else full), "an applied gradient was staler than the limit"
                    assert part.version == self.granted_at[part.gradient]
                    assert part.weight == weight
                    assert command.weighing == law
                    self._settle(part.gradient, "dropped" if cut else "applied")
                assert row_limit == pace.limit
            case p.Drop(gradient, staleness):
                assert pace.limit is not None
                assert staleness > pace.limit
                self._settle(gradient, "dropped")
            case p.Drained(_):
                self.drained += 1

    def _settle(self, gradient: int, how: str) -> None:
        assert gradient not in self.settled, f"gradient {gradient} was settled twice"
        assert gradient in self.samples
        self.settled[gradient] = how

    def check(self) -> None:
        """The account, at every moment."""
        account = self.state.account
        assert account.read == account.applied + account.dropped + self.state.in_flight
        assert account.read == sum(self.samples.values())
        assert account.applied == sum(self.samples[g] for g, how in self.settled.items() if how == "applied")
        assert account.dropped == sum(self.samples[g] for g, how in self.settled.items() if how == "dropped")
        assert self.state.in_flight == sum(n for g, n in self.samples.items() if g not in self.settled)
        assert self.state.fresh == sum(x.version == self.state.version for x in self.state.leases.values())
        spread = self.state.pace.spread
        if spread is not None and self.state.steps:
            slowest = min(self.state.steps.values())
            for worker in self.computing:
                # A worker may have been computing when a slower one joined or the pace was switched.
                assert self.state.steps[worker] - slowest <= spread + 1

    def finish(self, rng: random.Random) -> None:
        """No more data: everybody pushes what they hold and asks again until all is drained; nobody may be stuck."""
        if not self.state.ended:
            self.send(p.DataEnded())
        for _ in range(10_000):
            if self.state.drained:
                break
            if self.computing and rng.random() < 0.8:
                worker = rng.choice(sorted(self.computing))
                self.send(p.GradientPushed(worker, self.computing[worker].gradient))
            elif self.idle:
                self.send(p.WorkRequested(rng.choice(sorted(self.idle))))
            elif self.computing:
                worker = rng.choice(sorted(self.computing))
                self.send(p.GradientPushed(worker, self.computing[worker].gradient))
            else:
                raise AssertionError(f"stuck: {self.state}")
        assert self.state.drained
        assert self.state.in_flight == 0
        assert set(self.settled) == set(self.samples), "every gradient ends exactly once"
