"""Shards side by side whose state at every version is known: what they train on is a function of the version alone."""

import numpy as np
import torch
from torch import nn

from paceline import checkpoint
from paceline.assembly import sparse_optimizer
from paceline.exchange.placement import owner_of
from paceline.params.dense import DenseBlock, make_optimizer, slices
from paceline.params.shard import Gradient, Shard, Weighted
from paceline.params.table import Table

WIDTH = 3


def net():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4), nn.Linear(4, 1))


def ids_of(version, ids=400, share=0.1):
    """The distinct ids that update number `version` is of, more of them as it goes on."""
    rng = np.random.default_rng(version)
    known = 20 * version + ids
    return np.unique(rng.integers(0, known, max(int(share * known), 1))) * 2_654_435_761


class Shards:
    """`count` shards that train as one does; state() is the same for every count."""

    def __init__(self, count, dense="adam", sparse="adagrad"):
        options = {"lr": 0.05, **({"period": 40, "decay": 0.5} if dense.endswith("swap") else {})}
        self.count, self.shards = count, []
        self.since = [None] * count
        for names in slices(net(), count):
            module = net()
            block = DenseBlock(module, make_optimizer(dense, options, module, names), names)
            rows = sparse_optimizer(sparse, {"lr": 0.05})
            self.shards.append(Shard(Table(np.full(WIDTH, 0.1, np.float32), rows, 7), block, "global_mean"))

    def train(self, first, last, **changes):
        """Updates number `first` to `last`."""
        for version in range(first, last + 1):
            ids = ids_of(version, **changes)
            rng = np.random.default_rng([version, 1])
            gradients = rng.normal(size=(len(ids), WIDTH)).astype(np.float32)
            sizes = [shard.dense.flat.numel() for shard in self.shards]
            flat = torch.from_numpy(rng.normal(size=sum(sizes)).astype(np.float32))
            for index, (shard, piece) in enumerate(zip(self.shards, flat.split(sizes), strict=True)):
                mine = owner_of(ids, self.count) == index
                numbers = shard.table.find_or_insert(ids[mine])
                gradient = Gradient(piece.clone(), numbers, gradients[mine])
                shard.apply(version, 16 * version, [Weighted(gradient, 1.0, 1.0, version - 1)], None)
        return self

    def take(self):
        return [checkpoint.take(s, i, self.count, self.since[i]) for i, s in enumerate(self.shards)]

    def save(self, folder, keep=100, **state):
        """One committed snapshot; the next goes on from it."""
        pieces = [checkpoint.write(folder, copy) for copy in self.take()]
        checkpoint.commit(folder, self.shards[0].version, pieces, state, keep)
        self.since = pieces
        return pieces

    def load(self, folder):
        found = checkpoint.newest(folder)
        for index, shard in enumerate(self.shards):
            checkpoint.restore(found, shard, index, self.count)
            self.since[index] = found.piece_of(index, self.count)
        return self

    def state(self):
        """Arrays by name: rows in order of ids, dense parameters and their slots."""
        blocks = [block for shard in self.shards for block in shard.table.blocks()]
        ids = np.concatenate([block.ids for block in blocks])
        order = np.argsort(ids)
        found = {"ids": ids[order], "version": np.array({shard.version for shard in self.shards})}
        for name in ("weights", "slots", "clocks"):
            found[name] = np.concatenate([getattr(block, name) for block in blocks])[order]
        for shard in self.shards:
            found |= {name: value.numpy() for name, value in shard.dense.weights().items()}
            found |= {name: value.numpy() for name, value in shard.dense.slots()[0].items()}
        return found


def assert_same(a, b):
    """Bitwise, version included."""
    a, b = a.state(), b.state()
    assert a.keys() == b.keys()
    for name, value in a.items():
        np.testing.assert_array_equal(value, b[name], err_msg=name)


def named(folder):
    """Names of the files in the folder of pieces that whole snapshots need."""
    found = [checkpoint.read(path) for path in folder.glob("[0-9]*")]
    return {file.name for one in found for piece in one.pieces for file in piece.files}


def pieces_in(folder):
    return {path.name for path in (folder / "pieces").iterdir()}
