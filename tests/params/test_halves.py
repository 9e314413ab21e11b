"""Rows whose weights are bfloat16: the same updates, rounded by chance, by the same bits wherever a row lies."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from paceline.kernels.pointers import BLOCK_ROWS
from paceline.params.helpers import Helpers
from paceline.params.row_optimizers import BUILT_IN
from paceline.params.sparse import SGD, Adagrad, Clock, RowwiseAdagrad, SparseOptimizer
from paceline.params.table import RowBlock, RowGradient, Table

WIDTH = 5


def to_bf16(values):
    """Rounded to the nearest bfloat16, by torch."""
    return torch.from_numpy(np.ascontiguousarray(values)).to(torch.bfloat16).float().numpy()


def by_chance(values, version):
    """The numpy twin of `paceline.kernels.halves.narrow`: float32 [n, width] as bfloat16, widened again."""
    x = np.uint64(version)
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        salt = np.uint32((x ^ (x >> np.uint64(31))) & np.uint64(0xFFFFFFFF))
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
        h = (bits ^ salt) + np.arange(bits.shape[1], dtype=np.uint32) * np.uint32(0x9E3779B9)
        h = (h ^ (h >> np.uint32(16))) * np.uint32(0x85EBCA6B)
        h = (h ^ (h >> np.uint32(13))) * np.uint32(0xC2B2AE35)
        whole = (bits + (h >> np.uint32(16))) >> np.uint32(16) << np.uint32(16)
    return whole.view(np.float32)


def rows(ids, width=WIDTH, seed=0):
    return np.random.default_rng(seed).standard_normal((len(ids), width)).astype(np.float32)


def whole(table):
    """ids, weights, slots and clocks of a table, by id."""
    blocks = list(table.blocks())
    ids, weights, slots, clocks = (
        np.concatenate([getattr(b, name) for b in blocks]) for name in ("ids", "weights", "slots", "clocks")
    )
    order = np.argsort(ids)
    return ids[order], weights[order], slots[order], clocks[order]


def step(table, ids, grads, version, share=1.0, **more):
    parts = [RowGradient(table.find_or_insert(ids), grads, share, version - 1, **more)]
    return table.apply(parts, Clock(version, 10 * version), None, 0)


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_a_step_is_that_of_float32_rows_then_rounded(name):
    ids = np.arange(40)
    half = Table(np.full(WIDTH, 0.3, np.float32), BUILT_IN[name](), seed=4, half=True)
    for version in range(1, 9):
        touched = ids[version % 3 :: 2]
        full = Table(half.bounds, BUILT_IN[name](), seed=4)
        half.find_or_insert(ids)
        for block in half.blocks():
            full.load(block)
        grads = rows(touched, seed=version)
        assert step(half, touched, grads, version) == step(full, touched, grads, version) == len(touched)
        _, weights, slots, clocks = whole(full)
        expected = np.where((clocks[:, :1] == version), by_chance(weights, version), weights)
        found = whole(half)
        np.testing.assert_array_equal(found[1], expected)
        np.testing.assert_array_equal(found[2], slots)
        np.testing.assert_array_equal(found[3], clocks)
        assert not np.array_equal(weights, expected), "nothing was rounded"
        np.testing.assert_array_equal(to_bf16(found[1]), found[1])


def test_steps_below_the_spacing_are_taken_on_average():
    """Around 1 numbers lie 1/256 apart and more: steps of about 1/4096, rounded to the nearest, lead nowhere."""
    ids, steps, random = np.arange(2000), 64, np.random.default_rng(3)
    table = Table(np.zeros(WIDTH, np.float32), SGD(1.0), seed=0, half=True)
    table.load(RowBlock(ids, np.ones((2000, WIDTH), np.float32), np.zeros((2000, 0)), np.zeros((2000, 2), np.int64)))
    taken = 0.0
    for version in range(1, steps + 1):
        grads = (random.uniform(0.5, 1.5, (2000, WIDTH)) / 4096).astype(np.float32)
        assert (to_bf16(np.float32(1) - grads) == 1).all()
        step(table, ids, grads, version)
        taken += grads.mean()
    moved = 1 - table.pull(table.find(ids), ids).astype(np.float64).mean()
    # The mean of 10,000 numbers, each off by the spacing of one step in sixteen: 0.5 %.
    assert moved == pytest.approx(taken, rel=0.02)


def test_a_row_starts_where_an_unknown_id_is_pulled_from():
    ids = np.arange(-300, 300)
    table = Table(np.full(WIDTH, 0.02, np.float32), Adagrad(), seed=9, half=True)
    unknown = table.pull(table.find(ids), ids)
    full = Table(np.full(WIDTH, 0.02, np.float32), Adagrad(), seed=9)
    np.testing.assert_array_equal(unknown, to_bf16(full.pull(full.find(ids), ids)))
    np.testing.assert_array_equal(table.pull(table.find_or_insert(ids), ids), unknown)
    np.testing.assert_array_equal(table.copy(np.arange(600)).weights, unknown)


def test_neither_the_order_of_rows_nor_the_number_of_threads_changes_a_bit():
    ids = np.random.default_rng(1).permutation(20_000)
    tables = []
    for order, threads in ((ids, 1), (np.sort(ids), 1), (ids, 2)):
        helpers = Helpers(threads, lambda: None)
        table = Table(np.full(WIDTH, 0.1, np.float32), BUILT_IN["adam"](), seed=2, half=True, helpers=helpers)
        for version in (1, 2):
            step(table, order, rows(ids, seed=version)[np.argsort(ids)][order], version)
        tables.append(whole(table))
    for other in tables[1:]:
        for mine, its in zip(tables[0], other, strict=True):
            np.testing.assert_array_equal(mine, its)


def test_what_is_kept_goes_on_the_same_and_from_one_precision_to_the_other():
    ids = np.arange(BLOCK_ROWS + 7)
    table = Table(np.full(WIDTH, 0.1, np.float32), RowwiseAdagrad(), seed=2, half=True)
    step(table, ids, rows(ids), 1)
    again, full = (Table(table.bounds, RowwiseAdagrad(), seed=2, half=half) for half in (True, False))
    for block in table.blocks():
        again.load(block)
        full.load(block)
    for other in (again, full):
        for mine, its in zip(whole(table), whole(other), strict=True):
            np.testing.assert_array_equal(mine, its)
    for t in (table, again):
        step(t, ids[5:], rows(ids[5:], seed=2), 2)
    for mine, its in zip(whole(table), whole(again), strict=True):
        np.testing.assert_array_equal(mine, its)


def test_half_the_memory():
    ids = np.arange(4 * BLOCK_ROWS)
    half, full = (Table(np.full(16, 0.1, np.float32), RowwiseAdagrad(), seed=2, half=half) for half in (True, False))
    for table in (half, full):
        table.find_or_insert(ids)
    assert sum(a.nbytes for a in half._records.arrays) == len(ids) * (2 * 16 + 4)
    assert sum(a.nbytes for a in full._records.arrays) == len(ids) * (4 * 16 + 4)
    odd = Table(np.full(3, 0.1, np.float32), RowwiseAdagrad(), seed=2, half=True)
    odd.find_or_insert(ids[:1])
    assert odd._records.width == 2 + 1


def test_what_is_not_finite_stays_so():
    ids = np.arange(3)
    table = Table(np.zeros(1, np.float32), SGD(1.0), seed=0, half=True)
    step(table, ids, np.array([[np.inf], [-np.inf], [np.nan]], np.float32), 1)
    np.testing.assert_array_equal(table.pull(table.find(ids), ids), [[-np.inf], [np.inf], [np.nan]])


def test_a_ball_holds():
    ids = np.arange(500)
    table = Table(np.full(WIDTH, 1.0, np.float32), SGD(0.5), seed=3, half=True, balls=((1, 4, 0.7),))
    step(table, ids[:400], rows(ids[:400]), 1)
    _, weights, _, _ = whole(table)
    norms = np.linalg.norm(weights[:, 1:4].astype(np.float64), axis=1)
    assert (norms[:400] <= 0.7).all()
    assert (norms[:400] > 0.69).sum() > 200
    np.testing.assert_array_equal(to_bf16(weights), weights)


@dataclass(frozen=True)
class SignSGD(SparseOptimizer):
    """One in numpy."""

    def slots(self, width):
        return 0

    def update(self, weights, slots, grads, clock):
        weights -= np.float32(0.001) * np.sign(grads)


def test_an_optimizer_in_numpy_and_a_part_of_a_step():
    ids = np.arange(50)
    for optimizer in (SignSGD(), SGD(0.1)):
        half = Table(np.full(WIDTH, 0.3, np.float32), optimizer, seed=4, half=True)
        half.find_or_insert(ids)
        full = Table(half.bounds, optimizer, seed=4)
        for block in half.blocks():
            full.load(block)
        for table in (half, full):
            part = RowGradient(table.find(ids), rows(ids), 1.0, 0, 0.5, np.zeros(50, np.int32))
            table.apply([part], Clock(3, 30), None, 0, np.ones(1, np.float32), True)
        np.testing.assert_array_equal(whole(half)[1], by_chance(whole(full)[1], 3))
