"""Random numbers of a model: torch's generator is the process's, and two threads would take each other's numbers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_LOCK = threading.RLock()


@contextmanager
def drawing(seed: int) -> Iterator[None]:
    """What is drawn inside depends on `seed` alone, whatever other threads draw; the generator is put back."""
    with _LOCK, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
