"""Asynchronous training on 100 to 3000 workers, each way of taming staleness next to its control.

Claim (Liu and Zhao, AAAI 2021): staleness normalisation, data normalisation and SWAP let thousands of asynchronous
workers converge. Local batches of 128; 5 % of the workers are 5 times slower, the others differ by a lognormal factor
(0.3). All arms go on from the same first day in sync (global batch 4096), with its learning rates unless their own are
named.

At 3000 workers the finalists of the wide grid (evidence/three_thousand_grid.py) on fifty million rows. With --wide
every part by itself, too, and the control and the two best ways at 1000, 300 and 100 workers: 13 hours of one core.

Yardsticks: sync with a global batch of 4096, which no 3000 workers can share (32 local batches), and sync at the same
parallelism (one local batch of every worker in an update).
"""

from __future__ import annotations

import statistics
from typing import Any

from harness import COLOURS, MODEL, Arm, Log, Result, Study, axes, mean_spread, merged, table

LOCAL = 128
SPARSE_LR, DENSE_LR, A0 = 0.05, 0.02, 1e-6
JOB: dict[str, Any] = {
    "model": MODEL,
    "batch": {"global": 4096, "local": LOCAL},
    "checkpoint": {"every": 10**12, "keep": 1},
}
NORMALISE = {"normalise": "local_batch"}
POWER = {"pace": {"name": "async", "weight": {"law": "power", "k": 2}}}
FINALISTS = ("sync 4096", "sync, same parallelism", "async, own lr", "async, power k=2", "async, power, norm, SWAP",
             "damped", "damped, norm, SWAP")  # fmt: skip
QUICK = 200  # workers of the quick mode
# What is best for plain async at ten million rows, mean of three seeds (evidence/three_thousand_grid.py).
OWN_RATE = {QUICK: 0.2, 100: 0.5, 300: 0.2, 1000: 0.1, 3000: 0.05}
# Local batches in an update of `damped`: about a twelfth of the workers, 32 at least.
AGGREGATE = {QUICK: 32, 100: 32, 300: 32, 1000: 96, 3000: 256}


def adagrad(rate: float = 1.0) -> dict[str, Any]:
    dense = {"name": "adagrad", "lr": DENSE_LR * rate, "initial_accumulator_value": A0, "fused": True}
    return {"optimizer": {"sparse": {"name": "adagrad", "lr": SPARSE_LR * rate, "initial": A0}, "dense": dense}}


def swap(period: int, decay: float = 0.8) -> dict[str, Any]:
    common = {"name": "adagrad_swap", "initial": A0, "decay": decay, "period": period}
    return {"optimizer": {"sparse": {**common, "lr": SPARSE_LR}, "dense": {**common, "lr": DENSE_LR}}}


def cluster(workers: int) -> dict[str, Any]:
    return {
        "workers": workers,
        "compute": {"fixed_ms": 20, "per_sample_us": 50, "speed_sigma": 0.3, "jitter_sigma": 0.1},
        "stragglers": {"share": 0.05, "factor": 5},
    }


def sync(gradients: int) -> dict[str, Any]:
    """A global batch of `gradients` local batches, computed in larger pieces: the same sum."""
    return {
        "pace": {"name": "sync"},
        "batch": {"global": gradients * LOCAL, "local": 32 * LOCAL if gradients == 32 else 20 * LOCAL},
    }


def ways(workers: int, period: int) -> dict[str, tuple[str, list[dict[str, Any]]]]:
    """Arm -> (which first day it goes on from, what it changes)."""
    damped = {"pace": {"name": "damped"}, "batch": {"global": AGGREGATE[workers] * LOCAL}}
    found: dict[str, tuple[str, list[dict[str, Any]]]] = {
        "async, own lr": ("plain", [{"pace": {"name": "async"}}, adagrad(OWN_RATE[workers])]),
        "async, power, norm, SWAP": ("norm swap", [POWER, NORMALISE, swap(period)]),
        "damped, norm, SWAP": ("norm swap", [damped, NORMALISE, swap(period)]),
    }
    if workers in (3000, QUICK):  # each part by itself
        found |= {
            "sync, same parallelism": ("plain", [sync(workers)]),
            "async, power k=2": ("plain", [POWER]),
            "damped": ("plain", [damped]),
        }
    if workers == 3000:
        found |= {
            "async, own lr, norm": ("norm", [{"pace": {"name": "async"}}, adagrad(OWN_RATE[workers]), NORMALISE]),
            "async, power, norm": ("norm", [POWER, NORMALISE]),
            "damped, norm": ("norm", [damped, NORMALISE]),
            "sync 4096": ("plain", [sync(32)]),
            "sync 4096, norm, SWAP": ("norm swap", [sync(32), NORMALISE, swap(period)]),
            "sync, same parallelism, norm, SWAP": ("norm swap", [sync(workers), NORMALISE, swap(period)]),
        }
    return found


