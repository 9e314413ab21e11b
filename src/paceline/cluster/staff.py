"""Helpers that come and go while a job runs, because a person wants another number of them.

A newcomer's process is placed by Ray and joins as one does that died and came back. A leaver gets no more leases and no
part in further steps; what it computes it finishes. So neither costs an update, and the global batch stays what it was:
the pace counts gradients, not workers.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from paceline.cluster.spec import NodeSpec
from paceline.requests import answer, waiting, watch_over
from paceline.staffing import KIND, LEAVE, ROOM, START, why_not


@dataclass(slots=True)
class _Change:
    """What is being done about a request. coming, leaving: helpers, and until when they may take; short: why there are
    not as many as were asked for, for each that is missing."""

    request: Path
    coming: dict[str, tuple[NodeSpec, float]] = field(default_factory=dict)
    leaving: dict[str, tuple[NodeSpec, float]] = field(default_factory=dict)
    short: list[str] = field(default_factory=list)


class Staff:
    """The supervisor's; not thread-safe. specs: of all processes, kept up to date here; make: the spec of a helper by
    its number; cluster, placing: the actors, and the module that knows Ray; note: tells the person at the run."""

    def __init__(
        self, run_dir: Path, specs: list[NodeSpec], make: Callable[[int], NodeSpec], cluster: Any, placing: Any,
        note: Callable[[str], None],
    ) -> None:  # fmt: skip
        self._run_dir, self._specs, self._make = run_dir, specs, make
        self._cluster, self._ray, self._note = cluster, placing, note
        self._unremovable: set[Path] = set()  # requests that were told to a person, and not taken up
        self._away: set[str] = set()  # workers that were sent away and not called back
        self._change: _Change | None = None
        self._claim: TextIO | None = None  # on the run's requests
        self._asked: Any = None  # the coordinator's answer is under way

    @property
    def workers(self) -> int:
        """Workers that there are: those of nodes, and helpers that have joined."""
        coming = self._change.coming if self._change is not None else {}
        return sum(spec.worker is not None and spec.name not in coming for spec in self._specs)

    def begin(self) -> None:
        """What was asked before the run is void. Where another command is at work, the requests are its own."""
        self._claim = watch_over(self._run_dir)
        self._refuse("the run was not running at that moment; ask again")

    def end(self) -> None:
        """The run has ended."""
        if self._change is not None:
            answer(self._change.request, {"refused": "the run ended before all had joined or left"})
        self._refuse("the run has ended")
        if self._claim is not None:
            self._claim.close()

    def tend(self, starting: dict[str, Any]) -> bool:
        """Called ten times a second. starting: by name, calls that start processes, which begin when these are
        answered; newcomers' are added, leavers' taken out. Returns whether other processes are there than before."""
        if self._change is None and self._claim is not None:
            self._take_up(starting)
        change = self._change
        if change is None:
            return False
        changed = self._place(change, starting)
        heard = self._hear()
        if heard is not None:
            joined, lingering, read = heard
            changed |= self._settle(change, joined, lingering, starting)
            if not change.coming and not change.leaving and read is not None:
                self._finish(change, read)
        return changed

    def _take_up(self, starting: dict[str, Any]) -> None:
        for path in waiting(self._run_dir, KIND)[:1]:
            helpers = [spec for spec in self._specs if spec.shard is None]
            nodes = sum(spec.shard is not None and spec.worker is not None for spec in self._specs)
            try:
                wanted = json.loads(path.read_text())["helpers"]
            except (OSError, ValueError, TypeError, KeyError):
                wanted = None
            wrong = why_not(wanted, nodes)
            if wrong is not None:
                answer(path, {"refused": wrong})
                return
            try:
                path.unlink(missing_ok=True)
            except OSError as error:  # its folder is somebody else's
                if path not in self._unremovable:
                    self._unremovable.add(path)
                    self._note(f"{path} asks for helpers and cannot be removed ({error.strerror}); nothing is changed")
                return
            now, self._change = time.monotonic(), _Change(path)
            for number in range(wanted):
                spec = self._make(number)
                if spec.name not in {helper.name for helper in helpers}:
                    self._away.discard(f"worker-{spec.worker}")
                    self._cluster.reserve(spec.name)
                    self._change.coming[spec.name] = (spec, now + ROOM)
            for spec in helpers[wanted:]:
                self._specs.remove(spec)
                self._away.add(f"worker-{spec.worker}")
                starting.pop(spec.name, None)
                self._cluster.dismiss(spec.name)
                self._change.leaving[spec.name] = (spec, now + LEAVE)

    def _place(self, change: _Change, starting: dict[str, Any]) -> bool:
        """Start the processes of those for whom there is room by now."""
        placed = False
        for name, (spec, until) in list(change.coming.items()):
            if name in self._cluster.nodes:
                continue
            if self._cluster.has_room(name):
                self._cluster.hire(spec)
                self._specs.append(spec)
                starting[name] = self._cluster.nodes[name].actor.start.remote()
                change.coming[name] = (spec, time.monotonic() + START)
                placed = True
            elif time.monotonic() > until:
                self._cluster.end(name)
                del change.coming[name]
                change.short.append(f"Ray found no room within {ROOM:g} s ({self._cluster.needs} for each)")
        return placed

    def _settle(
        self, change: _Change, joined: list[str], lingering: list[str], starting: dict[str, Any]
    ) -> bool:  # fmt: skip
        """Who has come, who is gone, and who took too long. joined: workers that are at work; lingering: leavers that
        are not gone yet."""
        changed, now = False, time.monotonic()
        for name, (spec, until) in list(change.coming.items()):
            if f"worker-{spec.worker}" in joined:
                del change.coming[name]
            elif name in self._cluster.nodes and now > until:
                del change.coming[name]
                self._specs.remove(spec)
                starting.pop(name, None)
                self._cluster.dismiss(name)
                self._cluster.end(name)
                change.short.append(f"{name} did not join within {START:g} s")
                changed = True
        for name, (spec, until) in list(change.leaving.items()):
            if f"worker-{spec.worker}" not in lingering or now > until:
                del change.leaving[name]
                self._cluster.end(name)
                changed = True
        return changed

    def _hear(self) -> tuple[list[str], list[str], int | None] | None:
        """What the coordinator says of the workers, once it has; it is told of the change with every question."""
        if self._asked is None:
            self._asked = self._cluster.chief.actor.staff.remote(self.workers, sorted(self._away))
            return None
        if not self._ray.finished([self._asked], 0):
            return None
        asked, self._asked = self._asked, None
        try:
            heard: tuple[list[str], list[str], int | None] = self._ray.answer(asked)
        except self._ray.GONE:
            return None  # there will be another one
        return heard

    def _finish(self, change: _Change, read: int) -> None:
        helpers = sum(spec.shard is None for spec in self._specs)
        told = {"helpers": helpers, "workers": self.workers, "samples_read": read, "short": change.short}
        self._change = None
        self._cluster.chief.actor.staff.remote(self.workers, sorted(self._away))
        said = f"{read:,} samples: helpers are now {helpers}, workers in all {self.workers}, as asked"
        if change.short:
            said = said.removesuffix("as asked") + f"{len(change.short)} fewer than asked for: {change.short[0]}"
        self._note(said)
        answer(change.request, told)

    def _refuse(self, why: str) -> None:
        for path in waiting(self._run_dir, KIND) if self._claim is not None else ():
            answer(path, {"refused": why})
