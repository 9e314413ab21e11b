"""Kill -9 of a cluster's processes at random moments; the job has to finish by itself, with every sample accounted for.

    python scripts/kill_cluster.py job.yaml [key=value ...] --times 20 [--seed S] [--nodes 2] [--servers 1] ...

In turn with each pace the job runs undisturbed, then with kills at random moments (of a worker, of a shard, of a node
that is both, of the coordinator). Told: AUC against the undisturbed runs of the pace, which differ among themselves but
in sync; and the time to go on. Exits with 1 if a sample is missing or an AUC is further than 0.001 away.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PACES = ("sync", "gba", "async", "bounded_staleness", "backup_workers", "bulk_synchronous", "damped")
TOLERANCE = 0.001


def run(
    command: list[str], folder: Path, kills: int, within: float, draw: random.Random
) -> tuple[dict[str, Any], list[str], float]:
    """(last metrics line, who was killed, seconds from the first process's start) of a run that is killed so often, at
    moments of its first `within` seconds."""
    process = subprocess.Popen([*command, "--run-dir", str(folder)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    moments = sorted(draw.uniform(0, within) for _ in range(kills))
    killed: list[str] = []
    started = None
    while process.poll() is None:
        time.sleep(0.05)
        told = folder / "processes.json"
        if started is None and told.exists():
            started = time.monotonic()
        if started is None or not moments or time.monotonic() - started < moments[0]:
            continue
        processes = json.loads(told.read_text())
        name = draw.choice(sorted(processes))
        if processes[name]["pid"] is None:
            continue
        try:
            os.kill(processes[name]["pid"], signal.SIGKILL)
        except ProcessLookupError:
            continue  # it is just being started again
        moments.pop(0)
        killed.append(name)
    output = process.communicate()[0].decode()
    if process.returncode:
        sys.exit(f"{folder}: exit code {process.returncode} after kills of {killed}\n{output}")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return lines[-1], killed, time.monotonic() - (started or time.monotonic())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--times", type=int, default=20, help="kills in all")
    parser.add_argument("--each", type=int, default=3, help="kills in a run")
    parser.add_argument(
        "--plain", type=int, default=2, help="undisturbed runs of each pace, with whose mean AUC to compare"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--servers", type=int, default=1)
    parser.add_argument("--helpers", type=int, default=1)
    options = parser.parse_args()
    draw = random.Random(options.seed)
    cluster = [
        f"cluster.nodes={options.nodes}",
        f"cluster.servers={options.servers}",
        f"cluster.workers={options.helpers}",
    ]
    left, worst = options.times, 0.0
    with tempfile.TemporaryDirectory() as folder:
        plain: dict[str, tuple[float, float]] = {}
        samples = set[int]()  # that were read: the same in every run
        total = 0
        turn = 0
        while left > 0:
            pace = PACES[turn % len(PACES)]
            command = [sys.executable, "-m", "paceline", "train", options.job, *options.overrides, *cluster]
            command.append(f"pace={pace}")
            if pace not in plain:
                alone = [run(command, Path(folder) / f"plain-{pace}-{k}", 0, 0, draw) for k in range(options.plain)]
                aucs = [end["auc"] for end, _, _ in alone]
                samples |= {end["samples_read"] for end, _, _ in alone}
                plain[pace] = statistics.mean(aucs), statistics.mean(seconds for _, _, seconds in alone)
                print(f"{pace}, undisturbed: AUC {', '.join(f'{auc:.5f}' for auc in aucs)}", flush=True)
            before, seconds = plain[pace]
            kills = min(options.each, left)
            end, killed, _ = run(command, Path(folder) / f"killed-{turn}", kills, seconds, draw)
            assert end["samples_read"] == end["samples_applied"] + end["samples_dropped"], end
            samples.add(end["samples_read"])
            worst = max(worst, abs(end["auc"] - before))
            per = end["recovery_s"] / end["recoveries"] if end["recoveries"] else 0.0
            account = f"{end['samples_read']:,} = {end['samples_applied']:,} + {end['samples_dropped']:,}"
            print(
                f"{pace}: killed {', '.join(killed) or 'nobody'}; {account}; AUC {end['auc']:.5f}"
                f" ({end['auc'] - before:+.5f}); {end['recoveries']} recoveries, {per:.1f} s each",
                flush=True,
            )
            left -= max(len(killed), 1)
            total += len(killed)
            turn += 1
    print(f"{total} kills; samples read in every run: {samples}; largest difference of AUC: {worst:.5f}")
    sys.exit(0 if len(samples) == 1 and worst <= TOLERANCE else 1)


if __name__ == "__main__":
    main()
