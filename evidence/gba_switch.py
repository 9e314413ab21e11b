"""GBA, tuning-free: a job that trains in sync and is switched at a day boundary, no hyper-parameter touched.

Claim (GBA, NeurIPS 2022): the AUC of the following days stays that of sync, while the other asynchronous modes lose.
64 workers, 5 % of them 5 times slower; global batch 4096 = 16 local batches of 256; a log that drifts every day.
"""

from __future__ import annotations

import statistics
from typing import Any

from harness import COLOURS, FIELDS, MODEL, Arm, Log, Result, Study, axes, mean_spread, merged, table

from paceline.telemetry import distance

CLUSTER = {
    "workers": 64,
    "compute": {"fixed_ms": 20, "per_sample_us": 50, "speed_sigma": 0.1, "jitter_sigma": 0.1},
    "stragglers": {"share": 0.05, "factor": 5},
}
JOB: dict[str, Any] = {
    "model": MODEL,
    "optimizer": {
        "sparse": {"name": "adagrad", "lr": 0.05},
        "dense": {"name": "adagrad", "lr": 0.02, "initial_accumulator_value": 1e-6, "fused": True},
    },
    "batch": {"global": 4096, "local": 256},
    "pace": {"name": "sync"},
    "checkpoint": {"every": 10**12, "keep": 1},
}
PACES: dict[str, dict[str, Any]] = {
    "sync": {"name": "sync"},
    "gba": {"name": "gba"},
    "bulk_synchronous": {"name": "bulk_synchronous"},
    "backup_workers": {"name": "backup_workers", "backup": 4},
    "bounded_staleness": {"name": "bounded_staleness", "bound": 2},
    "async": {"name": "async"},
}


def main() -> None:
    study = Study("gba_switch", __doc__ or "")
    rows, days, at = (240_000, 6, 3) if study.quick else (21_000_000, 7, 3)
    arms = []
    for seed in study.seeds:
        log = Log(rows, days, seed)
        first = [str(log.folder() / f"day_{d}.parquet") for d in range(at)]
        start = Arm("warm", merged(JOB, {"data": {"days": first}}), CLUSTER, log, seed)
        switches: dict[str, list[dict[str, Any]]] = {
            **{name: [{"at": f"day_{at}", "pace": pace}] for name, pace in PACES.items()},
            "gba and back": [
                {"at": f"day_{at}", "pace": PACES["gba"]},
                {"at": f"day_{days - 2}", "pace": PACES["sync"]},
            ],
        }
        arms += [
            Arm(name.replace(" ", "_"), merged(JOB, {"switch": switch}), CLUSTER, log, seed, start, at)
            for name, switch in switches.items()
        ]
    results = study.run(arms)
    report(study, results, at, days)


def by_name(results: list[Result]) -> dict[str, list[Result]]:
    found: dict[str, list[Result]] = {}
    for result in results:
        found.setdefault(result.arm.name, []).append(result)
    return found


def report(study: Study, results: list[Result], at: int, days: int) -> None:
    runs = by_name(results)
    sync = {r.arm.seed: r.auc() for r in runs["sync"]}
    after = range(at + 1, days)
    rows = []
    for name, found in runs.items():
        differences = [
            mean_spread([r.auc()[day] - sync[r.arm.seed][day] for r in found if day in r.auc()]) for day in after
        ]
        ks = [
            distance(_norms(r, "update_norm", after), _norms(own, "update_norm", after))
            for r in found
            for own in runs["sync"]
            if own.arm.seed == r.arm.seed
        ]
        ends = [r.days[-1] for r in found]
        rows.append(
            [
                name.replace("_", " "),
                mean_spread([statistics.mean(r.auc()[day] for day in after if day in r.auc()) for r in found]),
                *differences,
                f"{max(abs(statistics.mean(r.auc()[d] - sync[r.arm.seed][d] for r in found)) for d in after):.5f}",
                f"{statistics.mean(e['staleness_mean'] for e in ends):.1f} / {max(e['staleness_max'] for e in ends)}",
                f"{statistics.mean(e['dropped_share'] for e in ends):.2%}",
                f"{statistics.mean(e['idle_share'] for e in ends):.1%}",
                f"{statistics.mean(ks):.3f}",
            ]
        )
    head = [
        "pace from day " + str(at),
        "mean AUC",
        *(f"day {d} − sync" for d in after),
        "largest mean difference, absolute",
    ]
    head += ["staleness mean / max", "dropped", "idle", "KS of update norms to sync"]
    minutes = sum(r.minutes for r in results)
    text = f"# GBA: a switch with no hyper-parameter touched\n\n    {study.command}\n\n{(__doc__ or '').strip()}\n\n"
    text += f"{FIELDS} fields, {results[0].arm.log.rows:,} rows in {days} days, {len(sync)} seed(s); "  # type: ignore[union-attr]
    text += f"± half the range over seeds; {minutes:.0f} minutes of one core.\n\n{table(head, rows)}"
    study.write("table.md", text)
    _plot(study, runs, sync, at, days)


def _norms(result: Result, key: str, days: Any) -> dict[str, Any]:
    """The norms of all days in `days`, added up."""
    from paceline.telemetry import Norms

    total = Norms()
    for day in result.days:
        if day["day"] in days:
            more = Norms.from_json(day[key])
            total.counts += more.counts
    return total.to_json()


def _plot(study: Study, runs: dict[str, list[Result]], sync: dict[int, dict[int, float]], at: int, days: int) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.6))
    left, right = axes(figure, 1, 2, 1), axes(figure, 1, 2, 2)
    for (name, found), colour in zip(runs.items(), COLOURS, strict=False):
        seen = sorted(set.intersection(*(set(r.auc()) for r in found)))
        values = {d: [r.auc()[d] - sync[r.arm.seed][d] for r in found] for d in seen}
        means = [statistics.mean(values[d]) for d in seen]
        left.plot(seen, means, "o-", color=colour, label=name.replace("_", " "), markersize=4)
        left.fill_between(
            seen, [min(values[d]) for d in seen], [max(values[d]) for d in seen], color=colour, alpha=0.15
        )
    left.axvline(at + 0.5, color="#888888", linestyle="--", linewidth=1)
    left.set_yscale("symlog", linthresh=0.001)
    left.set_xlabel(f"day (evaluated before it is trained on); the switch is at the start of day {at}")
    left.set_ylabel("AUC − AUC of staying in sync (linear within ±0.001)")
    left.legend(frameon=False, fontsize=9)
    left.set_title("Next-day AUC after the switch", loc="left")
    for name, colour in (("sync", COLOURS[0]), ("gba", COLOURS[1]), ("async", COLOURS[5])):
        if name in runs:
            told = _norms(runs[name][0], "update_norm", range(at + 1, days))
            edges = [10 ** (told["first"] + i / told["per_decade"]) for i in range(len(told["counts"]) + 1)]
            total = sum(told["counts"]) or 1
            right.stairs([c / total for c in told["counts"]], edges, color=colour, fill=True, alpha=0.35, label=name)
    right.set_xscale("log")
    right.set_xlabel("norm of the gradient that is applied")
    right.set_ylabel("share of updates")
    right.set_title("What the optimizer sees", loc="left")
    right.legend(frameon=False)
    study.figure("plot.png", figure)


if __name__ == "__main__":
    main()
