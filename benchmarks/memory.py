"""Train on a log ten times larger than the memory that the process may have, and watch its resident size.

    python benchmarks/memory.py [--limit-mb 700] [--times 10]

The process limits its own data segment (RLIMIT_DATA: heap and private writable memory), then trains LR on a Criteo log
whose text is `times` times that limit. The log is made of one block of rows over and over, as zstd frames, so the file
is small on disk and ids do not grow without bound: what could grow is under test. Prints the resident size in ten
moments of the run and the peak.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import zstandard

from paceline.data.synth import SynthSpec
from paceline.data.synth_write import write_log
from paceline.jobfile import check
from paceline.training import Silent, train


class Gauge(Silent):
    """Samples the process's resident size as the run goes on."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.seen: dict[int, float] = {}
        self.peak = 0.0
        self._process = psutil.Process()

    def tick(self, status: dict[str, Any]) -> None:
        size = self._process.memory_info().rss / 2**20
        self.peak = max(self.peak, size)
        tenth = 10 * status["rows"] // self.rows
        if tenth not in self.seen and status["rows"]:
            self.seen[tenth] = size
            print(f"{10 * tenth:3d} % of {self.rows:,} rows: {size:,.0f} MB resident", flush=True)


def write(folder: Path, size: int) -> tuple[Path, int, int]:
    """A log of at least `size` bytes of text: (path, rows, bytes of text)."""
    write_log(SynthSpec(rows=50_000, days=1, compression="none", vocabulary=50_000), folder)
    block = (folder / "day_0.tsv").read_bytes()
    frame = zstandard.ZstdCompressor(level=1).compress(block)
    times = -(-size // len(block))
    path = folder / "day.tsv.zst"
    with open(path, "wb") as file:
        for _ in range(times):
            file.write(frame)
    return path, 50_000 * times, len(block) * times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit-mb", type=int, default=700)
    parser.add_argument("--times", type=float, default=10.0)
    options = parser.parse_args()
    limit = options.limit_mb << 20
    with tempfile.TemporaryDirectory() as folder:
        path, rows, text = write(Path(folder), int(limit * options.times))
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        values = {
            "data": {"format": "criteo", "days": [str(path)]},
            "model": {"name": "lr"},
            "batch": {"global": 4096, "local": 2048},
            "workers": 2,
            "evaluate": "none",
        }
        gauge = Gauge(rows)
        print(f"{text / 2**20:,.0f} MB of text, memory limited to {options.limit_mb} MB", flush=True)
        started = time.monotonic()
        end = train(check(values, "benchmark"), Path(folder), Path(folder) / "run", watcher=gauge)
    first, last = gauge.seen[min(gauge.seen)], gauge.seen[max(gauge.seen)]
    print(
        f"{end['samples_applied']:,} rows applied in {time.monotonic() - started:.0f} s; peak {gauge.peak:,.0f} MB,"
        f" last over first tenth {last / first:.2f}"
    )
    sys.exit(0 if end["samples_applied"] == rows and last < 1.15 * first else 1)


if __name__ == "__main__":
    main()