def arms_of(study: Study, counts: list[int], rows: int, days: int, drift: float) -> list[Arm]:
    period = rows // days // 4
    logs = {seed: Log(rows, days, seed, drift) for seed in study.seeds}
    starts: dict[tuple[int, str], Arm] = {}
    for seed, log in logs.items():
        first = {"data": {"days": [str(log.folder() / "day_0.parquet")]}}
        for name, more in (
            ("plain", [adagrad()]),
            ("norm", [adagrad(), NORMALISE]),
            ("norm swap", [swap(period), NORMALISE]),
        ):
            job = merged(JOB, sync(32), *more, first)
            starts[seed, name] = Arm(f"warm_{name}".replace(" ", "_"), job, cluster(1), log, seed)
    arms = []
    for count in counts:
        for seed, log in logs.items():
            for name, (start, more) in ways(count, period).items():
                own = any("optimizer" in each for each in more)
                job = merged(JOB, *([] if own else [adagrad()]), *more)
                # Under sync nothing is stale, so one worker computes it all the same.
                where = cluster(1 if name.startswith("sync") else count)
                slug = f"{count}-{name}".replace(", ", "_").replace(" ", "_")
                tags = {"workers": count, "way": name}
                arms.append(Arm(slug, job, where, log, seed, starts[seed, start], 1, tags))
    return arms


def main() -> None:
    study = Study("three_thousand", __doc__ or "", wide="every part by itself, and fewer workers")
    if study.quick:
        arms = [a for a in arms_of(study, [QUICK], 400_000, 4, 0.15) if a.tags["way"] != "async, power k=2"]
    else:
        arms = arms_of(study, [3000, 1000, 300, 100] if study.options.wide else [3000], 50_000_000, 10, 0.15)
        arms = [a for a in arms if study.options.wide or a.tags["way"] in FINALISTS]
    report(study, study.run(arms))


def last_days(result: Result, count: int) -> float:
    auc = result.auc()
    return statistics.mean(auc[day] for day in sorted(auc)[-count:])


def report(study: Study, results: list[Result]) -> None:
    days = results[0].arm.log.days  # type: ignore[union-attr]
    counts = sorted({r.arm.tags["workers"] for r in results}, reverse=True)
    best = {r.arm.seed: r.auc() for r in results if r.arm.tags["way"] == "sync 4096"}
    rows = []
    for count in counts:
        mine = [r for r in results if r.arm.tags["workers"] == count]
        for way in dict.fromkeys(r.arm.tags["way"] for r in mine):
            runs = [r for r in mine if r.arm.tags["way"] == way]
            told = [runs[0].end.get("diverged", "")]
            aucs = [r.auc() for r in runs]
            gaps = [
                a[days - 1] - best[r.arm.seed][days - 1] for r, a in zip(runs, aucs, strict=True) if r.arm.seed in best
            ]
            rises = [sum(a[d + 1] > a[d] for d in sorted(a)[:-1]) for a in aucs]
            stale = [r.days[-1]["staleness_mean"] or 0.0 for r in runs]
            rows.append(
                [str(count), way, mean_spread([a[2] for a in aucs]), mean_spread([a[days - 1] for a in aucs]),
                 mean_spread(gaps), f"{statistics.mean(rises):.1f} of {days - 2}", f"{statistics.mean(stale):,.0f}",
                 f"{statistics.mean(r.minutes for r in runs):.1f}", str(len(runs)), "diverged" if any(told) else ""]
            )  # fmt: skip
    head = ["workers", "way", "AUC, day 2", f"AUC, day {days - 1}", "− sync 4096", "days that rose", "staleness mean"]
    head += ["minutes", "seeds", ""]
    text = f"# From 100 to 3000 asynchronous workers\n\n    {study.command}\n\n{(__doc__ or '').strip()}\n\n"
    text += f"{results[0].arm.log.rows:,} rows in {days} days; ± half the range over seeds; "  # type: ignore[union-attr]
    text += f"{sum(r.minutes for r in results):.0f} minutes of one core.\n\n{table(head, rows)}"
    study.write("table.md", text)
    _plot(study, results, counts[0])


def _plot(study: Study, results: list[Result], most: int) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 5))
    left, right = axes(figure, 1, 2, 1), axes(figure, 1, 2, 2)
    for way, colour in zip(FINALISTS, [COLOURS[6], COLOURS[7], *COLOURS], strict=False):
        runs = [r for r in results if r.arm.tags == {"workers": most, "way": way}]
        if runs:
            days = sorted(set.intersection(*(set(r.auc()) for r in runs)))
            values = {d: [r.auc()[d] for r in runs] for d in days}
            left.plot(days, [statistics.mean(values[d]) for d in days], "o-", color=colour, label=way, markersize=3)
        counts = sorted({r.arm.tags["workers"] for r in results if r.arm.tags["way"] == way})
        ends = {c: [last_days(r, 1) for r in results if r.arm.tags == {"workers": c, "way": way}] for c in counts}
        if len(counts) > 1:
            right.plot(counts, [statistics.mean(ends[c]) for c in counts], "o-", color=colour, label=way, markersize=4)
            low, high = ([pick(ends[c]) for c in counts] for pick in (min, max))
            right.fill_between(counts, low, high, color=colour, alpha=0.15)
        elif runs and way == "sync 4096":
            right.axhline(statistics.mean(ends[most]), color=colour, linewidth=1, label=way)
    left.set_xlabel("day (evaluated before it is trained on)")
    left.set_ylabel("AUC")
    left.set_title(f"{most:,} workers, day by day", loc="left")
    left.legend(frameon=False, fontsize=8)
    right.set_xscale("log")
    right.set_xlabel("workers")
    right.set_ylabel("AUC of the last day")
    right.set_title("More workers", loc="left")
    study.figure("plot.png", figure)


if __name__ == "__main__":
    main()
