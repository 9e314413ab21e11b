"""Whether the others are still there: a broken connection tells itself, a silent one does not."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence

import pyarrow as pa
import pyarrow.flight as fl

from paceline.exchange.security import Security

EVERY = 1.0  # seconds between two questions
SILENCE = 8.0  # seconds without an answer after which somebody is taken for gone
_PATIENCE = 3.0


def answers(security: Security, address: str, action: str, asked: bytes = b"{}") -> bool:
    """Whether a service answers an action within three seconds."""
    try:
        with security.connect(address) as client:
            list(client.do_action(fl.Action(action, asked), fl.FlightCallOptions(timeout=_PATIENCE)))
    except (fl.FlightError, pa.ArrowException, OSError):
        return False
    return True


class Pulse:
    """Asks services again and again, each in a thread of its own, until `stop`. gone: called with the address of each
    that has been silent for too long, again after every further silence."""

    def __init__(
        self, security: Security, addresses: Sequence[str], action: str, asked: dict[str, object],
        gone: Callable[[str], None],
    ) -> None:  # fmt: skip
        self._security, self._action, self._gone = security, action, gone
        self._asked = json.dumps({**asked, "inner": security.inner}).encode()
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(a,), daemon=True) for a in addresses]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """No call of `gone` begins after this."""
        self._stopped.set()

    def _ask(self, address: str) -> None:
        heard = time.monotonic()
        while not self._stopped.wait(EVERY):
            if answers(self._security, address, self._action, self._asked):
                heard = time.monotonic()
            elif time.monotonic() - heard > SILENCE and not self._stopped.is_set():
                self._gone(address)
                heard = time.monotonic()
