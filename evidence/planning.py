"""What a plan promises against what the simulator reaches, and its choice against an exhaustive sweep.

Nothing is fitted to a cluster: predictions come from formulas, the cluster's description, and what batches of the log's
first day hold; the simulator trains on the second day with real gradients. First, throughput from 1 to 64 workers with
sync and GBA on three clusters: an even one with a slow network, one whose servers are the limit, and one with workers
of different speeds and slow spells (of a few gradients, so that a short simulation sees many). Then, on the same three
with up to 8 workers, every candidate that the planner looks at is simulated, and its choice (by predictions and the
simulator's check of three) is held against the best of all. Wanted: within 15 % and within 5 %.
"""

from __future__ import annotations

import json
import multiprocessing
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from harness import COLOURS, HERE, MODEL, Log, Study, axes, merged, portable, table

JOB: dict[str, Any] = {
    "model": MODEL,
    "optimizer": {
        "sparse": {"name": "adagrad", "lr": 0.02},
        "dense": {"name": "adagrad", "lr": 0.01, "initial_accumulator_value": 1e-6},
    },
    "batch": {"global": 1024},
}
CLUSTERS: dict[str, dict[str, Any]] = {
    "slow network": {
        "compute": {"fixed_ms": 6, "per_sample_us": 80, "jitter_sigma": 0.15},
        "network": {"latency_ms": 2, "bandwidth_gbps": 0.5},
        "allreduce": {"latency_ms": 3, "bandwidth_gbps": 0.5},
        "servers": {"count": 8, "ms_per_mb": 2},
    },
    "few servers": {
        "compute": {"fixed_ms": 3, "per_sample_us": 60, "jitter_sigma": 0.3},
        "servers": {"count": 4, "ms_per_mb": 40},
        "allreduce": {"latency_ms": 4, "bandwidth_gbps": 5},
    },
    "slow spells": {
        "compute": {"fixed_ms": 8, "per_sample_us": 50, "jitter_sigma": 0.1, "speed_sigma": 0.15},
        "stragglers": {"kind": "bursts", "factor": 4, "slow_s": 0.06, "fast_s": 0.6},
        "network": {"latency_ms": 0.5, "bandwidth_gbps": 5},
        "servers": {"count": 4, "ms_per_mb": 5},
    },
}
WORKERS = (1, 2, 4, 8, 16, 32, 64)
PACES = ("sync", "gba")


def main() -> None:
    study = Study("planning", __doc__ or "")
    sizes = {"scale": 40_960, "sweep": 20_480, "check": 20_480, "workers": 8, "counts": list(WORKERS)}
    if study.quick:
        sizes = {"scale": 12_288, "sweep": 10_240, "check": 10_240, "workers": 2, "counts": [1, 4, 16]}
    found: dict[tuple[str, int], dict[str, Any]] = {}
    waiting = []
    for seed in study.seeds:
        for name, cluster in CLUSTERS.items():
            if study.options.only not in name:
                continue
            settings = {"job": JOB, "cluster": cluster, "seed": seed, "sizes": sizes, "version": 1}
            path = study.out / "runs" / f"{name.replace(' ', '_')}-{seed}.json"
            if path.exists() and (stored := json.loads(path.read_text()))["settings"] == settings:
                found[name, seed] = stored
            else:
                waiting.append((name, seed, settings, path))
    print(f"planning: {len(found)} clusters are there, {len(waiting)} to do", flush=True)
    for seed in {seed for _, seed, _, _ in waiting}:
        log_of(seed, sizes).folder()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(study.options.jobs, mp_context=context) as pool:
        futures = [(each, pool.submit(measure, each[2])) for each in waiting]
        for (name, seed, settings, path), future in futures:
            found[name, seed] = {"settings": settings, **future.result()}
            path.write_text(portable(json.dumps(found[name, seed])) + "\n")
            print(f"  {name} seed {seed}: {found[name, seed]['minutes']:.1f} min", flush=True)
    report(study, found)


def log_of(seed: int, sizes: dict[str, Any]) -> Log:
    return Log(2 * max(sizes["scale"], sizes["sweep"]) + 2048, 2, seed)


