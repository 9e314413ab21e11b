"""The samples every system trains on: ids by a power law, numbers, and clicks that a logistic model draws."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
from benchmarks.systems.worker import FIELDS, NUMBERS

EXPONENT = 1.05  # an id's share falls with its rank to this power
_STEP = 0x9E3779B1  # ranks are scattered by it, so that frequent ids are no neighbours in anybody's table


def field_sizes(ids: int) -> list[int]:
    """Ids of each field: as equal as can be, together `ids`."""
    return [ids // FIELDS + (field < ids % FIELDS) for field in range(FIELDS)]


def draw_ids(rng: np.random.Generator, size: int, rows: int) -> np.ndarray:
    """int64 [rows] in [0, size): rank r has probability about in proportion to r^-EXPONENT."""
    low = 1.0 - EXPONENT
    ranks = (1.0 + rng.random(rows) * ((size + 1.0) ** low - 1.0)) ** (1.0 / low)
    step = _STEP % size
    while math.gcd(step, size) != 1:
        step += 1
    return (np.minimum(ranks.astype(np.int64), size) - 1) * step % size


def write(folder: Path, ids: int, rows: int, seed: int = 0) -> None:
    """ids.npy int32 [rows, FIELDS], numbers.npy float32 [rows, NUMBERS], labels.npy float32 [rows], sizes.json."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    sizes = field_sizes(ids)
    drawn = np.empty((rows, FIELDS), np.int32)
    logit = np.full(rows, -1.0)
    for field, size in enumerate(sizes):
        drawn[:, field] = draw_ids(rng, size, rows)
        logit += rng.normal(0.0, 1.2 / math.sqrt(FIELDS), size)[drawn[:, field]]
    numbers = rng.normal(size=(rows, NUMBERS)).round(2).astype(np.float32)
    logit += numbers @ rng.normal(0.0, 0.6 / math.sqrt(NUMBERS), NUMBERS)
    labels = (rng.random(rows) < 1.0 / (1.0 + np.exp(-logit))).astype(np.float32)
    for name, values in (("ids", drawn), ("numbers", numbers), ("labels", labels)):
        np.save(folder / f"{name}.npy", values)
    (folder / "sizes.json").write_text(json.dumps(sizes))
    write_logs(folder, drawn, numbers, labels)


def write_logs(folder: Path, ids: np.ndarray, numbers: np.ndarray, labels: np.ndarray) -> None:
    """The same samples as log.parquet and log.tsv.gz (with a header line)."""
    import pyarrow as pa
    from pyarrow import csv, parquet

    columns = {"label": labels.astype(np.int8)}
    columns |= {f"i{n}": numbers[:, n].copy() for n in range(NUMBERS)}
    columns |= {f"c{n}": ids[:, n].copy() for n in range(FIELDS)}
    table = pa.table(columns)
    parquet.write_table(table, folder / "log.parquet")
    with pa.CompressedOutputStream(str(folder / "log.tsv.gz"), "gzip") as out:
        csv.write_csv(table, out, csv.WriteOptions(delimiter="\t", quoting_style="none"))
