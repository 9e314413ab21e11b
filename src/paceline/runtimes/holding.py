"""What each worker holds back of its dense gradients, by the worker's name (see `paceline.params.feedback`)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import final

from torch import Tensor

from paceline.errors import RunDirError
from paceline.params.feedback import Feedback, Thinning


@final
class Holding:
    """sizes: entries of each tensor. note: is told, once, that something held back was lost with its worker.

    Not thread-safe; the `Feedback` of a worker is.
    """

    def __init__(self, sizes: Sequence[int], thinning: Thinning) -> None:
        self._sizes, self._thinning = list(sizes), thinning
        self.workers: dict[str, Feedback] = {}
        self.lost = 0  # workers that took something along
        self.note: Callable[[str], None] = lambda _: None

    def new(self) -> Feedback:
        """A newcomer's, who holds nothing back yet."""
        return Feedback(self._sizes, self._thinning)

    def of(self, worker: str) -> Feedback:
        """The worker's own."""
        if worker not in self.workers:
            self.workers[worker] = self.new()
        return self.workers[worker]

    def keep(self, workers: Collection[str]) -> None:
        """There are no other workers than these."""
        for name in self.workers.keys() - set(workers):
            self.forget(name)

    def forget(self, worker: str) -> None:
        """A worker is gone, and what it held back with it."""
        gone = self.workers.pop(worker, None)
        if gone is None or not gone.held.any():
            return
        self.lost += 1
        if self.lost == 1:
            norm = float(gone.held.norm())
            self.note(f"{worker} is gone, and what it had held back of its gradients is lost (of norm {norm:.3g})")

    def tensors(self, version: int | None = None) -> dict[str, Tensor]:
        """What a checkpoint of version `version` keeps, as copies (see `Feedback.state`)."""
        return {name: feedback.state(version) for name, feedback in self.workers.items()}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Go on from what `tensors` gave. Raises RunDirError if it is another model's."""
        self.workers = {}
        for name, state in tensors.items():
            try:
                self.of(name).load(state)
            except ValueError as error:
                raise RunDirError(
                    f"what {name} held back of its gradients does not fit the model ({error}); use the configuration"
                    " that the run was started with"
                ) from error