def measure(settings: dict[str, Any]) -> dict[str, Any]:
    """One cluster with one seed: predictions and simulations, and the sweep."""
    from paceline.clusterspec import ClusterSpec
    from paceline.config import PaceConfig
    from paceline.jobfile import check
    from paceline.planning.candidates import local_batches
    from paceline.planning.facts import Candidate
    from paceline.planning.measure import measure_data
    from paceline.planning.plan import Options, make_plan
    from paceline.planning.predict import predict

    started, sizes, seed = time.process_time(), settings["sizes"], settings["seed"]
    log = log_of(seed, sizes)
    config = check(merged({"seed": seed}, log.data(), settings["job"]), "evidence")
    cluster = {**settings["cluster"], "seed": seed}
    most = ClusterSpec.model_validate({**cluster, "workers": max(sizes["counts"])})
    global_ = config.batch.global_
    tried = [
        Candidate(n, local_batches(global_, n)[0], global_, PaceConfig(name=pace), None if pace == "sync" else
                  most.servers.count)
        for n in sizes["counts"] for pace in PACES
    ]  # fmt: skip
    data = measure_data(config, HERE, sorted({c.local for c in tried}), [most.servers.count])
    scale = [held(config, predict(c, most, data), most, sizes["scale"]) for c in tried]
    few = ClusterSpec.model_validate({**cluster, "workers": sizes["workers"]})
    plan = make_plan(config, HERE, few, HERE, Options(rows=sizes["check"]), 1)
    # The sweep simulates every candidate by itself, on the second day; the plan's check saw the first.
    sweep = [held(config, prediction, few, sizes["sweep"]) for prediction in plan.ranking]
    lines = [line for line in (*scale, *sweep) if line]
    minutes = round((time.process_time() - started) / 60, 2)
    return {"lines": lines, "scale": len(scale), "chosen": plan.chosen, "minutes": minutes}


def held(config: Any, prediction: Any, spec: Any, rows: int) -> dict[str, Any]:
    """Predicted and simulated throughput of a candidate."""
    from paceline.planning.check import simulated

    check = simulated(config, HERE, prediction.candidate, spec, rows, first_day=1)
    assert check is not None, "the log is long enough for ten updates"
    return {
        **prediction.candidate.to_json(),
        "predicted": round(prediction.samples_per_s, 1),
        "simulated": round(check.samples_per_s, 1),
        "samples_read": check.read,
        "samples_applied": check.applied,
        "samples_dropped": check.dropped,
        "virtual_seconds": round(check.seconds, 6),
    }


def report(study: Study, found: dict[tuple[str, int], dict[str, Any]]) -> None:
    seeds, names = sorted({seed for _, seed in found}), list(dict.fromkeys(name for name, _ in found))
    offs: list[float] = []
    rows = []
    for name in names:
        for pace in PACES:
            cells = []
            for n in found[names[0], seeds[0]]["settings"]["sizes"]["counts"]:
                lines = [of(found[name, s], n, pace) for s in seeds]
                each = [line["predicted"] / line["simulated"] - 1 for line in lines]
                offs += each
                rate = statistics.mean(line["simulated"] for line in lines)
                cells.append(f"{rate / 1e3:,.1f} ({min(each):+.0%} {max(each):+.0%})")
            rows.append([name, pace, *cells])
    counts = found[names[0], seeds[0]]["settings"]["sizes"]["counts"]
    within = sum(abs(off) <= 0.15 for off in offs)
    choices, shares, every = [], [], []
    for name in names:
        for s in seeds:
            run = found[name, s]
            sweep = run["lines"][run["scale"] :]
            chosen, best = sweep[run["chosen"]], max(sweep, key=lambda line: line["simulated"])
            shares.append(chosen["simulated"] / best["simulated"])
            each = [abs(line["predicted"] / line["simulated"] - 1) for line in sweep]
            every += each
            choices.append([name, str(s), str(len(sweep)), told(chosen), told(best), f"{shares[-1]:.1%}",
                            f"{statistics.median(each):.1%}", f"{max(each):.1%}"])  # fmt: skip
    bad = beyond(found)
    text = f"# Planning\n\n    {study.command}\n\n{(__doc__ or '').strip()}\n\n"
    minutes = sum(run["minutes"] for run in found.values())
    text += f"{len(seeds)} seed(s) of log and cluster; {minutes:.0f} minutes of one core.\n\n"
    text += "## Predicted against simulated\n\nThousand samples per virtual second as simulated, mean of the seeds,"
    text += " and how far the prediction is off at least and at most.\n\n"
    text += table(["cluster", "pace", *(f"{n} workers" for n in counts)], rows)
    text += f"\nWithin 15 %: {within} of {len(offs)}; largest deviation {max(map(abs, offs)):.1%}, median"
    text += f" {statistics.median(map(abs, offs)):.1%}.\n\n## The choice against the sweep\n\n"
    head = ["cluster", "seed", "candidates", "chosen", "best of all", "chosen / best", "median off", "largest off"]
    text += table(head, choices)
    text += f"\nWorst choice: {min(shares):.1%} of the best. Of {len(every)} predictions in the sweeps"
    text += f" {sum(off <= 0.15 for off in every) / len(every):.1%} are within 15 %."
    text += f" Those that are not:\n\n{bad}" if bad else " None is off by more.\n"
    study.write("table.md", text)
    plot(study, found, names, seeds[0])


