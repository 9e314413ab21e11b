"""The route of one process: pulls side by side, updates alone."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from torch import nn

from paceline.exchange.direct import DirectRoute
from paceline.exchange.gate import Gate
from paceline.params.dense import DenseBlock, make_optimizer
from paceline.params.shard import Shard
from paceline.params.sparse import SGD
from paceline.params.table import Table

LONG = 60  # seconds that nothing here comes near


def test_readers_go_side_by_side():
    gate, meeting = Gate(), threading.Barrier(3, timeout=LONG)

    def read():
        with gate.shared():
            meeting.wait()

    with ThreadPoolExecutor(3) as pool:
        for each in [pool.submit(read) for _ in range(3)]:
            each.result()


def test_who_changes_is_alone():
    gate, inside, most = Gate(), [], []

    def change(number):
        for _ in range(200):
            with gate.alone():
                inside.append(number)
                os.sched_yield()
                most.append(len(inside))
                inside.remove(number)

    def read():
        for _ in range(200):
            with gate.shared():
                os.sched_yield()
                most.append(len(inside) + 1)

    with ThreadPoolExecutor(6) as pool:
        for each in [*(pool.submit(change, n) for n in range(3)), *(pool.submit(read) for _ in range(3))]:
            each.result()
    assert set(most) == {1}


def test_who_waits_to_change_goes_before_those_who_come_to_read():
    gate, order = Gate(), []
    waits = threading.Event()

    class Told(threading.Condition):
        def wait(self, timeout=None):
            waits.set()
            return super().wait(timeout)

    gate._turn = Told(gate._lock)

    def change():
        with gate.alone():
            order.append("changed")

    def read():
        with gate.shared():
            order.append("read")

    with ThreadPoolExecutor(2) as pool:
        with gate.shared():
            changing = pool.submit(change)
            assert waits.wait(LONG)  # it is in line
            waits.clear()
            reading = pool.submit(read)
            assert waits.wait(LONG)  # behind it, though another reads already
            assert order == []
        changing.result()
        reading.result()
    assert order == ["changed", "read"]


def test_an_error_inside_lets_the_next_one_in():
    gate = Gate()
    for held in (gate.shared, gate.alone):
        with pytest.raises(ZeroDivisionError), held():
            raise ZeroDivisionError
    with gate.alone():
        pass


def route():
    module = nn.Linear(2, 1)
    table = Table(np.full(3, 0.1, np.float32), SGD(), seed=5, capacity=16)
    return DirectRoute(Shard(table, DenseBlock(module, make_optimizer("sgd", {"lr": 0.1}, module)), "global_mean"))


def test_new_ids_get_one_row_each_whoever_pulls_them():
    """Threads pull overlapping new ids while the index grows: each id has one row, and its own first value."""
    shared, ids = route(), np.random.default_rng(0).permutation(60_000).astype(np.int64) - 30_000
    pieces = [ids[start : start + 1500] for start in range(0, len(ids) - 1500, 500)]
    with ThreadPoolExecutor(4) as pool:
        pulled = list(pool.map(lambda piece: shared.pull(piece, None), pieces))
    assert shared.ids == len(set(np.concatenate(pieces).tolist()))
    table, alone = shared.shard.table, route().shard.table
    for piece, one in zip(pieces, pulled, strict=True):
        np.testing.assert_array_equal(table.find(piece), one.numbers[one.inverse])
        np.testing.assert_array_equal(alone.pull(alone.find(piece), piece), one.weights[one.inverse])


def test_rows_are_numbered_as_one_call_would_number_them():
    """Also where some of the ids are known."""
    shared, alone = route(), route().shard.table
    rng = np.random.default_rng(1)
    for _ in range(20):
        ids = np.unique(rng.integers(-500, 500, 80))
        rng.shuffle(ids)
        np.testing.assert_array_equal(shared.rows_of(ids), alone.find_or_insert(ids))


def test_an_index_that_grows_is_moved_also_by_pulls_that_bring_no_new_ids():
    shared = route()
    table, ids = shared.shard.table, np.arange(200_000)
    known = 0
    while not (len(table) > 90_000 and table.growing):  # an index of 131,072 places that begins to be left
        shared.rows_of(ids[known : known + 1000])
        known += 1000
    for _ in range((1 << 17) // (1 << 15) + 1):
        shared.rows_of(ids[:10])
    assert not table.growing
    assert len(table) == known
    np.testing.assert_array_equal(shared.rows_of(ids[:known]), np.arange(known))


def test_who_is_interrupted_while_waiting_to_change_holds_nobody_up():
    gate, queued, strike, behind, read = Gate(), *(threading.Event() for _ in range(4))

    class Interrupted(threading.Condition):
        def wait(self, timeout=None):
            if threading.current_thread().name.startswith("changing"):
                queued.set()
                self.release()
                assert strike.wait(LONG)
                self.acquire()
                raise KeyboardInterrupt
            behind.set()
            return super().wait(timeout)

    gate._turn = Interrupted(gate._lock)

    def change():
        with pytest.raises(KeyboardInterrupt), gate.alone():
            pass

    def come():
        with gate.shared():
            read.set()

    with ThreadPoolExecutor(1, "changing") as one, ThreadPoolExecutor(1, "reading") as other, gate.shared():
        changing = one.submit(change)
        assert queued.wait(LONG)
        reading = other.submit(come)
        assert behind.wait(LONG)
        strike.set()
        changing.result()
        assert read.wait(LONG)  # though the first reader has not left
        reading.result()
