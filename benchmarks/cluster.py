"""A real cluster on this machine: what a straggler costs, and what a change of pace costs.

    python benchmarks/cluster.py [straggler] [switch] [idle] [--rows 60000] [--out results.json]

Workers are processes of Ray. There are fewer cores than workers, so every worker's computing is stretched by sleeping
(`inject: slow`), as if each had a core of its own; the straggler sleeps five times as long as the others.

- straggler: samples per second of sync and GBA with 4 workers, one of them 5 times slower, in turn; and both AUCs.
- idle: the share of their time that 8 workers under async do not compute, with and without a batch ahead.
- switch: sync -> gba -> sync -> async -> gba in one run; pauses, the account, and that no row travels between shards.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

PACES = ("sync", "gba")


def job(log: Path, local: int, **changes: Any) -> dict[str, Any]:
    return {
        "data": {"format": "criteo", "days": str(log / "day_*.tsv.gz")},
        "model": {"name": "deepfm", "dim": 8, "hidden": [64, 32]},
        "optimizer": {"sparse": {"name": "adagrad", "lr": 0.02}, "dense": {"name": "adam", "lr": 0.001}},
        "batch": {"global": 4 * local, "local": local},
        "checkpoint": {"every": 10**9},
        **changes,
    }


def train(folder: Path, name: str, values: dict[str, Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(metrics lines, histogram lines) of a run."""
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(values))
    run = folder / name
    command = [sys.executable, "-m", "paceline", "train", str(path), "--run-dir", str(run)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{name}: {done.stdout}\n{done.stderr}")
    found = [[json.loads(line) for line in (run / f"{kind}.jsonl").read_text().splitlines()]
             for kind in ("metrics", "histograms")]  # fmt: skip
    return found[0], found[1]


def straggler(folder: Path, log: Path, rounds: int) -> dict[str, Any]:
    slow = [{"slow": f"worker-{i}", "factor": 20 if i == 3 else 4} for i in range(4)]
    rates: dict[str, list[float]] = {pace: [] for pace in PACES}
    aucs: dict[str, list[float]] = {pace: [] for pace in PACES}
    for turn in range(rounds):
        for pace in PACES:
            values = job(log, 256, pace=pace, cluster={"nodes": 4}, inject=slow, seed=turn)
            lines, _ = train(folder, f"straggler-{pace}-{turn}", values)
            rates[pace].append(lines[-1]["samples_per_s"])
            aucs[pace].append(lines[-1]["auc"])
            print(f"  {pace}: {rates[pace][-1]:,.0f} samples/s, AUC {aucs[pace][-1]:.5f}", flush=True)
    ratios = [g / s for g, s in zip(rates["gba"], rates["sync"], strict=True)]
    gaps = [g - s for g, s in zip(aucs["gba"], aucs["sync"], strict=True)]
    return {"samples_per_s": rates, "gba_over_sync": statistics.median(ratios), "ratios": ratios, "auc_gaps": gaps}


def switch(folder: Path, log: Path, rows: int) -> dict[str, Any]:
    places = [rows * k // 5 for k in (1, 2, 3, 4)]
    paces = ["gba", "sync", "async", "gba"]
    plan = [{"at": place, "pace": pace} for place, pace in zip(places, paces, strict=True)]
    values = job(log, 256, pace="sync", cluster={"nodes": 3}, switch=plan)
    lines, _ = train(folder, "switch", values)
    end = lines[-1]
    pauses = [line["switch_pause_s"] for line in lines]
    closes = end["samples_read"] == end["samples_applied"] + end["samples_dropped"]
    return {
        "longest_pause_s_by_line": pauses,
        "account_closes": closes,
        "bytes_per_worker_and_update": end["bytes_measured"],
    }


def idle(folder: Path, log: Path) -> dict[str, Any]:
    """Share of their time that 8 workers do not compute, for whatever reason."""
    found = {}
    for ahead in (1, 0):
        cluster = {"nodes": 2, "workers": 6, "ahead": ahead}
        slow = [{"slow": f"worker-{i}", "factor": 12} for i in range(8)]
        days = [[str(path) for path in sorted(log.glob("day_*"))]]  # one day: workers wait for no evaluation
        values = job(log, 256, pace="async", cluster=cluster, inject=slow, evaluate="none")
        values["data"]["days"] = days
        lines, _ = train(folder, f"idle-{ahead}", values)
        found[f"ahead {ahead}"] = {"idle": round(1 - lines[-1]["busy_share"], 5)}
        print(f"  {found}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=["straggler", "switch", "idle"])
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    from paceline.data.synth import SynthSpec
    from paceline.data.synth_write import write_log

    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        log = folder / "log"
        write_log(SynthSpec(rows=options.rows, days=3, seed=1, layout="criteo", vocabulary=50_000), log)
        if "straggler" in options.what:
            found["straggler"] = straggler(folder, log, options.rounds)
        if "switch" in options.what:
            found["switch"] = switch(folder, log, options.rows)
        if "idle" in options.what:
            found["idle"] = idle(folder, log)
    text = json.dumps(found, indent=1)
    print(text)
    if options.out is not None:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
