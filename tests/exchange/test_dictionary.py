"""Ids that were named before travel as numbers; what the shard makes of them is what the worker meant."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.exchange.codes import by_length, from_lengths, packed_set, unpacked_set
from paceline.exchange.dictionary import IdReader, IdWriter

EDGES = [0, 1, -1, -(2**63), 2**63 - 1]
IDS = np.concatenate([EDGES, np.random.default_rng(0).integers(-(2**63), 2**63 - 1, 20_000)])


class Rows:
    """Gives each new id the next row, as a table does; remembers all that it was asked for."""

    def __init__(self):
        self.numbers, self.asked = {}, []

    def __call__(self, ids):
        self.asked += ids.tolist()
        return np.array([self.numbers.setdefault(key, len(self.numbers)) for key in ids.tolist()], np.int64)


def batches(seed, count, size, fields):
    """Distinct ids by a power law, and their fields."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        ids = np.unique(IDS[(len(IDS) ** rng.random(size)).astype(np.int64)])
        rng.shuffle(ids)
        yield ids, (ids % max(fields, 1)).astype(np.int32)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 400), st.sampled_from([0, 1, 3]), st.sampled_from([1, 50, 300, 1 << 22]))
def test_shards_find_the_rows_that_were_meant_whatever_the_capacity(seed, size, fields, capacity):
    writer, reader, rows = IdWriter(fields, capacity), IdReader(fields), Rows()
    for ids, of in batches(seed, 8, size, fields):
        named = writer.name(ids, of)
        found, rest = reader.read(np.concatenate([named.message, [np.uint8(7)]]), rows)
        assert rest.tolist() == [7]
        assert found.tolist() == [rows.numbers[key] for key in ids[named.order].tolist()]
        assert np.array_equal(np.sort(named.order), np.arange(len(ids)))
        assert (np.diff(of[named.order]) >= 0).all(), "a field's ids lie side by side"
        assert len(writer) == len(reader) <= max(capacity, len(ids))


def test_an_id_is_told_in_full_once():
    writer, reader, rows = IdWriter(), IdReader(), Rows()
    every = set()
    for ids, of in batches(1, 20, 3000, 0):
        named = writer.name(ids, of)
        reader.read(named.message, rows)
        new = set(ids.tolist()) - every
        every |= new
        assert named.fresh == len(new)
        assert named.listed == len(every) - len(new)
        known = len(ids) - len(new)
        assert len(named.message) <= 25 + 8 * len(new) + 2 * known
    assert len(rows.asked) == len(every), "known ids are not looked up"


def test_what_a_list_has_no_room_for_begins_it_anew():
    """Both sides, at the same batch: the next ones are told in full again."""
    writer, reader, rows = IdWriter(capacity=100), IdReader(), Rows()
    sizes, fresh = [], []
    for first in (0, 60, 60, 120, 60):
        named = writer.name(IDS[first : first + 60], np.zeros(60, np.int32))
        found, _ = reader.read(named.message, rows)
        assert found.tolist() == [rows.numbers[key] for key in IDS[first : first + 60][named.order].tolist()]
        sizes.append((len(writer), len(reader)))
        fresh.append(named.fresh)
    assert sizes == [(60, 60)] * 5
    assert fresh == [60, 60, 0, 60, 60]


def test_memory_of_an_id_is_what_is_documented():
    writer = IdWriter()
    ids = np.arange(1 << 17)
    writer.name(ids, np.zeros(len(ids), np.int32))
    assert 12 + 8 <= writer.bytes / len(ids) <= 12 + 16


@given(st.sets(st.integers(0, 2**31 - 1), max_size=300), st.sets(st.integers(0, 400), max_size=300))
def test_sets_survive_coding(wide, dense):
    for numbers in (sorted(wide), sorted(dense), sorted(wide | dense)):
        coded = packed_set(np.array(numbers, np.int64))
        found, at = unpacked_set(np.concatenate([np.zeros(3, np.uint8), coded]), 3, len(numbers))
        assert found.tolist() == numbers
        assert at == 3 + len(coded)


def test_a_dense_set_takes_about_a_bit_a_number():
    assert len(packed_set(np.arange(10_000))) < 10_000 * 1.1 / 8
    sparse = np.sort(np.random.default_rng(0).choice(1 << 20, 10_000, replace=False))
    assert len(packed_set(sparse)) < 10_000 * (np.log2(2**20 / 10_000) + 2) / 8


@given(st.lists(st.lists(st.integers(5, 2**31 - 1) | st.integers(5, 40), max_size=20), max_size=20))
def test_values_by_their_lengths_survive_coding(samples):
    counts = np.array([len(s) for s in samples], np.int64)
    values = np.array([v for s in samples for v in s], np.int64)
    coded, order = by_length(counts, values)
    found, out, at = from_lengths(np.concatenate([np.zeros(1, np.uint8), coded]), 1, len(samples))
    assert found.tolist() == counts.tolist()
    assert out.tolist() == values[order].tolist()
    sample_of = np.repeat(np.arange(len(samples)), counts)
    assert sample_of[order].tolist() == sample_of.tolist()
    assert at == 1 + len(coded)


def test_frequent_low_values_take_fewer_bits_than_the_largest_needs():
    rng = np.random.default_rng(0)
    values = (2000 ** rng.random(20_000)).astype(np.int64)
    coded, _ = by_length(np.full(2000, 10), values)
    assert 8 * len(coded) / len(values) < 9 < np.log2(2000)


@pytest.mark.parametrize("count", [0, 1])
def test_few_ids_are_no_special_case(count):
    named = IdWriter(2).name(IDS[:count], np.ones(count, np.int32))
    found, rest = IdReader(2).read(named.message, Rows())
    assert (found.shape, rest.shape) == ((count,), (0,))
