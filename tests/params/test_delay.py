"""Delay-aware Adagrad against vectors worked out by hand, in its three bodies, with one and with several gradients.

The numbers are chosen so that sums of squares have whole roots: with the sum of gradients s, nothing applied before and
every gradient computed at the start, z = 144 + s^2, and 144 + 5^2 = 13^2, 144 + 9^2 = 15^2, 144 + 16^2 = 20^2.
"""

import numpy as np
import pytest
import torch
from torch import nn

from paceline.errors import ConfigError
from paceline.params.delay import AdagradDelay
from paceline.params.dense import DenseBlock, make_optimizer
from paceline.params.dense_rows import RowsOptimizer
from paceline.params.row_optimizers import BUILT_IN, row_optimizer
from paceline.params.shard import Applied, Gradient, Shard, Weighted
from paceline.params.sparse import Adagrad, Clock
from paceline.params.table import REDUCE, RowBlock, RowGradient, Table

ID = np.array([7], np.int64)


class NoKernel(AdagradDelay):
    """The numpy twin, as a user's own optimizer runs."""

    kind = -1


def f32(*values):
    return np.array(values, np.float32).reshape(1, -1)


class Rows:
    def __init__(self, revise, kind=AdagradDelay):
        optimizer = kind(lr=1.0, initial=144.0, revise=revise)
        self.table, self.version = Table(np.zeros(1, np.float32), optimizer, seed=0), 0
        self.table.load(RowBlock(ID, f32(0), optimizer.slot_start(1).reshape(1, -1), np.zeros((1, 2), np.int64)))

    def step(self, *parts, **options):
        """parts: (gradient, sum of applied gradients at its read, share)."""
        self.version += 1
        rows = self.table.find(ID)
        made = [RowGradient(rows, f32(g), share, 0, 1.0, None, f32(read)) for g, read, share in parts]
        self.table.apply(made, Clock(self.version, 1), None, REDUCE[options.get("reduce", "global_mean")])

    @property
    def state(self):
        (block,) = self.table.blocks()
        return [float(block.weights[0, 0]), *block.slots[0].tolist()]


class Twin(Rows):
    def __init__(self, revise):
        super().__init__(revise, NoKernel)


class Dense:
    def __init__(self, revise):
        module = nn.Module()
        module.w = nn.Parameter(torch.zeros(1))
        optimizer = RowsOptimizer(module.parameters(), AdagradDelay(1.0, 144.0, revise))
        self.block, self.version = DenseBlock(module, optimizer), 0
        self.shard = Shard(Table(np.zeros(1, np.float32), Adagrad(), seed=0), self.block, "global_mean")

    def step(self, *parts):
        self.version += 1
        none = np.zeros((0, 1), np.float32)
        gradients = [
            Gradient(torch.tensor([float(g)]), ID[:0], none, None, Applied(None, torch.tensor([float(read)])))
            for g, read, _ in parts
        ]
        weighted = [Weighted(g, share, 1.0, 0) for g, (*_, share) in zip(gradients, parts, strict=True)]
        self.shard.apply(self.version, 1, weighted, None)

    @property
    def state(self):
        (slots,) = self.block.slots()[0].values()
        return [float(self.block.flat[0]), *slots.tolist()]


bodies = pytest.mark.parametrize("body", [Rows, Twin, Dense])


@bodies
@pytest.mark.parametrize("revise", [True, False])
def test_gradients_that_push_the_same_way_and_missed_each_other(body, revise):
    """With revision all steps end up at the last rate: w = -s / sqrt(144 + s^2)."""
    held = body(revise)
    for gradient, total, weight in ((5, 5, -5 / 13), (4, 9, -5 / 13 - 4 / 15), (7, 16, -5 / 13 - 4 / 15 - 7 / 20)):
        held.step((gradient, 0.0, 1.0))
        z = 144 + total**2
        expected = -total / z**0.5 if revise else weight
        np.testing.assert_allclose(held.state, [expected, z, z, total], rtol=1e-6)


@bodies
def test_one_that_pushes_back_lowers_z_and_not_the_rate(body):
    """g = -16 missed b = 16: z = 400 + 256 - 512 = 144, top stays 400 and nothing is revised."""
    held = body(True)
    held.step((16, 0.0, 1.0))
    np.testing.assert_allclose(held.state, [-16 / 20, 400, 400, 16], rtol=1e-6)
    held.step((-16, 0.0, 1.0))
    np.testing.assert_allclose(held.state, [0, 144, 400, 0], atol=1e-6)
    held.step((1, 0.0, 1.0))  # z = 145 is below top still
    np.testing.assert_allclose(held.state, [-1 / 20, 145, 400, 1], rtol=1e-5)


@bodies
@pytest.mark.parametrize("revise", [True, False])
def test_an_update_of_several_gradients_counts_what_each_missed(body, revise):
    """a = 6/2 missed nothing of s = 9, a = 8/2 missed all of it: z = 225 + 7^2 + 2 * 4 * 9 = 346, mean missed 4.5."""
    held = body(revise)
    held.step((10, 0.0, 0.5), (8, 0.0, 0.5))  # 5 + 4, at once: nothing was applied before
    np.testing.assert_allclose(held.state, [-9 / 15, 225, 225, 9], rtol=1e-6)
    held.step((6, 9.0, 0.5), (8, 0.0, 0.5))
    root = 346**0.5
    weight = -9 / 15 - 7 / root + ((1 / 15 - 1 / root) * 4.5 if revise else 0)
    np.testing.assert_allclose(held.state, [weight, 346, 346, 16], rtol=1e-6)


