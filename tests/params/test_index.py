"""An index that grows: every id is found all the while, whatever is moved when."""

import numpy as np
import pytest

from paceline.kernels import index as kernels
from paceline.params import index as rooms
from paceline.params.blocks import Blocks
from paceline.params.index import Index
from paceline.params.memory import PAGE, Memory


class Ids:
    """An index with the ids that its rows have, beside a dictionary."""

    def __init__(self, capacity):
        self.index, self.ids, self.rows = Index(capacity), Blocks(1, np.int64), {}

    def insert(self, ids):
        ids, size = np.array(ids, np.int64), len(self.rows)
        self.index.make_room(self.ids.addresses, size, len(ids))
        self.ids.reserve(size + len(ids))
        found = np.empty(len(ids), np.int64)
        added = self.index.find_or_insert(self.ids.addresses, size, ids, found)
        for key, row in zip(ids.tolist(), found.tolist(), strict=True):
            assert self.rows.setdefault(key, row) == row
            self.ids.arrays[row >> 15][row & 32767] = key
        assert size + added == len(self.rows)

    def check(self, unknown=()):
        """All that were inserted are where they were; the unknown ones are nowhere."""
        ids = np.array([*self.rows, *unknown], np.int64)
        found = np.empty(len(ids), np.int64)
        missing = self.index.find(self.ids.addresses, len(self.rows), ids, found)
        assert found.tolist() == [*self.rows.values(), *[-1] * len(unknown)]
        assert missing == len(unknown)


@pytest.fixture
def slowly(monkeypatch):
    """What is moved at a time is no more than each new id asks for."""
    monkeypatch.setattr(rooms, "_MOVED_PER_CALL", 1)


@pytest.mark.parametrize("seed", range(5))
def test_every_id_is_found_while_the_index_grows_an_id_at_a_time(slowly, seed):
    rng = np.random.default_rng(seed)
    ids = rng.integers(-(2**63), 2**63, 3000, dtype=np.int64)
    unknown = rng.integers(-(2**63), 2**63, 50, dtype=np.int64)
    table, growing = Ids(16), 0
    for key in ids.tolist():
        table.insert([key])
        growing += table.index.growing
        if len(table.rows) % 7 == 0 or len(table.rows) < 200:
            table.check(unknown)
    table.check(unknown)
    assert growing > 150, "it was caught while it grew"


def keys_at(place, capacity, count, rng):
    """Ids whose first place in an index of that size is `place`."""
    found = []
    while len(found) < count:
        ids = rng.integers(-(2**63), 2**63, 4096, dtype=np.int64)
        found += [key for key in ids.tolist() if kernels.place_of(key, capacity) == place]
    return found[:count]


@pytest.mark.parametrize("place", [0, 1, 511, 510, 300])
def test_a_chain_that_lies_around_the_end_is_moved_whole(slowly, place):
    """All ids begin at the same place of every index: one chain, which new ids make longer while it is moved."""
    rng = np.random.default_rng(place)
    far = keys_at(place, 1024, 300, rng)  # of 512 places, too, if place < 512
    table = Ids(512)
    table.insert(keys_at((place + 400) % 512, 512, 100, rng))
    for key in far:
        table.insert([key])
        table.check([far[-1] ^ 1])
    for key in rng.integers(0, 2**62, 400).tolist():  # until the index of 512 has been left
        table.insert([key])
        table.check()
    assert table.index._entries.shape[0] > 512


def test_more_ids_than_an_index_has_places_come_at_once(slowly):
    rng = np.random.default_rng(0)
    table = Ids(16)
    table.insert(rng.integers(0, 2**62, 10))
    table.insert(rng.integers(0, 2**62, 5000))
    table.check([-1])


def test_a_large_index_grows_within_its_bytes():
    """At no time more than the new one alone has at the end, and a half of it at the start; a look-up of what was given
    back finds nothing there."""
    capacity = 1 << 20
    rng = np.random.default_rng(0)
    table, before = Ids(capacity), 8 * capacity
    ids = rng.permutation(1_000_000)
    sizes = []
    for start in range(0, len(ids), 20_000):
        table.insert(ids[start : start + 20_000])
        sizes.append((len(table.rows), table.index.growing, table.index.bytes))
    table.check(range(2_000_000, 2_000_100))
    growing = [size for _, now, size in sizes if now]
    assert len(growing) >= 3
    assert before <= min(growing)
    assert max(growing) < 2 * before + 2 * PAGE
    assert growing == sorted(growing)
    assert all(size < 24 * rows for rows, _, size in sizes if rows > 400_000)


def test_memory_that_went_back_reads_as_zero_and_comes_again():
    memory = Memory(3 * PAGE + 100)
    memory.bytes[:] = 7
    given = memory.give_back(10, 3 * PAGE)
    if given == 0:
        pytest.skip("this system takes no memory back")
    assert given == 2 * PAGE
    assert (memory.bytes[:PAGE] == 7).all()
    assert not memory.bytes[PAGE : 3 * PAGE].any()
    assert (memory.bytes[3 * PAGE :] == 7).all()
    assert memory.give_back(PAGE, 2 * PAGE - 1) == 0, "no whole page"
    memory.bytes[PAGE] = 1
    assert memory.bytes[PAGE] == 1


def test_more_memory_than_there_is_says_how_much():
    with pytest.raises(MemoryError, match="9,223,372,036,854,775,000 bytes"):
        Memory(9_223_372_036_854_775_000)
