"""Kernels against their numpy twins, and row optimizers written by a user."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from paceline import Clock, SparseOptimizer
from paceline.params.sparse import FTRL, SGD, Adagrad, Adam, RMSProp, RowwiseAdagrad
from paceline.params.table import REDUCE, RowGradient, Table

OPTIMIZERS = [
    SGD(0.1),
    Adagrad(0.05),
    Adagrad(0.05, eps=1e-6, initial=0.1),
    RowwiseAdagrad(0.05),
    Adam(0.01),
    Adam(0.01, beta1=0.5, beta2=0.9),
    RMSProp(0.05),
    RMSProp(0.05, alpha=0.5, eps=1e-3),
    FTRL(0.1),
    FTRL(0.1, beta=0.5, l1=0.02, l2=0.1),
]
values = arrays(np.float32, (5, 3), elements=st.floats(-4, 4, width=32))


def dump(table):
    blocks = list(table.blocks())
    order = np.argsort(np.concatenate([b.ids for b in blocks]))
    return [np.concatenate([getattr(b, name) for b in blocks])[order] for name in ("ids", "weights", "slots", "clocks")]


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
@settings(max_examples=40, deadline=None)
@given(st.lists(values, min_size=1, max_size=5))
def test_the_kernel_does_what_its_twin_does(optimizer, steps):
    table = Table(np.full(3, 0.5, np.float32), optimizer, seed=3)
    ids = np.array([5, -7, 2**62, 11, 0])
    rows = table.find_or_insert(ids)
    weights = table.pull(rows, ids)
    slots = np.tile(optimizer.slot_start(3), (5, 1))
    for step, grads in enumerate(steps, 1):
        table.apply([RowGradient(rows, grads.copy(), 1.0, step)], Clock(step, step), None, REDUCE["global_mean"])
        optimizer.update(weights, slots, grads, Clock(step, step))
    np.testing.assert_allclose(table.pull(rows, ids), weights, rtol=2e-6, atol=1e-7)
    stored = dump(table)
    order = np.argsort(ids)
    np.testing.assert_allclose(stored[2], slots[order], rtol=2e-6, atol=1e-7)
    assert (stored[3][:, 0] == len(steps)).all()
    assert (stored[3][:, 1] == len(steps)).all()


def test_adam_is_torch_adam_when_every_row_moves():
    import torch

    weights = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    parameter = torch.nn.Parameter(torch.from_numpy(weights.copy()))
    reference = torch.optim.Adam([parameter], lr=0.01)
    slots = np.zeros((4, 6), np.float32)
    for step in range(1, 20):
        grads = np.random.default_rng(step).normal(size=(4, 3)).astype(np.float32)
        parameter.grad = torch.from_numpy(grads.copy())
        reference.step()
        Adam(0.01).update(weights, slots, grads, Clock(step, step))
    np.testing.assert_allclose(weights, parameter.detach().numpy(), rtol=1e-4, atol=1e-6)


def test_adagrad_is_torch_adagrad():
    import torch

    weights = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    parameter = torch.nn.Parameter(torch.from_numpy(weights.copy()))
    reference = torch.optim.Adagrad([parameter], lr=0.05, initial_accumulator_value=1e-6)
    slots = np.full((4, 3), 1e-6, np.float32)
    for step in range(1, 20):
        grads = np.random.default_rng(step).normal(size=(4, 3)).astype(np.float32)
        parameter.grad = torch.from_numpy(grads.copy())
        reference.step()
        Adagrad(0.05).update(weights, slots, grads, Clock(step, step))
    np.testing.assert_allclose(weights, parameter.detach().numpy(), rtol=1e-5)


def test_rmsprop_is_torch_rmsprop():
    import torch

    weights = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    parameter = torch.nn.Parameter(torch.from_numpy(weights.copy()))
    reference = torch.optim.RMSprop([parameter])
    slots = np.zeros((4, 3), np.float32)
    for step in range(1, 20):
        grads = np.random.default_rng(step).normal(size=(4, 3)).astype(np.float32)
        parameter.grad = torch.from_numpy(grads.copy())
        reference.step()
        RMSProp().update(weights, slots, grads, Clock(step, step))
    np.testing.assert_allclose(weights, parameter.detach().numpy(), rtol=1e-5, atol=1e-6)


def test_ftrl_starts_from_the_rows_own_value_and_l1_makes_zeros():
    optimizer = FTRL(0.1, l1=0.5)
    weights, slots = np.array([[0.01, -0.01]], np.float32), np.zeros((1, 4), np.float32)
    optimizer.update(weights, slots, np.array([[1e-6, 1e-6]], np.float32), Clock(1, 1))
    np.testing.assert_allclose(weights, [[0.01, -0.01]], rtol=1e-3)
    optimizer.update(weights, slots, np.array([[0.3, 0.0]], np.float32), Clock(2, 2))
    assert weights[0, 0] == 0.0
    assert weights[0, 1] != 0.0
    plain = FTRL(0.1)
    weights, slots = np.array([[0.3, 0.3]], np.float32), np.zeros((1, 4), np.float32)
    plain.update(weights, slots, np.array([[1e-6, 1e-6]], np.float32), Clock(1, 1))
    np.testing.assert_allclose(weights, 0.3, rtol=1e-4)


@dataclass(frozen=True)
class SignSGD(SparseOptimizer):
    """A user's optimizer: w -= lr * sign(g), counting how often each row moved."""

    lr: float = 0.5

    def slots(self, width: int) -> int:
        return 1

    def update(self, weights, slots, grads, clock):
        weights -= np.float32(self.lr) * np.sign(grads)
        slots += 1


def test_a_users_optimizer_needs_no_kernel():
    table = Table(np.zeros(2, np.float32), SignSGD(0.5), seed=0)
    ids = np.array([1, 2, 3])
    rows = table.find_or_insert(ids)
    grads = np.array([[1, -1], [2, 0], [-3, 5]], np.float32)
    for step in (1, 2):
        table.apply([RowGradient(rows[:2], grads[:2], 1.0, step)], Clock(step, step), None, 0)
    np.testing.assert_array_equal(table.pull(rows, ids), [[-1, 1], [-1, 0], [0, 0]])
    assert dump(table)[2].tolist() == [[2], [2], [0]]
