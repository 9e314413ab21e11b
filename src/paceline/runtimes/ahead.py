"""Reading ahead: the next batches are parsed while the present ones are computed."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator

from paceline.batch import Batch


def read_ahead(source: Iterator[Batch], batches: int) -> Iterator[Batch]:
    """The batches of `source`, up to `batches` of them read in another thread before they are asked for. An error of
    `source` comes where its batch would have come."""
    ready: queue.Queue[Batch | BaseException | None] = queue.Queue(batches)
    stopped = threading.Event()

    def put(item: Batch | BaseException | None) -> bool:
        while not stopped.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def read() -> None:
        try:
            for batch in source:
                if not put(batch):
                    return
            put(None)
        except BaseException as error:  # raised again where the batches are taken
            put(error)

    thread = threading.Thread(target=read, name="reading ahead", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()
        thread.join()