@pytest.mark.parametrize("body", [Rows, Twin])
def test_the_mean_over_the_parts_that_have_the_row(body):
    """per_id_mean divides by the kept shares, the overlap too: a = 6 and 8 over 2, as above."""
    held = body(False)
    held.step((9, 0.0, 0.1), reduce="per_id_mean")
    held.step((6, 9.0, 0.25), (8, 0.0, 0.25), reduce="per_id_mean")
    np.testing.assert_allclose(held.state[1:], [346, 346, 16], rtol=1e-6)


def test_a_part_that_is_cut_has_no_overlap():
    held = Rows(False)
    held.step((9, 0.0, 1.0))
    rows = held.table.find(ID)
    late = RowGradient(rows, f32(100), 0.5, 0, 1.0, None, f32(0))  # the row changed at 1, its token is 0
    held.table.apply([late, RowGradient(rows, f32(8), 0.5, 1, 1.0, None, f32(9))], Clock(2, 1), 0, 0)
    np.testing.assert_allclose(held.state[1:], [225 + 16, 225 + 16, 13], rtol=1e-6)


@pytest.mark.parametrize("revise", [True, False])
@pytest.mark.parametrize("on_step", [True, False])
def test_kernel_and_twin_agree_bitwise(revise, on_step):
    found = []
    for kind in (AdagradDelay, NoKernel):
        random = np.random.default_rng(4)
        table = Table(np.full(3, 0.1, np.float32), kind(lr=0.1, revise=revise), seed=5)
        ids = np.arange(40, dtype=np.int64)
        rows = table.find_or_insert(ids)
        reads = [table.applied(rows)]
        for version in range(1, 25):
            parts = []
            for weight in (0.25, 1.0, 0.5):
                chosen = random.permutation(40)[:20]
                gradients = random.standard_normal((20, 3)).astype(np.float32)
                read = reads[random.integers(len(reads))][chosen]
                parts.append(RowGradient(rows[chosen], gradients, 1 / 3, 0, weight, None, read))
            table.apply(parts, Clock(version, version), None, 0, on_step=on_step)
            reads.append(table.applied(rows))
        found.append(np.concatenate([np.concatenate([b.weights, b.slots], axis=1) for b in table.blocks()]))
    assert found[0].tobytes() == found[1].tobytes()


def test_nothing_missed_is_adagrad_bit_for_bit():
    """Also where a gradient carries no sums at all: a route on which nothing is ever stale needs none."""
    found = []
    for name, options in (("adagrad", {"eps": 0.0}), ("adagrad_delay", {}), ("adagrad_delay", {})):
        random = np.random.default_rng(1)
        table = Table(np.full(2, 0.1, np.float32), BUILT_IN[name](lr=0.1, initial=0.01, **options), seed=5)
        rows = table.find_or_insert(np.arange(9))
        for version in range(1, 30):
            gradients = random.standard_normal((9, 2)).astype(np.float32)
            read = table.applied(rows) if len(found) == 1 else None
            table.apply([RowGradient(rows, gradients, 1.0, 0, 1.0, None, read)], Clock(version, 1), None, 0)
        found.append(table.pull(rows, np.arange(9)))
    assert found[0].tobytes() == found[1].tobytes() == found[2].tobytes()


def test_what_travels_is_counted():
    torch.manual_seed(1)
    module = nn.Linear(4, 1)
    table = Table(np.full(2, 0.1, np.float32), AdagradDelay(), seed=5)
    made = Shard(table, DenseBlock(module, make_optimizer("adagrad_delay", {"lr": 0.1}, module)), "global_mean")
    rows = table.find_or_insert(np.arange(3))
    along = made.applied(rows)
    assert along.bytes == 4 * (3 * 2 + 5)
    pushed = Gradient(torch.ones(5), rows, np.ones((3, 2), np.float32), None, along)
    assert pushed.bytes == 4 * 5 + 8 * 3 + 4 * 6 + along.bytes
    made.apply(1, 8, [Weighted(pushed, 1.0, 1.0, 0)], None)
    assert along.dense.tolist() == [0.0] * 5, "what was read must not change behind its reader"
    assert made.applied(rows).dense.tolist() == [1.0] * 5
    plain = Shard(
        Table(table.bounds, Adagrad(), 5), DenseBlock(nn.Linear(4, 1), torch.optim.SGD([nn.Parameter()])), "sum"
    )
    assert plain.applied(rows) is None


def test_options():
    made = row_optimizer("optimizer.sparse", "adagrad_delay", AdagradDelay, {"lr": "0.5", "revise": False})
    assert made == AdagradDelay(0.5, revise=False)
    with pytest.raises(ConfigError, match=r"optimizer.sparse.initial: 0.0 must be above 0"):
        row_optimizer("optimizer.sparse", "adagrad_delay", AdagradDelay, {"initial": 0})
