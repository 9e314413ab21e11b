"""Tables: growth, first values, repeats, and the rule for rows of late gradients."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.kernels.pointers import BLOCK_ROWS
from paceline.params.sparse import SGD, Adagrad, Clock
from paceline.params.table import REDUCE, RowGradient, Table, unique


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=60), max_size=12))
def test_a_table_is_a_dictionary(batches):
    table = Table(np.ones(2, np.float32), SGD(), seed=0, capacity=4)
    known: dict[int, int] = {}
    for batch in batches:
        ids = np.array(sorted(set(batch)), np.int64)
        assert table.find(ids).tolist() == [known.get(i, -1) for i in ids.tolist()]
        for key, row in zip(ids.tolist(), table.find_or_insert(ids).tolist(), strict=True):
            assert known.setdefault(key, row) == row
    assert len(table) == len(known)
    assert len(set(known.values())) == len(known)


def test_growth_keeps_every_row_and_moves_no_block():
    table = Table(np.full(3, 0.1, np.float32), Adagrad(), seed=1, capacity=16)
    rng = np.random.default_rng(0)
    ids = np.unique(rng.integers(-(2**63), 2**63 - 1, 3 * BLOCK_ROWS))
    rng.shuffle(ids)
    first = table.pull(table.find_or_insert(ids[:1000]), ids[:1000])
    block = table._records.arrays[0]
    for start in range(1000, len(ids), 7001):
        table.find_or_insert(ids[start : start + 7001])
    assert table._records.arrays[0] is block
    np.testing.assert_array_equal(table.pull(table.find(ids[:1000]), ids[:1000]), first)
    assert (np.sort(table.find(ids)) == np.arange(len(ids))).all()


def test_first_values_depend_on_seed_and_id_alone():
    ids = np.arange(-500, 500)
    one, other = (Table(np.full(4, 0.02, np.float32), SGD(), seed=9) for _ in range(2))
    a = one.pull(one.find_or_insert(ids), ids)
    shuffled = np.random.default_rng(0).permutation(ids)
    for piece in np.array_split(shuffled, 13):
        other.find_or_insert(piece)
    np.testing.assert_array_equal(other.pull(other.find(ids), ids), a)
    unseen = Table(np.full(4, 0.02, np.float32), SGD(), seed=9)
    np.testing.assert_array_equal(unseen.pull(unseen.find(ids), ids), a)
    assert len(unseen) == 0
    different = Table(np.full(4, 0.02, np.float32), SGD(), seed=10)
    assert not np.array_equal(different.pull(different.find(ids), ids), a)
    assert abs(a.mean()) < 0.002
    assert abs(a.std() - 0.02 / 3**0.5) < 0.0005
    assert (np.abs(a) <= 0.02).all()


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=200))
def test_unique_numbers_ids_in_order_of_first_appearance(values):
    ids = np.array(values, np.int64)
    distinct, inverse = unique(ids)
    np.testing.assert_array_equal(distinct[inverse], ids)
    assert distinct.tolist() == list(dict.fromkeys(values))


def one_id_table(last_update):
    """A table with id 7 whose last update was at version `last_update`."""
    table = Table(np.zeros(1, np.float32), SGD(1.0), seed=0)
    [row] = table.find_or_insert(np.array([7]))
    table.apply([RowGradient(np.array([row]), np.zeros((1, 1), np.float32), 1.0, 0)], Clock(last_update, 0), None, 0)
    return table, np.array([row])


@pytest.mark.parametrize(
    ("last_update", "rule", "expected"),
    [
        (8, "global_mean", 0.45),
        (8, "per_id_mean", 0.6),
        (8, "sum", 1.8),
        (10, "global_mean", 0.225),
        (10, "per_id_mean", 0.45),
        (10, "sum", 0.9),
    ],
)
def test_the_worked_vector_of_gba(last_update, rule, expected):
    """gba.md, section 5: M = 4, k = 10, iota = 3; entries 1, 3, 4 hold id 7 with gradients 0.3, 0.6, 0.9."""
    table, row = one_id_table(last_update)
    entries = [(10, 0.3), (9, None), (7, 0.6), (6, 0.9)]
    parts = []
    for token, gradient in entries:
        rows = row if gradient is not None else np.empty(0, np.int64)
        values = np.array([[gradient]], np.float32) if gradient is not None else np.empty((0, 1), np.float32)
        parts.append(RowGradient(rows, values, 0.25, token))
    table.apply(parts, Clock(11, 0), 3, REDUCE[rule])
    assert -table.pull(row, np.array([7]))[0, 0] == pytest.approx(expected, rel=1e-6)


def test_a_row_without_a_kept_gradient_is_left_alone():
    table = Table(np.zeros(1, np.float32), Adagrad(0.1, initial=0.5), seed=0)
    ids = np.array([7])
    row = table.find_or_insert(ids)
    table.apply([RowGradient(row, np.ones((1, 1), np.float32), 1.0, 19)], Clock(20, 0), None, 0)
    before = next(iter(table.blocks()))
    table.apply([RowGradient(row, np.ones((1, 1), np.float32), 1.0, 10)], Clock(21, 0), 3, 0)
    after = next(iter(table.blocks()))
    for name in ("weights", "slots", "clocks"):
        np.testing.assert_array_equal(getattr(before, name), getattr(after, name))


def test_the_order_of_pushes_does_not_matter_but_their_numbers_do():
    """gba.md, vector 8: parts are sorted by gradient before they are summed, so the table sees one order only."""
    rng = np.random.default_rng(0)
    grads = rng.normal(size=(3, 5, 2)).astype(np.float32)
    results = []
    for _ in range(2):
        table = Table(np.full(2, 0.1, np.float32), Adagrad(), seed=0)
        rows = table.find_or_insert(np.arange(5))
        parts = [RowGradient(rows, g, 1 / 3, 0) for g in grads]
        table.apply(parts, Clock(1, 0), None, 0)
        results.append(table.pull(rows, np.arange(5)))
    np.testing.assert_array_equal(results[0], results[1])


def test_ids_whose_hashes_begin_alike_are_told_apart():
    """A place of the index holds 24 bits of an id's hash: that is not yet the id."""
    golden, whole = 0x9E3779B97F4A7C15, 1 << 64
    back = pow(golden, -1, whole)
    alike = [((0xABCDEF12 << 32 | low) * back) % whole for low in range(3000)]
    ids = np.array([key - whole if key >= whole // 2 else key for key in alike], np.int64)
    table = Table(np.ones(2, np.float32), SGD(), seed=0, capacity=16)
    rows = np.concatenate([table.find_or_insert(ids[start : start + 700]) for start in range(0, 2100, 700)])
    assert rows.tolist() == list(range(2100))
    assert table.find(ids).tolist() == [*range(2100), *[-1] * 900]
    assert table.find_or_insert(ids[::-1].copy()).tolist() == [*range(2100, 3000), *range(2100)[::-1]]


@pytest.mark.parametrize("dim", [8, 16, 64])
def test_bytes_of_a_row(dim):
    """The index takes 8 bytes a place, and at least three eighths of the places are used once it has moved; a large one
    takes no more while it moves."""
    table = Table(np.ones(dim, np.float32), Adagrad(), seed=0)
    bound = 1.3 * (4 * 2 * dim + 24)
    for rows in (1, 2, 3, 6, 10, 13, 30):
        ids = np.arange(rows * BLOCK_ROWS)
        while len(table) < len(ids) or table.growing:
            table.find_or_insert(ids[len(table) : len(table) + 40_000])
            assert len(table) < 20 * BLOCK_ROWS or table.bytes <= bound * len(table)
        assert table.bytes <= bound * len(table)
