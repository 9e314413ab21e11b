"""What a checkpoint costs: how long workers wait for it, and what is written, whole and as an increment.

    python benchmarks/snapshot.py [--rows 1_000_000] [--share 0.05] [--width 17] [--rounds 9] [--folder DIR]

A table of `rows` rows under Adagrad (width weights and as many slots), of which `share` change between checkpoints.
Workers wait while the copy is taken; writing and committing happen in a thread of its own. "blocking" is a checkpoint
for which they would wait until it is committed. Prints medians, and ratios of medians.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from paceline import checkpoint
from paceline.params.dense import DenseBlock, make_optimizer
from paceline.params.shard import Gradient, Shard, Weighted
from paceline.params.sparse import Adagrad
from paceline.params.table import Table


def make(rows: int, width: int) -> Shard:
    """A shard whose rows have all had one update."""
    module = nn.Sequential(nn.Linear(400, 256), nn.ReLU(), nn.Linear(256, 1))
    dense = DenseBlock(module, make_optimizer("adam", {"lr": 0.001}, module))
    shard = Shard(Table(np.full(width, 0.01, np.float32), Adagrad(), 0), dense, "global_mean")
    for start in range(0, rows, 1 << 16):
        change(shard, np.arange(start, min(start + (1 << 16), rows)))
    return shard


def change(shard: Shard, ids: np.ndarray) -> None:
    """One update of these ids."""
    numbers = shard.table.find_or_insert(ids)
    gradients = np.full((ids.shape[0], shard.table.weights), 0.01, np.float32)
    gradient = Gradient(torch.full_like(shard.dense.flat, 0.01), numbers, gradients)
    version = shard.version + 1
    shard.apply(version, version, [Weighted(gradient, 1.0, 1.0, version - 1)], None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--share", type=float, default=0.05)
    parser.add_argument("--width", type=int, default=17)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--folder", type=Path, default=None)
    options = parser.parse_args()
    torch.set_num_threads(1)  # as a worker has it
    rng = np.random.default_rng(0)
    shard = make(options.rows, options.width)
    pause: dict[str, list[float]] = {"whole": [], "increment": []}
    whole: dict[str, list[float]] = {"whole": [], "increment": []}
    size: dict[str, list[float]] = {"whole": [], "increment": []}
    copied = {"whole": options.rows, "increment": int(options.share * options.rows)}
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        for number in range(options.rounds + 1):  # the first one compiles
            base = None
            for kind in ("whole", "increment"):
                change(shard, rng.choice(options.rows, copied["increment"], replace=False))
                started = time.perf_counter()
                copy = checkpoint.take(shard, since=base)
                taken = time.perf_counter()
                piece = checkpoint.write(folder, copy)
                checkpoint.commit(folder, shard.version, [piece], {}, keep=1)
                done = time.perf_counter()
                base = piece
                del copy  # in a run the writing thread frees it
                if number:
                    pause[kind].append(taken - started)
                    whole[kind].append(done - started)
                    size[kind].append(sum(f.bytes for f in piece.files if f.name in piece.written))
    median = {(what, kind): statistics.median(times[kind]) for what, times in
              (("pause", pause), ("all", whole), ("size", size)) for kind in times}  # fmt: skip
    print(f"{options.rows:,} rows of {2 * options.width} numbers, {options.share:.0%} changed, {options.rounds} rounds")
    for kind in ("whole", "increment"):
        stop, total = median["pause", kind], median["all", kind]
        print(
            f"{kind:>9}: workers wait {stop * 1e3:8.1f} ms ({stop / copied[kind] * 1e9:5.0f} ns a row copied);"
            f" committed after {total * 1e3:8.1f} ms; {median['size', kind] / 2**20:7.1f} MB"
        )
    blocking, ratio = median["all", "whole"], median["pause", "increment"] / median["pause", "whole"]
    print(f"wait, whole in the background over blocking:     {median['pause', 'whole'] / blocking:.4f}")
    print(f"wait, increment in the background over blocking: {median['pause', 'increment'] / blocking:.4f}")
    print(f"wait, increment over whole:                      {ratio:.4f}")
    print(
        f"bytes, increment over whole:                     {median['size', 'increment'] / median['size', 'whole']:.4f}"
    )


if __name__ == "__main__":
    main()
