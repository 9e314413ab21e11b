"""A real cluster on this machine: what a straggler costs, and what a change of pace costs.

    python benchmarks/cluster.py [same] [straggler] [switch] [idle] [--rows N] [--rounds 3] [--out results.json]

Workers are processes of Ray. There are fewer cores than workers, so every worker's computing is stretched by sleeping
(`inject: slow`), as if each had a core of its own; the straggler sleeps five times as long as the others.

- same: the Criteo sample (PACELINE_DATA) in sync by the local runtime's one worker (which is bitwise a serial loop:
  tests/runs/test_equality.py) and by 1 to 4 nodes with rows moved, with partial sums, by push and pull (`--models`);
  then gba on 4 nodes. The first six days are cut into four parts each: the curve of log losses has 24 points.
- straggler: the Criteo sample with 4 workers, one of them 5 times slower, by sync and GBA in turn: samples per second,
  and the AUC of the last day.
- idle: the share of their time that 8 workers under async do not compute, with and without a batch ahead.
- switch: sync -> gba -> sync -> async -> gba in one run on millions of embedding rows; pauses, the account, and that no
  row travels between shards.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import os
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
    path = folder / f"{name.replace(' ', '_')}.yaml"
    path.write_text(yaml.safe_dump(values))
    run = path.with_suffix("")
    command = [sys.executable, "-m", "paceline", "train", str(path), "--run-dir", str(run)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{name}: {done.stdout}\n{done.stderr}")
    found = [[json.loads(line) for line in (run / f"{kind}.jsonl").read_text().splitlines()]
             for kind in ("metrics", "histograms")]  # fmt: skip
    return found[0], found[1]


def criteo() -> Path:
    data = Path(os.environ.get("PACELINE_DATA", Path(__file__).resolve().parents[2] / "shared" / "data")) / "criteo"
    if not data.exists():
        sys.exit(f"no Criteo sample at {data}; set PACELINE_DATA to the folder that holds criteo/")
    return data


def whole_criteo() -> dict[str, Any]:
    """The job on the Criteo sample."""
    return {
        "data": {"format": "criteo", "days": str(criteo() / "day_*.tsv.gz")},
        "model": {"name": "deepfm", "dim": 16, "hidden": [256, 128]},
        "optimizer": {"sparse": {"name": "adagrad", "lr": 0.01}, "dense": {"name": "adam", "lr": 0.001}},
        "batch": {"global": 256, "local": 64},
        "checkpoint": {"every": 10**9},
    }


def cut_days(folder: Path, parts: int = 4) -> list[str]:
    """The Criteo sample with its first six days in so many files each."""
    files = []
    for day in sorted(criteo().glob("day_*.tsv.gz")):
        with gzip.open(day, "rb") as stored:
            lines = stored.read().splitlines(keepends=True)
        pieces = parts if day.name < "day_6" else 1
        for piece in range(pieces):
            path = folder / f"{day.name[:5]}_{piece}.tsv"
            path.write_bytes(b"".join(lines[len(lines) * piece // pieces : len(lines) * (piece + 1) // pieces]))
            files.append(str(path))
    return files


def same(folder: Path, rounds: int, models: list[str]) -> dict[str, Any]:
    """By model, nodes and exchange: largest relative difference of log losses to the serial loop's, and the AUC of the
    last day. `local 128`: the serial loop itself, with its sums in another order: what it differs by is rounding that
    training makes larger, and no exchange's."""
    base = {**whole_criteo(), "data": {"format": "criteo", "days": cut_days(folder)}}

    def told(name: str, **changes: Any) -> tuple[list[float], float]:
        lines = [line for line in train(folder, name, {**base, **changes})[0] if line["event"] == "evaluation"]
        return [line["logloss"] for line in lines], lines[-1]["auc"]

    found: dict[str, Any] = {}
    aucs: dict[str, list[float]] = {"sync": [], "gba": []}
    for seed, model in itertools.product(range(rounds), models):
        given: dict[str, Any] = {"seed": seed, "model": base["model"] if model == "deepfm" else {"name": model}}
        serial, serial_auc = told(f"serial-{model}-{seed}", workers=1, **given)
        whole = model == "deepfm" and not seed
        ways = list(itertools.product((1, 2, 3, 4) if whole else (2, 3, 4), ("rows", "substitute")[not whole :]))
        runs = {f"{n} nodes, {way}": {"cluster": {"nodes": n, "exchange": way}} for n, way in ways}
        if whole:
            runs["3 nodes, push_pull"] = {"cluster": {"nodes": 3, "exchange": "push_pull"}}
        runs["local 128"] = {"workers": 1, "batch": {"global": 256, "local": 128}}
        for name, changes in runs.items():
            losses, auc = told(f"{model}, seed {seed}, {name}", **given, **changes)
            apart = [abs(a - b) / b for a, b in zip(losses, serial, strict=True)]
            found[f"{model}, seed {seed}, {name}"] = {
                "worst_relative": max(apart),
                "points_within_1e-5": next((k for k, d in enumerate(apart) if d > 1e-5), len(apart)),
                "points": len(apart),
                "auc": auc,
                "auc_gap": auc - serial_auc,
            }
            print(f"  {model}, seed {seed}, {name}: {found[f'{model}, seed {seed}, {name}']}", flush=True)
        if model == "deepfm":
            days = {"data": whole_criteo()["data"]}  # no small update before a test
            aucs["sync"].append(told(f"whole-{seed}", workers=1, seed=seed, **days)[1])
            aucs["gba"].append(told(f"gba-{seed}", seed=seed, pace="gba", cluster={"nodes": 4}, **days)[1])
            print(f"  gba, seed {seed}: {aucs['gba'][seed]:.5f}, sync {aucs['sync'][seed]:.5f}", flush=True)
    return {"sync_by_nodes": found, "auc": aucs}


