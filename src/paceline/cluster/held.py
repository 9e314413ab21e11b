"""What the coordinator knows of what its workers hold back of their gradients (see `paceline.params.feedback`).

The state is in the workers' processes, and a snapshot needs it as it is at the snapshot's version. So a snapshot raises
a number, and whoever asks the office for work is first asked for the state, until it has given that number's; what a
worker may compute next waits for it. After a restore each process is first told what to go on from.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection
from typing import Any, final

import numpy as np
from torch import Tensor

PATIENCE = 10.0  # seconds that a snapshot waits for states
_LOOK = 0.5  # seconds
_GRACE = 2.0  # seconds that a process may be cut off and is still waited for
Question = tuple[dict[str, Any], list[Any]]


@final
class Held:
    """By process ("worker-2", whatever seats it has). May be used by any thread; holds no other lock meanwhile.

    note: told when something is lost, once, and of states that are late. clock: seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.note: Callable[[str], None] = lambda _: None
        self._clock = clock
        self._changed = threading.Condition()
        self._said = False
        self._epoch = 0
        self.begin({}, False)

    def begin(self, restored: dict[str, Tensor], active: bool = True) -> None:
        """A generation begins, from a snapshot with these states. active: whether workers hold anything back."""
        with self._changed:
            self._epoch += 1
            self._active, self._restored = active, dict(restored)
            self._number, self._version = 0, 0  # of the newest snapshot
            self._states: dict[str, Tensor] = {}
            self._given: dict[str, int] = {}
            self._places: dict[str, int] = {}  # connections of each process
            self._left: dict[str, float] = {}  # when a process's last one broke

    def came(self, process: str) -> int:
        """A seat or rank of the process is at the office. Returns what to show when it leaves."""
        with self._changed:
            self._places[process] = self._places.get(process, 0) + 1
            return self._epoch

    def left(self, process: str, epoch: int) -> None:
        """It is gone, perhaps to come again. Those of an older generation do not count."""
        with self._changed:
            if epoch == self._epoch:
                self._places[process] -= 1
                self._left[process] = self._clock()

    def question(self, process: str) -> Question | None:
        """What the process has to do before it is given work: load a state, or give its own."""
        with self._changed:
            if not self._active or not process:
                return None
            if process in self._restored:
                return {"held": "load"}, [self._restored[process].numpy()]
            if self._given.get(process, 0) < self._number:
                return {"held": "give", "number": self._number, "version": self._version}, []
            return None

    def answered(self, process: str, number: int | None, state: Tensor) -> None:
        """The process has loaded what it was told to (number: None), or gives its state for a snapshot."""
        with self._changed:
            if number is None:
                restored = self._restored.pop(process, None)
                if restored is not None:  # what it holds until it says otherwise
                    self._states.setdefault(process, restored)
            elif number > self._given.get(process, 0):
                self._given[process], self._states[process] = number, state
            self._changed.notify_all()

    def want(self, version: int) -> int:
        """A snapshot of version `version` is taken: from now on nobody gets work before its state is given. Returns the
        snapshot's number."""
        with self._changed:
            self._number, self._version = self._number + 1, version
            return self._number

    def collect(self, number: int, seconds: float = PATIENCE) -> dict[str, Tensor]:
        """The states of all processes that are here for snapshot `number`; waits for them up to `seconds`, and takes
        older ones of those that are late."""
        with self._changed:
            until = time.monotonic() + seconds
            while self._late(number) and time.monotonic() < until:
                self._changed.wait(min(_LOOK, seconds))  # whoever has gone is not waited for any more
            late = self._late(number)
            for process in [p for p in self._states if not self._is_here(p)]:
                self._lose(process, self._states.pop(process))
            found = {**self._restored, **self._states}
        if late:
            self.note(
                f"{', '.join(late)} did not tell within {seconds:g} s what they hold back of their gradients: the"
                " snapshot has what they told before"
            )
        return found

    def keep(self, processes: Collection[str]) -> None:
        """There are no other workers than these: what others held back when the snapshot was taken is lost."""
        with self._changed:
            for process in self._restored.keys() - set(processes):
                self._lose(process, self._restored.pop(process))

    def _late(self, number: int) -> list[str]:
        if not self._active:
            return []
        return sorted(p for p in self._places if self._is_here(p) and self._given.get(p, 0) < number)

    def _is_here(self, process: str) -> bool:
        return self._places.get(process, 0) > 0 or self._clock() - self._left.get(process, -np.inf) < _GRACE

    def _lose(self, process: str, state: Tensor) -> None:
        if not self._said and bool(state.any()):
            self._said = True
            self.note(f"{process} is gone, and what it had held back of its gradients is lost")
