"""The three bodies of a row optimizer, to be stepped alike: rows of a table, the numpy twin, a dense parameter."""

import numpy as np
import torch

from paceline.params.dense import DenseBlock
from paceline.params.dense_rows import RowsOptimizer
from paceline.params.table import RowBlock, RowGradient, Table


def f32(*values):
    return np.array(values, np.float32)


class Rows:
    """Rows in a table: the kernel."""

    def __init__(self, optimizer, weights):
        self.ids = np.arange(weights.shape[0])
        self.table = Table(np.zeros(weights.shape[1], np.float32), optimizer, seed=0)
        slots = np.tile(optimizer.slot_start(weights.shape[1]), (weights.shape[0], 1))
        self.table.load(RowBlock(self.ids, weights.copy(), slots, np.zeros((weights.shape[0], 2), np.int64)))

    def step(self, grads, clock, touched=None):
        ids = self.ids if touched is None else self.ids[touched]
        rows = self.table.find(ids)
        self.table.apply([RowGradient(rows, np.ascontiguousarray(grads), 1.0, 0)], clock, None, 0)

    @property
    def weights(self):
        return np.concatenate([block.weights for block in self.table.blocks()])

    @property
    def slots(self):
        return np.concatenate([block.slots for block in self.table.blocks()])


class Twin:
    """The numpy `update` of the same."""

    def __init__(self, optimizer, weights):
        self.optimizer, self._weights = optimizer, weights.copy()
        self._slots = np.tile(optimizer.slot_start(weights.shape[1]), (weights.shape[0], 1))

    def step(self, grads, clock, touched=slice(None)):
        weights, slots = self._weights[touched], self._slots[touched]
        self.optimizer.update(weights, slots, grads, clock)
        self._weights[touched], self._slots[touched] = weights, slots

    @property
    def weights(self):
        return self._weights.copy()

    @property
    def slots(self):
        return self._slots.copy()


class Dense:
    """One parameter of a dense block, whose elements are one row."""

    def __init__(self, optimizer, weights):
        module = torch.nn.Module()
        module.w = torch.nn.Parameter(torch.from_numpy(weights.copy()))
        self.block = DenseBlock(module, RowsOptimizer(module.parameters(), optimizer))

    def step(self, grads, clock):
        self.block.apply(torch.from_numpy(grads.copy()).reshape(-1), clock)

    @property
    def weights(self):
        return self.block.named[0][1].detach().numpy().copy()

    @property
    def slots(self):
        return self.block.slots()[0]["w/slots"].numpy().reshape(1, -1)
