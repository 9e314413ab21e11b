"""Whether the others are still there: a broken connection tells itself, a silent one does not."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.flight as fl

from paceline.exchange.security import Security

EVERY = 1.0  # seconds between two questions
SILENCE = 8.0  # seconds without an answer after which somebody is taken for gone
_PATIENCE = 3.0


def asked(
    security: Security, address: str, action: str, body: bytes = b"{}", patience: float = _PATIENCE
) -> dict[str, Any] | None:
    """What a service answers to an action within `patience` seconds, or None."""
    try:
        with security.connect(address) as client:
            found = list(client.do_action(fl.Action(action, body), fl.FlightCallOptions(timeout=patience)))
    except (fl.FlightError, pa.ArrowException, OSError):
        return None
    answer: dict[str, Any] = json.loads(found[0].body.to_pybytes())
    return answer


class Pulse:
    """Asks services again and again, each in a thread of its own, until `stop`. told: what to say with every question;
    gone: called with the address of each that has been silent for too long, again after every further silence; heard:
    called with every answer."""

    def __init__(
        self,
        security: Security,
        addresses: Sequence[str],
        action: str,
        gone: Callable[[str], None],
        told: Callable[[], dict[str, object]] = dict,
        heard: Callable[[dict[str, Any]], None] = lambda _: None,
    ) -> None:
        self._security, self._action, self._gone = security, action, gone
        self._told, self._heard = told, heard
        self._silent: set[str] = set()
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(a,), daemon=True) for a in addresses]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """No call of `gone` begins after this."""
        self._stopped.set()

    @property
    def silent(self) -> list[str]:
        """Addresses that have been silent for too long, and still are."""
        with self._lock:
            return sorted(self._silent)

    def _ask(self, address: str) -> None:
        heard = time.monotonic()
        while not self._stopped.wait(EVERY):
            body = json.dumps({**self._told(), "inner": self._security.inner}).encode()
            answer = asked(self._security, address, self._action, body)
            if answer is not None:
                heard = time.monotonic()
                with self._lock:
                    self._silent.discard(address)
                self._heard(answer)
            elif time.monotonic() - heard > SILENCE and not self._stopped.is_set():
                with self._lock:
                    self._silent.add(address)
                self._gone(address)
                heard = time.monotonic()
