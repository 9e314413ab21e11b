"""Codistillation: predictions that change less from one retraining to the next, for what one model costs to serve.

Claims (Anil et al., ICLR 2018): two models that learn from each other's stale predictions (a) churn less between
retrains than one model, though more than an ensemble of two; (b) are no worse than a model that saw as many samples
alone; (c) use workers that no longer help one model.

(a), (b): everything is trained twice, with other random starts and other shares of the rows; churn is the mean absolute
difference of click probabilities on a day that nobody has trained on. `alone` are the same two groups that never learn
from each other, so the ensemble (their mean) has seen exactly what the pair has. (c): virtual time of N workers in sync
with one model, of 2 N, and of N + N codistilled, to the log loss that N workers have at their end.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from harness import COLOURS, DATA, MODEL, WORK, Log, Study, axes, mean_spread, merged, portable, table

NEVER = 10**15  # samples of burning in
SYSTEMS = {
    "single": "one model, its share of the rows",
    "codistilled": "codistilled, one of two",
    "ensemble": "ensemble of two, a share each",
    "whole": "one model, all rows",
}
WAYS = {"N": "N workers", "2N": "2 N workers", "N+N": "N + N, codistilled"}
OPTIMIZER = {"sparse": {"name": "adagrad", "lr": 0.02}, "dense": {"name": "adam", "lr": 0.001}}


@dataclass(frozen=True)
class Task:
    """A log whose last day is the test. group: training rows of one group."""

    name: str
    title: str
    job: dict[str, Any]
    days: list[str]
    test: str
    group: int


def tasks(quick: bool, pair: int) -> list[Task]:
    """Of one pair of retrains."""
    log = Log(60_000 if quick else 4_000_000, 4 if quick else 6, pair)
    files = sorted(str(path) for path in log.folder().glob("day_*"))
    job = merged(log.data(), {"model": MODEL, "optimizer": OPTIMIZER, "batch": {"global": 256}})
    share = log.rows * (log.days - 1) // log.days // 2
    found = [Task("synthetic", f"Synthetic log of {log.rows:,} rows", job, files[:-1], files[-1], share)]
    criteo = sorted(str(path) for path in (DATA / "criteo").glob("day_*.tsv.gz"))
    if not quick:
        model = {"name": "deepfm", "dim": 16, "hidden": [256, 128]}
        job = {"data": {"format": "criteo"}, "model": model, "optimizer": OPTIMIZER, "batch": {"global": 128}}
        job = merged(job, {"optimizer": {"sparse": {"lr": 0.01}}})
        found.append(Task("criteo", "Criteo sample", job, criteo[:-1], criteo[-1], 58_000))
    return found


def train(folder: Path, job: dict[str, Any], *cluster: Path) -> None:
    """`paceline train`, or `simulate` on a cluster, into `folder`."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = folder.with_suffix(".yaml")
    path.write_text(yaml.safe_dump({"checkpoint": {"every": 10**12, "keep": 1}, "evaluate": "none", **job}))
    what = "simulate" if cluster else "train"
    command = [sys.executable, "-m", "paceline", what, str(path), *map(str, cluster), "--run-dir", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{folder.name}: {done.stdout}\n{done.stderr}")


def retrain(task: Task, seed: int, folder: Path) -> dict[str, Any]:
    """Click probabilities on the test day by system, of one retraining."""
    from paceline.report.churn import predictions

    base = merged(task.job, {"data": {"days": task.days}, "seed": seed})
    often = {"groups": 2, "every": max(task.group // 50, 1)}
    alone, pair, whole = folder / "alone", folder / "pair", folder / "whole"
    train(alone, {**base, "codistill": {**often, "burn_in": NEVER}})
    train(pair, {**base, "codistill": {**often, "burn_in": task.group // 5}})
    train(whole, base)
    runs = {"0": alone / "group-0", "1": alone / "group-1", "codistilled": pair / "group-0", "whole": whole}
    found = {name: predictions(run, [task.test]) for name, run in runs.items()}
    shutil.rmtree(folder)
    return {
        "single": found["0"],
        "codistilled": found["codistilled"],
        "ensemble": (found["0"] + found["1"]) / 2,
        "whole": found["whole"],
    }


def labels_of(task: Task) -> Any:
    """Of the test day, [rows]."""
    import polars as pl

    if task.test.endswith(".parquet"):
        return pl.read_parquet(task.test, columns=["click"])["click"].to_numpy().astype(float)
    table = pl.read_csv(task.test, separator="\t", has_header=False, columns=[0])
    return table.to_series().to_numpy().astype(float)


def log_loss(p: Any, labels: Any) -> float:
    p = np.clip(p, 1e-7, 1 - 1e-7)
    return float(-(labels * np.log(p) + (1 - labels) * np.log(1 - p)).mean())


def compare_retrains(task: Task, pair: int, folder: Path) -> list[dict[str, Any]]:
    """A line for each system: its churn between two retrains, and both log losses."""
    labels = labels_of(task)
    one, other = (retrain(task, 2 * pair + k + 1, folder / str(k)) for k in (0, 1))
    return [
        {
            "task": task.name,
            "system": system,
            "churn": float(np.abs(one[system] - other[system]).mean()),
            "logloss": [log_loss(p[system], labels) for p in (one, other)],
        }
        for system in SYSTEMS
    ]


def in_time(quick: bool, pair: int, folder: Path) -> list[dict[str, Any]]:
    """A line for each way to use workers: (virtual seconds, log loss) after each day of a log cut into many, of which N
    workers read the first half: all ways take the same time."""
    log = Log(60_000, 8, pair) if quick else Log(8_000_000, 40, pair, drift=0.0)
    count = 8 if quick else 64
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    lines = []
    for way in WAYS:
        workers = 2 * count if way == "2N" else count
        cluster = folder / f"{way}-cluster.yaml"
        compute = {"fixed_ms": 20, "per_sample_us": 50, "speed_sigma": 0.0, "jitter_sigma": 0.0}
        cluster.write_text(yaml.safe_dump({"workers": workers, "compute": compute}))
        job = merged(log.data(), {"model": MODEL, "optimizer": OPTIMIZER, "evaluate": "next_day", "seed": pair})
        job |= {"batch": {"global": 64 * workers, "local": 64}}
        files = sorted(str(path) for path in log.folder().glob("day_*"))
        job["data"] = {**job["data"], "days": files[: len(files) // 2] if way == "N" else files}
        if way == "N+N":
            share = {"groups": 2, "every": max(log.rows // 200, 1), "burn_in": log.rows // 10}
            runs = [folder / way / f"group-{g}" for g in (0, 1)]
            jobs = [{**job, "codistill": {**share, "group": g}} for g in (0, 1)]
        else:
            runs, jobs = [folder / way], [job]
        with ThreadPoolExecutor(len(runs)) as pool:  # groups side by side: each learns from the other's newest copy
            list(pool.map(train, runs, jobs, [cluster] * len(runs)))
        told = [json.loads(line) for line in (runs[0] / "metrics.jsonl").read_text().splitlines()]
        curve = [[line["virtual_seconds"], line["logloss"]] for line in told if line["event"] == "evaluation"]
        lines.append({"way": way, "curve": curve})
    shutil.rmtree(folder)
    return lines


def main() -> None:
    study = Study("codistillation", __doc__ or "")
    found: dict[int, list[dict[str, Any]]] = {}
    for pair in study.seeds:
        parts = {f"churn-{task.name}": task for task in tasks(study.quick, pair)} | {"time": None}
        for name, task in parts.items():
            path = study.out / "runs" / f"{name}-{pair}.json"
            settings = json.loads(portable(json.dumps({"pair": pair, "task": None if task is None else vars(task)})))
            stored = json.loads(path.read_text()) if path.exists() else {}
            if stored.get("settings") != settings:
                started, folder = time.monotonic(), WORK / "runs" / f"codistillation-{name}-{pair}"
                lines = in_time(study.quick, pair, folder) if task is None else compare_retrains(task, pair, folder)
                minutes = round((time.monotonic() - started) / 60, 2)
                stored = {"settings": settings, "lines": lines, "minutes": minutes}
                path.write_text(json.dumps(stored) + "\n")
                print(f"  {name}, pair {pair}: {minutes} min", flush=True)
            found.setdefault(pair, []).extend(stored["lines"])
    report(study, found)


def reached(curve: list[list[float]], level: float) -> float | None:
    """The first moment at which a log loss is no higher than `level`; its running mean over three days, since days
    differ."""
    losses = [loss for _, loss in curve]
    for k, (seconds, _) in enumerate(curve):
        if statistics.mean(losses[max(0, k - 2) : k + 1]) <= level:
            return seconds
    return None


def report(study: Study, found: dict[int, list[dict[str, Any]]]) -> None:
    text = (
        f"# Codistillation\n\n    {study.command}\n\n{(__doc__ or '').strip()}\n\n{len(found)} pair(s) of retrains, ±"
    )
    text += " half the range.\n"
    named = [line for lines in found.values() for line in lines]
    for task in dict.fromkeys(line["task"] for line in named if "task" in line):
        rows = []
        for system, title in SYSTEMS.items():
            mine = [line for line in named if line.get("task") == task and line["system"] == system]
            losses = [statistics.mean(line["logloss"]) for line in mine]
            rows.append([title, mean_spread([line["churn"] for line in mine]), mean_spread(losses)])
        text += f"\n## Retrains: {task}\n\n" + table(["", "churn", "log loss"], rows)
    rows = []
    for way, title in WAYS.items():
        times, ends = [], []
        for lines in found.values():
            curves = {line["way"]: line["curve"] for line in lines if "way" in line}
            level = statistics.mean(loss for _, loss in curves["N"][-3:])
            times.append(reached(curves[way], level))
            ends.append(statistics.mean(loss for _, loss in curves[way][-3:]))
        told = [t for t in times if t is not None]
        when = mean_spread(told, 1) if told else "never"
        rows.append([title, when + (f" ({len(times) - len(told)} never)" if len(told) < len(times) else ""),
                     mean_spread(ends)])  # fmt: skip
    text += "\n## Time\n\n" + table(["", "virtual seconds to what N workers end with", "log loss at the end"], rows)
    study.write("table.md", text)
    _plot(study, found)


def _plot(study: Study, found: dict[int, list[dict[str, Any]]]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2))
    left, right = axes(figure, 1, 2, 1), axes(figure, 1, 2, 2)
    named = [line for lines in found.values() for line in lines]
    for shape, task in zip("os", dict.fromkeys(line["task"] for line in named if "task" in line), strict=False):
        for colour, system in zip(COLOURS, SYSTEMS, strict=False):
            mine = [line for line in named if line.get("task") == task and line["system"] == system]
            x = [statistics.mean(line["logloss"]) for line in mine]
            label = f"{SYSTEMS[system]}" if shape == "o" else None
            left.plot(x, [line["churn"] for line in mine], shape, color=colour, label=label, markersize=6)
    left.set_xlabel("log loss on a day that nobody trained on")
    left.set_ylabel("churn between two retrains")
    left.set_title("Circles: synthetic; squares: Criteo", loc="left", fontsize=10)
    left.legend(frameon=False, fontsize=8)
    for colour, way in zip(COLOURS, WAYS, strict=False):
        for pair, lines in found.items():
            curve = next(line["curve"] for line in lines if line.get("way") == way)
            label = WAYS[way] if pair == min(found) else None
            right.plot([s for s, _ in curve], [loss for _, loss in curve], color=colour, label=label, linewidth=1.2)
    right.set_xlabel("virtual seconds")
    right.set_ylabel("log loss of the next day")
    right.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    study.figure("plot.png", figure)


if __name__ == "__main__":
    main()
