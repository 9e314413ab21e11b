"""The end of a system's process: it holds a prepared model and data in memory, and trains when it is told to.

Lines of JSON. The first line in is a `Setup`; the answer is {"ready": versions}, or {"left_out": why} if the system has
no such model, precision or optimizer. Then {"steps": n} trains on the next n batches, and is answered by {"seconds": s,
"losses": [first, last]}: each the mean over a quarter of the batches. The end of stdin ends the process. What libraries
print goes to stderr. Needs numpy and torch only: every peer's environment has them.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

FIELDS, NUMBERS, DIM = 26, 13, 16
HIDDEN, BOTTOM = (400, 400, 400), (64,)
# Of everything and everybody: Adagrad from sums of 0, first embeddings of one width. (FuxiCTR's eps is torch's, 1e-10.)
LR, EPS, STD = 0.005, 1e-8, 0.01


@dataclass(frozen=True)
class Setup:
    """What a process is to train. folder: with the data; variant: of a module that has several systems; batch: samples
    in an update; threads: in all."""

    folder: str
    model: str
    precision: str
    optimizer: str
    variant: str = ""
    batch: int = 4096
    threads: int = 2


class LeftOut(Exception):
    """The system cannot do what is asked; the text says why."""


class System(Protocol):
    """A prepared model."""

    def train(self, steps: int) -> list[Any]:
        """Train on the next `steps` batches. Returns the loss of each, in order; read after the clock stopped."""
        ...


@dataclass(frozen=True)
class Data:
    """ids int64 [rows, FIELDS], below sizes[field]; numbers float32 [rows, NUMBERS]; labels float32 [rows]."""

    ids: np.ndarray
    numbers: np.ndarray
    labels: np.ndarray
    sizes: list[int]

    @staticmethod
    def read(folder: str) -> Data:
        at = Path(folder)
        ids, numbers, labels = (np.load(at / f"{name}.npy") for name in ("ids", "numbers", "labels"))
        return Data(ids.astype(np.int64), numbers, labels, json.loads((at / "sizes.json").read_text()))

    def offsets(self) -> np.ndarray:
        """Where each field's ids begin in one table for all, int64 [FIELDS]."""
        return np.concatenate([[0], np.cumsum(self.sizes)[:-1]]).astype(np.int64)

    def batches(self, size: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """(ids, numbers, labels) of whole batches, in order."""
        for start in range(0, len(self.labels) - size + 1, size):
            part = slice(start, start + size)
            yield tuple(np.ascontiguousarray(a[part]) for a in (self.ids, self.numbers, self.labels))  # type: ignore[misc]


class Cycle:
    """A list's items, over and over: what is next goes on from round to round."""

    def __init__(self, items: list[Any]) -> None:
        self._items, self._next = items, 0

    def take(self, count: int) -> list[Any]:
        """The next `count`."""
        chosen = [self._items[(self._next + i) % len(self._items)] for i in range(count)]
        self._next += count
        return chosen


def settle(threads: int) -> None:
    """The same for all: so many cores, so many torch threads, and no denormal numbers."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    torch.manual_seed(0)


def versions(*packages: str) -> dict[str, str]:
    return {name: version(name) for name in packages}


def serve(build: Callable[[Setup], System], *packages: str) -> None:
    """Run the process: prepare, say so, train when told."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(**values: Any) -> None:
        answers.write(json.dumps(values) + "\n")
        answers.flush()

    setup = Setup(**json.loads(sys.stdin.readline()))
    settle(setup.threads)
    try:
        system = build(setup)
    except LeftOut as error:
        return answer(left_out=str(error))
    gc.collect()
    gc.freeze()
    answer(ready=versions("torch", *packages))
    for line in sys.stdin:
        started = time.perf_counter()
        found = system.train(json.loads(line)["steps"])
        seconds = time.perf_counter() - started
        losses = np.array([float(loss) for loss in found])
        quarter = max(len(losses) // 4, 1)
        ends = [float(losses[:quarter].mean()), float(losses[-quarter:].mean())] if len(losses) else []
        answer(seconds=seconds, losses=ends)
    return None
