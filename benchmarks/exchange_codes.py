"""What the dictionary of ids and the codes of positions save, and the time that they take, for `exchange.py`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from exchange_jobs import Job, batch_of

from paceline.batch import Ints
from paceline.exchange.dictionary import IdReader, IdWriter
from paceline.exchange.placement import Split, split_ids
from paceline.exchange.positions import decode, encode, first_fields
from paceline.params.sparse import Adagrad
from paceline.params.table import Table, unique

SHARDS = 4
SPANS = {"first": (0, 1), "early": (20, 30), "late": (50, 60)}


def measure_codes(steps: int) -> list[dict[str, Any]]:
    """For batches of 100 ids a sample, a worker's requests to 4 shards together. Bytes of ids: in full, by numbers in
    as many bits as the largest needs, and as they are sent; of positions: in as many bits, and as they are sent.
    Milliseconds: to name ids and to read the names, and to look up all ids, which the shards did before; to code
    positions and to read them, and to code them in as many bits. One thread does all of it here. Medians."""
    job = Job("lr", 100, 8, 2)
    fields = job.singles + job.bags
    writers, readers = [IdWriter(fields) for _ in range(SHARDS)], [IdReader(fields) for _ in range(SHARDS)]
    tables = [Table(np.zeros(1, np.float32), Adagrad(), 0) for _ in range(SHARDS)]
    steps_found = [_step(job, number, writers, readers, tables) for number in range(steps + 1)][1:]  # one compiles
    found = []
    for name, (start, stop) in SPANS.items():
        each = steps_found[start:stop]
        if len(each) == stop - start:
            found.append({"span": name, **{k: round(float(np.median([e[k] for e in each])), 3) for k in each[0]}})
    return found


def _step(
    job: Job, number: int, writers: list[IdWriter], readers: list[IdReader], tables: list[Table]
) -> dict[str, float]:
    batch = batch_of(job, number)
    distinct, inverse = unique(batch.flat_ids())
    first, split = first_fields(batch, distinct.shape[0], inverse), split_ids(distinct, SHARDS)
    places = [split.of(shard) for shard in range(SHARDS)]
    listed = [max(len(w), 2) for w in writers]
    naming, named = _timed(lambda: [w.name(distinct[p], first[p]) for w, p in zip(writers, places, strict=True)])
    order = np.concatenate([p[n.order] for p, n in zip(places, named, strict=True)])
    coding, streams = _timed(lambda: encode(batch, inverse, Split(order, split.bounds)))
    equal, in_equal_bits = _timed(lambda: encode(batch, inverse, Split(order, split.bounds), by_lengths=False))

    def read() -> list[Ints]:
        every = zip(readers, named, tables, strict=True)
        return [reader.read(n.message, table.find_or_insert)[0] for reader, n, table in every]

    reading, _ = _timed(read)
    fields = job.singles + job.bags
    decoding, _ = _timed(lambda: [decode(s, batch.samples, fields) for s in streams])
    lookup, _ = _timed(lambda: [t.find_or_insert(distinct[p]) for t, p in zip(tables, places, strict=True)])
    fresh = sum(n.fresh for n in named)
    known = [n.order.shape[0] - n.fresh for n in named]
    numbers = sum(k * math.ceil(math.log2(size)) / 8 for k, size in zip(known, listed, strict=True))
    return {
        "distinct": distinct.shape[0],
        "fresh": fresh,
        "ids_full": 8 * distinct.shape[0],
        "ids_numbers": 8 * fresh + numbers,
        "ids": sum(n.message.shape[0] for n in named),
        "positions_packed": sum(s.shape[0] for s in in_equal_bits),
        "positions": sum(s.shape[0] for s in streams),
        "name_ms": naming,
        "read_ms": reading,
        "lookup_ms": lookup,
        "encode_ms": coding,
        "decode_ms": decoding,
        "encode_equal_ms": equal,
        "worker_bytes_an_id": sum(w.bytes for w in writers) / max(sum(len(w) for w in writers), 1),
    }


def _timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """(milliseconds of this thread on a processor, what it gives)."""
    start = time.thread_time()
    found = function()
    return 1e3 * (time.thread_time() - start), found