def straggler(folder: Path, rounds: int) -> dict[str, Any]:
    slow = [{"slow": f"worker-{i}", "factor": 50 if i == 3 else 10} for i in range(4)]
    rates: dict[str, list[float]] = {pace: [] for pace in PACES}
    aucs: dict[str, list[float]] = {pace: [] for pace in PACES}
    for turn in range(rounds):
        for pace in PACES:
            values = {**whole_criteo(), "pace": pace, "cluster": {"nodes": 4}, "inject": slow, "seed": turn}
            lines, _ = train(folder, f"straggler-{pace}-{turn}", values)
            rates[pace].append(lines[-1]["samples_per_s"])
            aucs[pace].append(lines[-1]["auc"])
            print(f"  {pace}: {rates[pace][-1]:,.0f} samples/s, AUC {aucs[pace][-1]:.5f}", flush=True)
    ratios = [g / s for g, s in zip(rates["gba"], rates["sync"], strict=True)]
    gaps = [g - s for g, s in zip(aucs["gba"], aucs["sync"], strict=True)]
    return {"samples_per_s": rates, "gba_over_sync": statistics.median(ratios), "ratios": ratios, "aucs": aucs,
            "auc_gaps": gaps, "mean_auc_gap": statistics.mean(gaps)}  # fmt: skip


def switch(folder: Path, log: Path, rows: int) -> dict[str, Any]:
    places = [rows * k // 5 for k in (1, 2, 3, 4)]
    paces = ["gba", "sync", "async", "gba"]
    plan = [{"at": place, "pace": pace} for place, pace in zip(places, paces, strict=True)]
    values = job(log, 256, pace="sync", cluster={"nodes": 3}, switch=plan)
    lines, _ = train(folder, "switch", values)
    end = lines[-1]
    said, sent = (sum(end[key].values()) for key in ("bytes_predicted", "bytes_measured"))
    return {
        "pauses_s": [line["switch_pause_s"] for line in lines if line["switch_pause_s"] is not None],
        "account": [end["samples_read"], end["samples_applied"], end["samples_dropped"]],
        "account_closes": end["samples_read"] == end["samples_applied"] + end["samples_dropped"],
        "embedding_rows_by_day": [line["ids"] for line in lines],
        "bytes_per_worker_and_update": end["bytes_measured"],
        # What was sent beyond what the batches need: moving one shard's rows would show here.
        "excess_bytes_in_all": (sent - said) * end["updates"] * 3,
        "bytes_of_a_shards_rows": end["ids"] / 3 * 4 * (9 + 9),  # dim 8 and the linear weight, each with Adagrad's slot
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
    parser.add_argument("what", nargs="*", default=["same", "straggler", "switch", "idle"])
    parser.add_argument("--rows", type=int, help="of the log (default: 600,000, and 5,000,000 for switch)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--models", default="deepfm,fm,lr", help="for same")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    from paceline.data.synth import SynthSpec
    from paceline.data.synth_write import write_log

    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def log(rows: int, vocabulary: int = 50_000, alpha: float = 1.1) -> Path:
            rows = options.rows or rows
            path = folder / f"log-{rows}-{vocabulary}"
            if not path.exists():
                spec = SynthSpec(rows=rows, days=3, seed=1, layout="criteo", vocabulary=vocabulary, alpha=alpha)
                write_log(spec, path)
            return path

        if "same" in options.what:
            found["same"] = same(folder, options.rounds, options.models.split(","))
        if "straggler" in options.what:
            found["straggler"] = straggler(folder, options.rounds)
        if "switch" in options.what:
            found["switch"] = switch(folder, log(5_000_000, 30_000_000, 0.8), options.rows or 5_000_000)
        if "idle" in options.what:
            found["idle"] = idle(folder, log(600_000))
    text = json.dumps(found, indent=1)
    print(text)
    if options.out is not None:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
