"""What a shard is told of a batch's positions, and partial sums computed from it, in one process."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ranks import Case, batches, make_model
from test_collective import SMALL

from paceline.exchange.cost import Roles, RowPart, Shape
from paceline.exchange.positions import decode, encode, pooled, split_by_field, spread
from paceline.exchange.substitution import Substitution
from paceline.kernels import packing
from paceline.models.readers import readers_of
from paceline.params.table import unique


@given(st.lists(st.integers(0, 2**32 - 1), max_size=70), st.integers(0, 2**33))
def test_whole_numbers_survive_packing(values, base):
    bits = max(values, default=0).bit_length()
    packed = np.zeros((len(values) * bits + 7) // 8, np.uint8)
    numbers = np.array(values, np.int64) + base
    packing.pack(numbers, base, bits, packed)
    out = np.empty(len(values), np.int64)
    packing.unpack(packed, base, bits, out)
    assert out.tolist() == numbers.tolist()


def shards_of(batch, shards):
    """(distinct ids, inverse, split, each shard's cells) of a batch."""
    distinct, inverse = unique(batch.flat_ids())
    split = split_by_field(batch, distinct, inverse, shards)
    fields = batch.ids.shape[1] + len(batch.bags)
    streams = encode(batch, inverse, split)
    return distinct, inverse, split, [decode(stream, batch.samples, fields) for stream in streams]


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 6), st.integers(0, 3), st.lists(st.sampled_from(["sum", "mean", "any"]), max_size=3))
def test_shards_together_hold_every_position_once(shards, singles, bags):
    case = Case(singles=singles, bags=tuple(bags) if singles else ("mean", *bags), updates=3)
    for batch in (batch for update in batches(case) for batch in update):
        distinct, inverse, split, cells = shards_of(batch, shards)
        found = np.zeros((batch.samples, distinct.shape[0]), np.float64)
        for shard, of_shard in enumerate(cells):
            held = split.of(shard)
            for c in of_shard:
                for sample in range(batch.samples):
                    here = slice(c.offsets[sample], c.offsets[sample + 1])
                    np.add.at(found[sample], held[c.index[here]], c.weights[here])
        expected = np.zeros_like(found)
        count = batch.samples * batch.ids.shape[1]
        np.add.at(expected, (np.repeat(np.arange(batch.samples), batch.ids.shape[1]), inverse[:count]), 1)
        for bag in batch.bags:
            samples = np.repeat(np.arange(batch.samples), np.diff(bag.offsets))
            np.add.at(expected, (samples, inverse[count : count + bag.ids.shape[0]]), bag.weights)
            count += bag.ids.shape[0]
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_few_bytes_tell_positions():
    """Two bits a sample for a field's counts; a field's ids as numbers below how many different ones a shard holds."""
    case = Case(singles=20, bags=(), sizes=(512,), last=(512,), updates=1)
    batch = batches(case)[0][0]
    distinct, inverse = unique(batch.flat_ids())
    for shards in (1, 2, 4):
        streams = encode(batch, inverse, split_by_field(batch, distinct, inverse, shards))
        assert sum(s.shape[0] for s in streams) < 1.5 * batch.ids.size


@pytest.mark.parametrize("model", SMALL)
@pytest.mark.parametrize("mode", ["fields", "partials"])
def test_logits_and_row_gradients_are_those_of_one_process_for_any_number_of_shards(model, mode):
    case = Case(model, SMALL[model], updates=1, sizes=(32,), last=(32,))
    batch, net = batches(case)[0][0], make_model(case)
    fields = case.singles + len(case.bags)
    readers = readers_of(net, fields, case.dense)
    parts = tuple(RowPart(p.name, p.width, readers[p.name]) for p in net.parts())
    modes = dict.fromkeys(readers, mode)
    dense = torch.from_numpy(batch.dense)
    results = []
    for shards in (1, 2, 3, 4, 8):
        distinct, _, split, cells = shards_of(batch, shards)
        weights = {p.name: np.random.default_rng(0).standard_normal((distinct.shape[0], p.width)) for p in parts}
        weights = {name: (0.3 * values).astype(np.float32) for name, values in weights.items()}
        roles = Roles(tuple(range(shards)), tuple(range(shards)))
        substitution = Substitution(net, Shape(parts, roles, case.singles, len(case.bags), (0,) * shards), modes)
        leaves = [
            {name: torch.from_numpy(pooled(w[split.of(s)], cells[s], 0, w.shape[1])) for name, w in weights.items()}
            for s in range(shards)
        ]
        for leaf in (leaf for of_shard in leaves for leaf in of_shard.values()):
            leaf.requires_grad_()
        logits = net(substitution.given(sum(substitution.partial(of_shard) for of_shard in leaves)), dense)
        logits.square().sum().backward()
        gradients = {name: np.zeros_like(w) for name, w in weights.items()}
        for s, of_shard in enumerate(leaves):
            for name, leaf in of_shard.items():
                sums = np.zeros_like(weights[name][split.of(s)])
                spread(leaf.grad.numpy(), cells[s], 0, sums)
                gradients[name][split.of(s)] = sums
        results.append([logits.detach().numpy(), *gradients.values()])
        if shards == 1:
            whole = net({name: leaf.detach() for name, leaf in leaves[0].items()}, dense).detach().numpy()
            results.insert(0, [whole, *gradients.values()])
    for result in results[1:]:
        for a, b in zip(result, results[0], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6 * np.abs(b).max())
