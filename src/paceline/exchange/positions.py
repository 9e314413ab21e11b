"""Where a batch's ids stand in it, told to the shards that hold them, in few bytes.

Moved rows need a batch's distinct ids only. Partial sums need every (sample, field, id, weight) on the shard that holds
the id (DES, Rong et al., arXiv 1909.04823): for each field how many of a sample's ids the shard holds, and which of the
distinct ids those are, in as many bits as the largest needs or, in a bag, by their lengths in bits if that is shorter.
Distinct ids are sorted by field, so that a field's lie close together, and within it frequent ones should come first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from paceline.batch import Batch, Floats, Ints
from paceline.exchange.codes import Bytes8, by_length, from_lengths, packed, unpacked
from paceline.exchange.cost import Load
from paceline.exchange.placement import Split, owner_of
from paceline.kernels import packing, rows
from paceline.params.table import unique

Places = npt.NDArray[np.int32]

_ONES, _MEANS, _EXPLICIT = 0, 1, 2  # a bag's weights: all 1, 1 / length of the whole bag, or as they are
_BY_LENGTH = 4  # added to these where the positions are coded so


@dataclass(frozen=True, slots=True)
class Cells:
    """What a shard holds of one field: sample b has the ids index[offsets[b]:offsets[b + 1]].

    offsets int64 [B + 1]; index int32 [n]: places among the batch's distinct ids of this shard; weights float32 [n].
    """

    offsets: Ints
    index: Places
    weights: Floats


def split_by_field(batch: Batch, distinct: Ints, inverse: Places, shards: int) -> Split:
    """Distinct ids (int64 [n], positions' inverse int32) by the shard that holds them and, within a shard, by the field
    where they come first."""
    owner, fields = owner_of(distinct, shards), batch.ids.shape[1] + len(batch.bags)
    first = first_fields(batch, distinct.shape[0], inverse)
    order = np.argsort(owner * np.int64(fields) + first, kind="stable")
    bounds = np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=shards))])
    return Split(order, bounds)


def first_fields(batch: Batch, distinct: int, inverse: Places) -> Places:
    """The field, int32 [distinct], where each distinct id comes first."""
    samples, singles = batch.ids.shape
    field_of = np.tile(np.arange(singles, dtype=np.int32), samples)
    if batch.bags:
        lengths = [bag.ids.shape[0] for bag in batch.bags]
        bags = np.arange(singles, singles + len(lengths), dtype=np.int32)
        field_of = np.concatenate([field_of, np.repeat(bags, lengths)])
    first = np.empty(distinct, np.int32)
    first[inverse[::-1]] = field_of[::-1]  # of several writes the last one stays
    return first


def load_of(batch: Batch, shards: int) -> Load:
    """The batch's load on `shards` shards, with the bits that a position takes measured on it."""
    distinct, inverse = unique(batch.flat_ids())
    streams = encode(batch, inverse, split_by_field(batch, distinct, inverse, shards))
    bits = 8 * sum(stream.shape[0] for stream in streams) / max(inverse.shape[0], 1)
    return Load(batch.samples, inverse.shape[0], distinct.shape[0], bits=bits)


def encode(batch: Batch, inverse: Places, split: Split, by_lengths: bool = True) -> list[Bytes8]:
    """For each shard what `decode` reads. inverse int32 [positions]: to the distinct ids that `split` splits;
    by_lengths: whether bags may be coded so."""
    shards = split.bounds.shape[0] - 1
    owner = np.empty(split.order.shape[0], np.int32)
    local = np.empty(split.order.shape[0], np.int64)
    for shard in range(shards):
        here = split.of(shard)
        owner[here], local[here] = shard, np.arange(here.shape[0])
    streams: list[list[Bytes8]] = [[] for _ in range(shards)]
    for field, (places, offsets, weights) in enumerate(_fields(batch, inverse)):
        kind, lengths = _weights_kind(weights, offsets)
        for shard, stream in enumerate(streams):
            counts = np.empty(batch.samples, np.int64)
            index, taken = np.empty(places.shape[0], np.int64), np.empty(places.shape[0], np.int64)
            n = packing.held(places, offsets, owner, local, shard, counts, index, taken)
            coded, order = [packed(counts), packed(index[:n])], None
            if by_lengths and field >= batch.ids.shape[1]:
                shorter, found = by_length(counts, index[:n])
                if shorter.shape[0] < sum(c.shape[0] for c in coded):
                    coded, order = [shorter], found
            stream += [np.array([kind + (0 if order is None else _BY_LENGTH)], np.uint8), *coded]
            if kind == _MEANS:
                stream.append(packed(lengths))
            elif weights is not None and kind == _EXPLICIT:
                own = weights[taken[:n]]
                stream.append((own if order is None else own[order]).view(np.uint8))
    return [np.concatenate(stream) if stream else np.zeros(0, np.uint8) for stream in streams]


def decode(data: Bytes8, samples: int, fields: int) -> list[Cells]:
    """What this shard holds of each field, out of `encode`'s bytes."""
    found, at = [], 0
    for _ in range(fields):
        kind, at = int(data[at]), at + 1
        if kind & _BY_LENGTH:
            counts, index, at = from_lengths(data, at, samples)
            kind -= _BY_LENGTH
        else:
            counts, at = unpacked(data, at, samples)
            index, at = unpacked(data, at, int(counts.sum()))
        offsets = np.concatenate([[0], np.cumsum(counts)])
        if kind == _MEANS:
            lengths, at = unpacked(data, at, samples)
            weights = np.repeat(_mean(lengths), counts)
        elif kind == _EXPLICIT:
            stop = at + 4 * index.shape[0]
            weights, at = data[at:stop].copy().view(np.float32), stop
        else:
            weights = np.ones(index.shape[0], np.float32)
        found.append(Cells(offsets, index.astype(np.int32), weights))
    return found


def pooled(weights: Floats, cells: list[Cells], begin: int, width: int) -> Floats:
    """The cells' weighted sums of the columns [begin, begin + width) of weights [n, w], float32 [B, fields, width]."""
    out = np.empty((cells[0].offsets.shape[0] - 1, len(cells), width), np.float32)
    for field, c in enumerate(cells):
        rows.pool_bag(weights, c.index, c.offsets, c.weights, begin, field, out)
    return out


def spread(gradient: Floats, cells: list[Cells], begin: int, sums: Floats) -> None:
    """The way back of `pooled`: add gradient [B, fields, width] to the columns from `begin` of sums [n, w]."""
    for field, c in enumerate(cells):
        rows.spread_bag(gradient, c.index, c.offsets, c.weights, begin, field, sums)


def _fields(batch: Batch, inverse: Places) -> list[tuple[Places, Ints, Floats | None]]:
    """Of each field: its positions' inverse, where each sample's begin, and their weights (None: all 1)."""
    samples, singles = batch.ids.shape
    one_each = np.arange(samples + 1)
    columns = np.ascontiguousarray(inverse[: samples * singles].reshape(samples, singles).T)
    found: list[tuple[Places, Ints, Floats | None]] = [(column, one_each, None) for column in columns]
    start = samples * singles
    for bag in batch.bags:
        stop = start + bag.ids.shape[0]
        found.append((inverse[start:stop], bag.offsets, bag.weights))
        start = stop
    return found


def _weights_kind(weights: Floats | None, offsets: Ints) -> tuple[int, Ints]:
    lengths = np.diff(offsets)
    if weights is None or bool((weights == 1).all()):
        return _ONES, lengths
    return (_MEANS if np.array_equal(weights, np.repeat(_mean(lengths), lengths)) else _EXPLICIT), lengths


def _mean(lengths: Ints) -> Floats:
    """What a mean-pooled bag's ids weigh."""
    weights: Floats = (1.0 / np.maximum(lengths, 1)).astype(np.float32)
    return weights