def of(run: dict[str, Any], workers: int, pace: str) -> dict[str, Any]:
    """The line of the first part with so many workers."""
    return next(line for line in run["lines"][: run["scale"]] if (line["workers"], line["pace"]) == (workers, pace))


def told(line: dict[str, Any]) -> str:
    servers = "" if line["servers"] is None else f", {line['servers']} servers"
    return f"{line['workers']} × {line['local_batch']} {line['pace']}{servers}"


def beyond(found: dict[tuple[str, int], dict[str, Any]]) -> str:
    """A table of the predictions of sweeps that are off by more than 15 %, the worst twelve first."""
    worst = []
    for (name, seed), run in found.items():
        for line in run["lines"][run["scale"] :]:
            off = line["predicted"] / line["simulated"] - 1
            if abs(off) > 0.15:
                worst.append((abs(off), [name, str(seed), told(line), f"{line['predicted']:,.0f}",
                                         f"{line['simulated']:,.0f}", f"{off:+.1%}"]))  # fmt: skip
    worst.sort(key=lambda each: -each[0])
    head = ["cluster", "seed", "candidate", "predicted", "simulated", "off"]
    return table(head, [cells for _, cells in worst[:12]]) if worst else ""


def plot(study: Study, found: dict[tuple[str, int], dict[str, Any]], names: list[str], seed: int) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 7.4))
    for place, name in enumerate(names):
        run = found[name, seed]
        above = axes(figure, 2, len(names), place + 1)
        for pace, colour in zip(PACES, COLOURS, strict=False):
            lines = [line for line in run["lines"][: run["scale"]] if line["pace"] == pace]
            x = [line["workers"] for line in lines]
            above.plot(x, [line["predicted"] / 1e3 for line in lines], color=colour, label=f"{pace}, predicted")
            above.plot(x, [line["simulated"] / 1e3 for line in lines], "o", color=colour, label=f"{pace}, simulated")
        above.set_xscale("log", base=2)
        above.set_xticks(run["settings"]["sizes"]["counts"], [str(n) for n in run["settings"]["sizes"]["counts"]])
        above.set_xlabel("workers")
        above.set_title(name, loc="left")
        above.set_ylim(bottom=0)
        sweep = run["lines"][run["scale"] :]
        below = axes(figure, 2, len(names), len(names) + place + 1)
        most = max(max(line["predicted"], line["simulated"]) for line in sweep) / 1e3
        below.fill_between([0, most], [0, 0.85 * most], [0, 1.15 * most], color="#eeeeee", label="within 15 %")
        for pace, colour in zip(PACES, COLOURS, strict=False):
            lines = [line for line in sweep if line["pace"] == pace]
            below.plot([line["simulated"] / 1e3 for line in lines], [line["predicted"] / 1e3 for line in lines], "o",
                       markersize=3, color=colour, label=pace)  # fmt: skip
        chosen = sweep[run["chosen"]]
        below.plot(chosen["simulated"] / 1e3, chosen["predicted"] / 1e3, "o", markersize=12, fillstyle="none",
                   color="black", label="chosen")  # fmt: skip
        below.set_xlabel("simulated, thousand samples/s")
        if place == 0:
            above.set_ylabel("thousand samples/s")
            below.set_ylabel("predicted, thousand samples/s")
            above.legend(frameon=False, fontsize=8)
            below.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    study.figure("plot.png", figure)


if __name__ == "__main__":
    main()
