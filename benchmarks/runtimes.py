"""What each runtime costs over the bare step, and what more workers bring: threads, and processes of a cluster.

    python -m benchmarks.runtimes [threads] [processes] [--rounds 5] [--pace async] [--json FILE]

DeepFM of `make bench` (26 fields, dim 16, MLP 400-400-400, Adagrad), one update per 4096 samples, fp32 unless told
otherwise; all systems in turns, medians of the rounds.

- threads, in memory: the bare step (pull, forward, backward, sums per id, update, one after the other in one thread,
  with nobody to ask: no pace, no leases, no account), two and four of them side by side, each on tables of its own, and
  the local runtime with 1, 2 and 4 worker threads. What the runtime costs is what one worker is slower than one bare
  step; what workers cost each other is in the same column of the others.
- processes, from Parquet files: `paceline train` with 1, 2 and 4 worker threads, and with a cluster of 1, 2 and 4 nodes
  on this machine (each a process with a shard and a worker, the coordinator another one): the rates of the second to
  the last trained day but one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from benchmarks.bench.data import draw_ids, field_sizes
from benchmarks.systems.paceline import hashed
from benchmarks.systems.worker import DIM, FIELDS, HIDDEN, LR, NUMBERS, STD, Cycle

from paceline import pace as p
from paceline.assembly import assemble
from paceline.batch import Batch, Cursor, Span
from paceline.data.moments import no_moments
from paceline.data.synth import SynthSpec
from paceline.data.synth_write import write_log
from paceline.jobfile import check
from paceline.runtimes.coordinator import Coordinator
from paceline.runtimes.local import run_day, settle_thread

UPDATE, IDS, WORKERS = 4096, 1_000_000, (1, 2, 4)
DAYS, DAY = 5, 24 * UPDATE


def values(pace: str, workers: int, precision: str, days: list[str]) -> dict[str, Any]:
    """The job. Under async every batch is an update; else the workers share one."""
    return {
        "data": {"format": "parquet", "days": days},
        "features": {
            "label": {"column": "click"},
            "numeric": [{"column": f"i{n}", "transform": "standardise"} for n in range(1, NUMBERS + 1)],
            "categorical": [f"c{n}" for n in range(1, FIELDS + 1)],
        },
        "model": {"name": "deepfm", "dim": DIM, "hidden": list(HIDDEN), "std": STD},
        "optimizer": {"sparse": {"name": "adagrad", "lr": LR}, "dense": {"name": "adagrad", "lr": LR}},
        "batch": {"global": UPDATE, "local": UPDATE if pace == "async" else UPDATE // workers},
        "pace": pace,
        "workers": workers,
        "precision": precision,
        "checkpoint": {"every": 10**12},
    }


def batches(local: int, samples: int) -> list[Batch]:
    """Ids by the power law of `make bench`, in memory."""
    rng, span = np.random.default_rng(0), Span(0, Cursor(), Cursor(), no_moments(NUMBERS))
    made = []
    for _ in range(samples // local):
        ids = hashed(np.stack([draw_ids(rng, n, local) for n in field_sizes(IDS)], axis=1))
        dense = rng.normal(size=(local, 2 * NUMBERS)).astype(np.float32)
        made.append(Batch((rng.random(local) < 0.25).astype(np.float32), ids, (), dense, None, span, span))
    return made


class Bare:
    """Steps one after the other, in as many threads as there are `lanes`, each with a model and a table of its own."""

    def __init__(self, lanes: int, pace: str, precision: str, given: list[Batch]) -> None:
        made = check(values(pace, 1, precision, [__file__]), "runtimes")
        self._jobs = [assemble(made, Path.cwd()) for _ in range(lanes)]
        self._pool = ThreadPoolExecutor(lanes, "bare", settle_thread)
        self._cycles = [Cycle(given) for _ in range(lanes)]
        self._numbers = [count(1) for _ in range(lanes)]

    def __call__(self, samples: int) -> None:
        each = samples // UPDATE // len(self._jobs)
        for done in [self._pool.submit(self._lane, lane, each) for lane in range(len(self._jobs))]:
            done.result()

    def _lane(self, lane: int, steps: int) -> None:
        route, replica = self._jobs[lane].direct, self._jobs[lane].replicas[0]
        for batch in self._cycles[lane].take(steps):
            number = next(self._numbers[lane])
            _, gradient = replica.gradient(batch, route.pull(batch.flat_ids(), replica.flat))
            route.push(number, gradient)
            whole = p.Part(number, 1.0, 1.0, number - 1, 1.0, number - 1)
            route.apply(p.Apply(number, (whole,), None, number * UPDATE, None, 1))


class Local:
    """The local runtime with so many worker threads."""

    def __init__(self, workers: int, pace: str, precision: str, given: list[Batch]) -> None:
        self._job = assemble(check(values(pace, workers, precision, [__file__]), "runtimes"), Path.cwd())
        self._cycle = Cycle(given)
        machine = p.begin(self._job.config.pace.build(self._job.config.gradients))
        self._coordinator = Coordinator(machine, self._job.route, lambda _: None)

    def __call__(self, samples: int) -> None:
        source = self._cycle.take(samples // self._job.config.local_batch)
        run_day(self._coordinator, self._job.direct, self._job.replicas, iter(source))


def in_turns(systems: dict[str, Callable[[], list[float]]], rounds: int) -> dict[str, list[float]]:
    """Samples per second of each round; who begins changes."""
    rates: dict[str, list[float]] = {name: [] for name in systems}
    names = list(systems)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            rates[name] += systems[name]()
    return rates


def threads(pace: str, precision: str, rounds: int) -> dict[str, list[float]]:
    samples = 12 * UPDATE
    made = {
        local: batches(local, 16 * UPDATE) for local in {values(pace, w, "", [])["batch"]["local"] for w in WORKERS}
    }
    whole = made.get(UPDATE) or batches(UPDATE, 16 * UPDATE)
    runs: dict[str, Any] = {f"bare step x{n}": Bare(n, pace, precision, whole) for n in WORKERS}
    for n in WORKERS:
        local = values(pace, n, precision, [])["batch"]["local"]
        runs[f"{n} worker thread{'s' * (n > 1)}"] = Local(n, pace, precision, made[local])

    def timed(run: Callable[[int], None]) -> Callable[[], list[float]]:
        def once() -> list[float]:
            started = time.perf_counter()
            run(samples)
            return [samples / (time.perf_counter() - started)]

        return once

    for run in runs.values():
        run(2 * samples)  # compile, fill tables and caches
    return in_turns({name: timed(run) for name, run in runs.items()}, rounds)


def processes(pace: str, precision: str, rounds: int) -> dict[str, list[float]]:
    with tempfile.TemporaryDirectory() as folder:
        spec = SynthSpec(
            rows=DAYS * DAY, days=DAYS, seed=3, vocabulary=IDS, layout="parquet", compression="none",
            numeric=NUMBERS, categorical=FIELDS, multi=0,
        )  # fmt: skip
        write_log(spec, Path(folder), lambda _: None)
        days = sorted(str(path) for path in Path(folder).glob("day_*.parquet"))
        runs = count()

        def run(workers: int, **changes: Any) -> list[float]:
            job, out = Path(folder) / "job.yaml", Path(folder) / f"run{next(runs)}"
            job.write_text(yaml.safe_dump({**values(pace, workers, precision, days), **changes}))
            command = [sys.executable, "-m", "paceline", "train", str(job), "--run-dir", str(out)]
            done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "NO_COLOR": "1"})
            if done.returncode:
                sys.exit(done.stdout + done.stderr)
            lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
            assert lines[-1]["samples_applied"] == DAYS * DAY
            # Each evaluation tells the rate of the day that was trained before it.
            return [line["samples_per_s"] for line in lines if line["event"] == "evaluation" and line["day"] > 1]

        systems: dict[str, Callable[[], list[float]]] = {
            f"{n} worker thread{'s' * (n > 1)}": lambda n=n: run(n) for n in WORKERS
        }
        for n in WORKERS:
            systems[f"cluster of {n} node{'s' * (n > 1)}"] = lambda n=n: run(n, cluster={"nodes": n})
        return in_turns(systems, rounds)


def report(title: str, rates: dict[str, list[float]], base: str) -> list[dict[str, Any]]:
    """A table; the base is the first column's 1."""
    print(f"\n{title}\n\n| system | samples/s | slowest | fastest | over {base} |\n|---|---|---|---|---|")
    against, found = statistics.median(rates[base]), []
    for name, values_ in rates.items():
        rate = statistics.median(values_)
        print(
            f"| {name} | {rate:,.0f} | {min(values_):,.0f} | {max(values_):,.0f} | {rate / against:.2f} |", flush=True
        )
        found.append({"bench": title, "system": name, "samples_per_s": round(rate), "ratio": round(rate / against, 3)})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=["threads", "processes"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pace", default="async", help="async, sync or gba")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    settle_thread()
    given = (options.pace, options.precision)
    found = []
    if "threads" in options.what:
        found += report(f"threads, {given}", threads(*given, options.rounds), "bare step x1")
    if "processes" in options.what:
        found += report(f"processes, {given}", processes(*given, max(1, options.rounds // 2)), "1 worker thread")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
