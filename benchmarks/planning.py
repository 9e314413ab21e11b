"""The plan for this machine against real runs: samples per second of `paceline train` with 1, 2, 4 worker threads.

    python benchmarks/planning.py [--workers 1 2 4] [--rounds 3] [--seconds 60] [--samples 400000] [--json FILE]

Run it on a machine that has nothing else to do. The machine is measured once, as `paceline plan job.yaml` does it;
then, for every number of workers and each pace, whole days are trained without evaluation, interleaved, each run in a
process of its own, and the median is held against the prediction. Wanted: within 15 %. More workers than cores are run,
too: the prediction says what they bring.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

PACES = ("sync", "gba")
GLOBAL = 4096


def job(folder: Path, workers: int, pace: str) -> dict[str, Any]:
    return {
        "data": {"format": "criteo", "days": str(folder / "day_*.tsv.zst")},
        "model": {"name": "deepfm", "dim": 16, "hidden": [256, 128]},
        "optimizer": {"sparse": {"name": "adagrad", "lr": 0.002}, "dense": {"name": "adagrad", "lr": 0.001}},
        "batch": {"global": GLOBAL, "local": local(workers)},
        "pace": {"name": pace},
        "workers": workers,
        "evaluate": "none",
        "checkpoint": {"every": 10**12, "keep": 1},
    }


def local(workers: int) -> int:
    from paceline.planning.candidates import local_batches

    return local_batches(GLOBAL, workers)[0]


def run(folder: Path, workers: int, pace: str) -> float:
    """Samples per second of a run, read to applied, in this process."""
    from paceline.jobfile import check
    from paceline.training import train

    place = Path(tempfile.mkdtemp(dir=folder))
    try:
        end = train(check(job(folder, workers, pace), "benchmark"), folder, place / "run")
    finally:
        shutil.rmtree(place)
    return float(end["samples_per_s"] * end["samples_applied"] / end["samples_read"])


def predictions(
    folder: Path, workers: list[int], seconds: float
) -> tuple[dict[tuple[int, str], float], dict[str, Any]]:
    """Predicted samples per second by workers and pace, and what was measured of the machine."""
    from paceline.config import PaceConfig
    from paceline.jobfile import check
    from paceline.planning.candidates import measured_sizes
    from paceline.planning.facts import Candidate, plain
    from paceline.planning.measure import measure_data, measure_machine
    from paceline.planning.plan import Here, ranked

    config = check(job(folder, 1, "sync"), "benchmark")
    sizes = sorted({local(n) for n in workers})
    data = measure_data(config, folder, sizes, [1])
    machine = measure_machine(config, folder, measured_sizes(sizes), seconds)
    found = {}
    for n in workers:
        for pace in PACES:
            candidate = Candidate(n, local(n), GLOBAL, PaceConfig(name=pace), None if pace == "sync" else 1)  # type: ignore[arg-type]
            found[n, pace] = ranked([candidate], Here(machine, data), data)[0].samples_per_s
    return found, plain(machine)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--samples", type=int, default=400_000)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--once", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.once:
        workers, pace, folder = options.once
        print(run(Path(folder), int(workers), pace))
        return
    with tempfile.TemporaryDirectory() as made:
        from paceline.data.synth import SynthSpec
        from paceline.data.synth_write import write_log

        folder = Path(made)
        write_log(SynthSpec(rows=options.samples, days=1, compression="zst", seed=3), folder)
        predicted, machine = predictions(folder, options.workers, options.seconds)
        found: dict[tuple[int, str], list[float]] = {key: [] for key in predicted}
        for _ in range(options.rounds):
            for workers, pace in found:
                command = [sys.executable, __file__, "--once", str(workers), pace, made]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                found[workers, pace].append(float(done.stdout.splitlines()[-1]))
    results = []
    print(f"{os.cpu_count()} cores; samples/s, median of {options.rounds} runs")
    for (workers, pace), rates in found.items():
        measured, promised = statistics.median(rates), predicted[workers, pace]
        results.append({"workers": workers, "pace": pace, "predicted": promised, "measured": measured, "runs": rates})
        off = promised / measured - 1
        print(f"{workers} workers {pace:5} predicted {promised:>10,.0f} measured {measured:>10,.0f} {off:+.1%}")
    if options.json:
        options.json.write_text(json.dumps({"machine": machine, "results": results}, indent=1))


if __name__ == "__main__":
    main()
