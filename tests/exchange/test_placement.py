"""Ids to shards, and dense parameters to shards."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from paceline.exchange.placement import owner_of, split_ids
from paceline.params.dense import DenseBlock, flatten, make_optimizer, slices
from paceline.params.sparse import Clock

IDS = np.random.default_rng(0).integers(-(2**63), 2**63 - 1, 50_000)


@pytest.mark.parametrize("shards", [1, 2, 3, 7, 64])
def test_shards_are_equally_full_for_hashed_and_for_counted_ids(shards: int) -> None:
    for ids in (IDS, np.arange(50_000)):
        held = np.bincount(owner_of(ids, shards), minlength=shards)
        assert held.shape == (shards,)
        assert abs(held / 50_000 * shards - 1).max() < 6 * (shards / 50_000) ** 0.5


def test_an_id_keeps_its_shard_whatever_comes_with_it() -> None:
    alone = [int(owner_of(IDS[i : i + 1], 5)[0]) for i in range(100)]
    assert alone == owner_of(IDS, 5)[:100].tolist()
    assert owner_of(np.array([0, 1, 2, 3, -1, 2**62]), 4).tolist() == [3, 2, 0, 1, 3, 3]  # fixed for all versions


def test_splitting_keeps_every_id_once_and_in_order() -> None:
    split, owners = split_ids(IDS, 3), owner_of(IDS, 3)
    for shard in range(3):
        assert split.of(shard).tolist() == np.flatnonzero(owners == shard).tolist()
    assert split.bounds.tolist() == [0, *np.cumsum(np.bincount(owners, minlength=3)).tolist()]


def net() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4), nn.Linear(4, 1))


@pytest.mark.parametrize("name", ["adagrad", "adam", "adagrad_swap", "sgd"])
@pytest.mark.parametrize("shards", [1, 2, 3, 9])
def test_slices_of_the_dense_parameters_train_as_the_whole_does(name: str, shards: int) -> None:
    options = {"lr": 0.1, "period": 100} if name == "adagrad_swap" else {"lr": 0.1}
    module = net()
    whole = DenseBlock(module, make_optimizer(name, options, module))
    names = slices(module, shards)
    assert [n for part in names for n in part] == [n for n, _ in module.named_parameters()]
    copies = [net() for _ in range(shards)]
    apart = [DenseBlock(m, make_optimizer(name, options, m, part), part) for m, part in zip(copies, names, strict=True)]
    sizes = [block.flat.numel() for block in apart]
    assert sum(sizes) == flatten(net()).numel()
    for step in range(4):
        gradient = torch.randn(sum(sizes), generator=torch.Generator().manual_seed(step))
        whole.apply(gradient.clone(), Clock(step + 1, 60 * step), 1.0)
        for block, piece in zip(apart, gradient.split(sizes), strict=True):
            if piece.numel():
                block.apply(piece.clone(), Clock(step + 1, 60 * step), 1.0)
    assert torch.equal(torch.cat([block.flat for block in apart]), whole.flat)
