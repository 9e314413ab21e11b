"""Weights on gradients and on steps, of whole gradients and of each row by the updates that it missed."""

import numpy as np
import pytest
import torch
from torch import nn

from paceline.pace import Weight
from paceline.params.dense import DenseBlock, make_optimizer
from paceline.params.row_optimizers import BUILT_IN
from paceline.params.shard import Gradient, Shard, Weighted
from paceline.params.sparse import Clock
from paceline.params.table import Table

IDS = np.array([11, 22, 33], np.int64)


def shard(optimizer="adagrad", dense="adagrad", **options):
    torch.manual_seed(3)
    module = nn.Linear(4, 1)
    table = Table(np.full(2, 0.1, np.float32), BUILT_IN[optimizer](lr=0.1, **options), seed=5)
    made = Shard(table, DenseBlock(module, make_optimizer(dense, {"lr": 0.1}, module)), "global_mean")
    return made, table.find_or_insert(IDS)


def pushed(rows, counts, scale=1.0):
    return Gradient(torch.full((5,), 0.3 * scale), rows, np.full((3, 2), 0.2 * scale, np.float32), counts)


def weights(made, rows):
    return made.table.pull(rows, IDS), made.dense.flat.clone()


@pytest.mark.parametrize("on", ["gradient", "step"])
def test_whole_gradients(on):
    """A weight on the gradient is a scaled gradient; on the step it is that share of the step."""
    w = 0.25
    one, rows = shard()
    counts = np.zeros(3, np.int32)
    before_rows, before_dense = weights(one, rows)
    factor = w if on == "gradient" else 1.0
    one.apply(1, 8, [Weighted(pushed(rows, counts), 1.0, factor, 0, w)], None, Weight("power", 2, scales=on))
    other, _ = shard()
    scaled = pushed(rows, counts, w if on == "gradient" else 1.0)
    other.apply(1, 8, [Weighted(scaled, 1.0, 1.0, 0)], None)
    got_rows, got_dense = weights(one, rows)
    full_rows, full_dense = weights(other, rows)
    share = 1.0 if on == "gradient" else w
    np.testing.assert_allclose(got_rows, before_rows + share * (full_rows - before_rows), rtol=1e-5)
    torch.testing.assert_close(got_dense, before_dense + share * (full_dense - before_dense))


@pytest.mark.parametrize("on", ["gradient", "step"])
@pytest.mark.parametrize("name", ["sgd", "adagrad", "rowwise_adagrad", "adam", "adagrad_swap"])
def test_each_row_by_the_updates_that_it_missed(on, name):
    """Row 11 was updated nine times since the pull, row 22 once, row 33 never: power with k = 2 gives 1/3, 1, 1."""
    law = Weight("power", 2, "row", on)
    made, rows = shard(name)
    plain, _ = shard(name)
    version = 0
    for times, row in ((9, 0), (1, 1)):
        for _ in range(times):
            version += 1
            one = Gradient(torch.zeros(5), rows[row : row + 1], np.full((1, 2), 0.1, np.float32), None)
            for s in (made, plain):
                s.apply(version, 8 * version, [Weighted(one, 1.0, 1.0, version - 1)], None)
    start, _ = weights(made, rows)
    late = pushed(rows, np.zeros(3, np.int32))
    made.apply(version + 1, 99, [Weighted(late, 1.0, 0.1, 0, 0.1)], None, law)
    row_weights = np.array([[1 / 3], [1], [1]], np.float32)
    scale = row_weights if on == "gradient" else np.ones((3, 1), np.float32)
    plain.apply(version + 1, 99, [Weighted(_scaled(late, scale), 1.0, 1.0, 0)], None)
    share = row_weights if on == "step" else np.ones((3, 1), np.float32)
    expected = start + share * (weights(plain, rows)[0] - start)
    np.testing.assert_allclose(weights(made, rows)[0], expected, rtol=2e-5, atol=1e-8)


def _scaled(gradient, scale):
    return Gradient(gradient.dense, gradient.rows, gradient.row_gradients * scale, gradient.counts)


def test_a_numpy_optimizer_is_weighed_as_its_kernel_is():
    class Twin(BUILT_IN["adagrad"]):
        kind = -1

    found = []
    for optimizer in (BUILT_IN["adagrad"](lr=0.1), Twin(lr=0.1)):
        table = Table(np.full(2, 0.1, np.float32), optimizer, seed=5)
        rows = table.find_or_insert(IDS)
        module = nn.Linear(4, 1)
        made = Shard(table, DenseBlock(module, make_optimizer("sgd", {"lr": 0.1}, module)), "global_mean")
        parts = [
            Weighted(pushed(rows, np.zeros(3, np.int32)), 0.5, 1.0, 0, 0.5),
            Weighted(pushed(rows[:2], np.zeros(2, np.int32)), 0.5, 1.0, 0, 0.2),
        ]
        parts[1] = Weighted(Gradient(torch.ones(5), rows[:2], np.ones((2, 2), np.float32)), 0.5, 1.0, 0, 0.2)
        made.apply(1, 8, parts, None, Weight("power", 2, "gradient", "step"))
        found.append(table.pull(rows, IDS))
    np.testing.assert_allclose(found[0], found[1], rtol=1e-6)


def test_the_dense_step_weighs_what_its_uncut_parts_weigh():
    made, rows = shard(dense="sgd")
    before = made.dense.flat.clone()
    gradients = [Gradient(torch.full((5,), g), rows[:0], np.zeros((0, 2), np.float32)) for g in (1.0, 3.0, 7.0)]
    parts = [Weighted(gradients[0], 0.25, 1.0, 0, 0.8), Weighted(gradients[1], 0.25, 1.0, 0, 0.4)]
    parts.append(Weighted(gradients[2], 0.5, 0.0, 0, 0.1))  # cut
    made.apply(1, 8, parts, None, Weight("power", 2, scales="step"))
    torch.testing.assert_close(made.dense.flat, before - 0.1 * (0.25 * 1 + 0.25 * 3) * 0.6)


def test_fresh_gradients_weigh_one_bit_for_bit():
    """Sync has staleness 0 everywhere: any law leaves it bitwise unchanged."""
    for law in (None, Weight("power", 2), Weight("power", 2, "row"), Weight("inverse", 2, "row", "step")):
        made, rows = shard()
        for version in range(1, 6):
            counts = np.full(3, version - 1, np.int32)
            made.apply(version, version, [Weighted(pushed(rows, counts), 1.0, 1.0, version - 1)], 0, law)
        state = weights(made, rows)
        if law is None:
            plain = state
        np.testing.assert_array_equal(state[0], plain[0])
        assert torch.equal(state[1], plain[1])


def test_a_dense_step_of_one_is_the_plain_step():
    for part in (1.0, 0.5):
        torch.manual_seed(0)
        module = nn.Linear(3, 1)
        block = DenseBlock(module, make_optimizer("adam", {"lr": 0.1}, module))
        before = block.flat.clone()
        block.apply(torch.ones(4), Clock(1, 1), part)
        torch.testing.assert_close(block.flat, before - 0.1 * part, rtol=1e-4, atol=1e-6)


def test_a_law_of_rows_needs_their_counts():
    made, rows = shard()
    with pytest.raises(ValueError, match="needs the counts"):
        made.apply(1, 8, [Weighted(pushed(rows, None), 1.0, 1.0, 0)], None, Weight("power", 2, "row"))
