"""Reading ahead: the next batches are parsed while the present ones are computed."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator

from paceline.batch import Batch
from paceline.runtimes.coordinator import Stopped
from paceline.threads import SureThread


class ReadAhead:
    """The batches of `source`, up to `batches` of them read in another thread before they are asked for. An error of
    `source` comes where its batch would have come.

    on_batch: called, in that thread, whenever there is one more, or no more will come.

    `close` may be called from any thread, also while another waits for a batch: that one gets Stopped. When it returns,
    nobody is reading from `source`.
    """

    def __init__(self, source: Iterator[Batch], batches: int, on_batch: Callable[[], None] = lambda: None) -> None:
        self._source, self._on_batch = source, on_batch
        self._ended = False
        self._ready: queue.Queue[Batch | BaseException | None] = queue.Queue(batches)
        self._stopped = threading.Event()
        self._thread = SureThread(target=self._read, name="reading ahead", daemon=True)
        self._thread.start()

    def __iter__(self) -> ReadAhead:
        return self

    def __next__(self) -> Batch:
        while not self._stopped.is_set():
            try:
                item = self._ready.get(timeout=0.1)
            except queue.Empty:
                continue
            if isinstance(item, BaseException):
                raise item
            if item is None:
                self._ready.put(None)  # for whoever asks again
                raise StopIteration
            return item
        raise Stopped  # and not the end of the data

    def has(self, batches: int) -> bool:
        """Whether so many can be taken without waiting, or all that are left. From then on it reads as far ahead."""
        self._ready.maxsize = max(self._ready.maxsize, batches)  # looked at with every attempt to put one
        return self._ended or self._ready.qsize() >= batches

    def close(self) -> None:
        """Stop reading."""
        self._stopped.set()
        self._thread.join()

    def _read(self) -> None:
        try:
            for batch in self._source:
                if not self._put(batch):
                    return
            self._put(None)
        except BaseException as error:  # raised again where the batches are taken
            self._put(error)

    def _put(self, item: Batch | BaseException | None) -> bool:
        while not self._stopped.is_set():
            try:
                self._ready.put(item, timeout=0.1)
                self._ended = self._ended or item is None or isinstance(item, BaseException)
                self._on_batch()
                return True
            except queue.Full:
                continue
        return False
