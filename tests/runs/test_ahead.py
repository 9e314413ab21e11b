"""Reading ahead of what is asked for."""

import threading

import pytest

from paceline.runtimes.ahead import ReadAhead
from paceline.runtimes.coordinator import Stopped


def test_batches_come_in_order_and_then_the_end_again_and_again():
    ahead = ReadAhead(iter(range(100)), 4)
    assert list(ahead) == list(range(100))
    assert next(ahead, "end") == "end"
    ahead.close()


def test_an_error_comes_where_its_batch_would_have_come():
    def source():
        yield 1
        raise ValueError("line 7")

    ahead = ReadAhead(source(), 4)
    assert next(ahead) == 1
    with pytest.raises(ValueError, match="line 7"):
        next(ahead)
    ahead.close()


def test_closed_from_elsewhere_it_is_not_the_end_of_the_data():
    """Whoever waits for a batch must not take the rest of the day for read, and the source can be closed afterwards."""
    asked, go_on = threading.Event(), threading.Event()

    def source():
        yield 1
        asked.set()
        go_on.wait()
        yield 2

    batches = source()
    ahead = ReadAhead(batches, 1)
    assert next(ahead) == 1
    asked.wait()
    outcome = []

    def wait():
        try:
            outcome.append(next(ahead, "end"))
        except Stopped:
            outcome.append("stopped")

    waiting = threading.Thread(target=wait)
    waiting.start()
    closing = threading.Thread(target=ahead.close)
    closing.start()
    waiting.join()
    go_on.set()
    closing.join()
    assert outcome == ["stopped"]
    batches.close()


def test_it_reads_as_far_ahead_as_somebody_needs_at_once():
    """More workers in a step than batches that are read ahead otherwise."""
    told = threading.Semaphore(0)
    ahead = ReadAhead(iter(range(12)), 2, told.release)
    assert not ahead.has(10)
    for _ in range(10):
        assert told.acquire(timeout=60)
    assert ahead.has(10)
    taken = [next(ahead) for _ in range(10)]
    assert len(taken) == 10
    while not ahead.has(10):  # two are left, and no more will come
        assert told.acquire(timeout=60)
    assert len(list(ahead)) == 2
    ahead.close()
