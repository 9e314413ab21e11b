"""Start-up: `paceline --help`, and training one batch, right after installation and from then on.

Whole processes on the clock, from start to exit: what is measured for the first step is `paceline train` of a log of
one batch, so reading, checkpoint and report are in it.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.bench import report
from benchmarks.bench.rounds import Sizes

LIMITS = {"help": 0.5, "after installation": 10.0, "from then on": 3.0}


def measure(sizes: Sizes, folder: Path) -> tuple[str, dict[str, Any]]:
    """(a table as Markdown, the numbers)."""
    where = Path(tempfile.mkdtemp(dir=folder, prefix="start-"))
    seconds = {
        "help": [run(["--help"], where) for _ in range(sizes.rounds)],
        "after installation": [first_step(where / f"cold-{n}", sizes.batch) for n in range(2)],
        "from then on": [first_step(where / "warm", sizes.batch) for _ in range(sizes.rounds + 1)][1:],
    }
    told = {"help": "`paceline --help`", **{n: f"`paceline train`, one batch, {n}" for n in list(LIMITS)[1:]}}
    lines = [
        [told[name], f"{statistics.median(taken):.2f}", f"{min(taken):.2f} – {max(taken):.2f}", f"{LIMITS[name]:g}"]
        for name, taken in seconds.items()
    ]
    text = report.rows("Start-up, seconds", ["", "median", "fastest – slowest", "must be below"], lines)
    shutil.rmtree(where)
    return text, seconds


def first_step(cache: Path, batch: int) -> float:
    """Seconds for training one batch, kernels compiled into `cache` (nothing there yet: as after installation)."""
    cache.mkdir(exist_ok=True)
    log, run_dir = cache / "day_0.tsv", cache / "run"
    shutil.rmtree(run_dir, ignore_errors=True)
    cells = "\t".join([*(str(n) for n in range(13)), *(f"{n:08x}" for n in range(26))])
    log.write_text("".join(f"{row % 2}\t{cells}\n" for row in range(batch)))
    job = cache / "job.yaml"
    values = {"data": {"format": "criteo", "days": [str(log)]}, "batch": {"global": batch}, "evaluate": "none"}
    job.write_text(json.dumps(values))  # YAML holds JSON
    return run(["train", str(job), "--run-dir", str(run_dir)], cache)


def run(arguments: list[str], cache: Path) -> float:
    """Seconds of a `paceline` process. Raises RuntimeError with what it said if it fails."""
    command = [sys.executable, "-c", "from paceline.cli import main; main()", *arguments]
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache / "numba")}
    started = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    taken = time.perf_counter() - started
    if done.returncode:
        raise RuntimeError(f"paceline {' '.join(arguments)} ended with {done.returncode}: {done.stderr[-2000:]}")
    return taken
