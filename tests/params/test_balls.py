"""Rows that are kept in a ball: after an update those that it touched are, and no other changes by a bit."""

import numpy as np
import pytest

from paceline.params.sparse import SGD, Adagrad, Clock, SparseOptimizer
from paceline.params.table import REDUCE, RowGradient, Table


class Plain(SparseOptimizer):
    """SGD by way of numpy, as a user's own optimizer."""

    def slots(self, width):
        return 0

    def update(self, weights, slots, grads, clock):
        weights -= grads


@pytest.mark.parametrize("optimizer", [SGD(lr=1.0), Adagrad(lr=0.8), Plain()], ids=lambda o: type(o).__name__)
@pytest.mark.parametrize("ball", [(0, 6, 1.0), (2, 6, 0.5)], ids=str)
def test_touched_rows_are_in_the_ball_and_others_unchanged(optimizer, ball):
    begin, stop, radius = ball
    rng = np.random.default_rng(0)
    bounds = np.full(6, 0.1, np.float32)
    table, free = (Table(bounds, optimizer, 5, balls=balls) for balls in ((ball,), ()))
    ids = np.arange(1, 400, dtype=np.int64) * 7
    for step in range(1, 6):
        chosen = rng.choice(ids, 50, replace=False)
        gradients = (rng.normal(size=(50, 6)) * rng.choice([0.01, 1.0], (50, 1))).astype(np.float32)
        block = table.copy(table.find_or_insert(ids))
        free.load(block)  # from the same state: what the ball changes is the length, nothing else
        for each in (table, free):
            part = RowGradient(each.find(chosen), gradients, 1.0, 0)
            assert each.apply([part], Clock(step, step), None, REDUCE["global_mean"]) == 50
        after, unbounded = (t.pull(t.find(ids), ids) for t in (table, free))
        touched = np.isin(ids, chosen)
        np.testing.assert_array_equal(after[~touched], block.weights[~touched])
        lengths = np.linalg.norm(after[touched][:, begin:stop].astype(np.float64), axis=1)
        assert (lengths <= radius + 1e-6).all()
        long = np.linalg.norm(unbounded[touched][:, begin:stop].astype(np.float64), axis=1)
        assert (long > radius).any()
        short = long <= radius
        np.testing.assert_array_equal(after[touched][short], unbounded[touched][short])
        scale = np.minimum(1.0, radius / long)[:, None]
        np.testing.assert_allclose(after[touched][:, begin:stop], unbounded[touched][:, begin:stop] * scale, atol=1e-6)
        np.testing.assert_array_equal(after[touched][:, :begin], unbounded[touched][:, :begin])
