"""The same switch on real clicks: the Criteo sample, seven days of 19,600 rows each.

Trained in sync for three days, then at another pace, no hyper-parameter touched (those of examples/criteo/job.yaml).
16 workers, one of them 5 times slower; global batch 256 = 4 local batches of 64. The sample is small: the seeds' spread
of the difference to sync says what it can tell apart. Needs the data (PACELINE_DATA).
"""

from __future__ import annotations

import statistics
import sys
from typing import Any

from gba_switch import PACES, by_name
from harness import COLOURS, DATA, Arm, Result, Study, axes, mean_spread, merged, table

CLUSTER = {
    "workers": 16,
    "compute": {"fixed_ms": 20, "per_sample_us": 50, "speed_sigma": 0.1, "jitter_sigma": 0.1},
    "stragglers": {"share": 0.0625, "factor": 5},
}
DAYS, AT = 7, 3


def job(days: list[str]) -> dict[str, Any]:
    return {
        "data": {"format": "criteo", "days": days},
        "model": {"name": "deepfm", "dim": 16, "hidden": [256, 128]},
        "optimizer": {"sparse": {"name": "adagrad", "lr": 0.01}, "dense": {"name": "adam", "lr": 0.001, "fused": True}},
        "batch": {"global": 256, "local": 64},
        "pace": {"name": "sync"},
        "checkpoint": {"every": 10**12, "keep": 1},
    }


def main() -> None:
    study = Study("gba_criteo", __doc__ or "")
    files = [str(DATA / "criteo" / f"day_{day}.tsv.gz") for day in range(DAYS)]
    if not (DATA / "criteo").exists():
        sys.exit(f"gba_criteo: no Criteo sample in {DATA}; set PACELINE_DATA to the folder that holds criteo/")
    days, at = (4, 2) if study.quick else (DAYS, AT)
    paces = {"sync": PACES["sync"], "gba": PACES["gba"]} if study.quick else PACES
    arms = []
    for seed in range(len(study.seeds) if study.quick or study.options.seeds else 5):
        start = Arm("warm", job(files[:at]), CLUSTER, None, seed)
        for name, pace in paces.items():
            changed = merged(job(files[:days]), {"switch": [{"at": f"day_{at}", "pace": pace}]})
            arms.append(Arm(name, changed, CLUSTER, None, seed, start, at))
    report(study, study.run(arms), at, days)


def report(study: Study, results: list[Result], at: int, days: int) -> None:
    runs = by_name(results)
    sync = {r.arm.seed: r.auc() for r in runs["sync"]}
    after = range(at + 1, days)
    rows = []
    for name, found in runs.items():
        gaps = [statistics.mean(r.auc()[d] - sync[r.arm.seed][d] for d in after) for r in found]
        error = statistics.stdev(gaps) / len(gaps) ** 0.5 if len(gaps) > 1 else float("nan")
        mean = mean_spread([statistics.mean(r.auc()[d] for d in after) for r in found])
        dropped = statistics.mean(r.days[-1]["dropped_share"] for r in found)
        rows.append([name.replace("_", " "), mean, mean_spread(gaps), f"{error:.5f}", f"{dropped:.2%}"])
    head = [f"pace from day {at}", f"mean AUC, days {at + 1}–{days - 1}", "− sync", "standard error", "dropped"]
    text = (
        f"# The switch on the Criteo sample\n\n    {study.command}\n\n{(__doc__ or '').strip()}\n\n{len(sync)} seeds, "
    )
    text += f"± half the range; {sum(r.minutes for r in results):.0f} minutes of one core.\n\n{table(head, rows)}"
    study.write("table.md", text)
    _plot(study, runs, sync, days)


def _plot(study: Study, runs: dict[str, list[Result]], sync: dict[int, dict[int, float]], days: int) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.6))
    axis = axes(figure, 1, 1, 1)
    for (name, found), colour in zip(runs.items(), COLOURS, strict=False):
        values = {d: [r.auc()[d] - sync[r.arm.seed][d] for r in found] for d in range(1, days)}
        axis.plot(
            list(values), [statistics.mean(v) for v in values.values()], "o-", color=colour, label=name, markersize=4
        )
        low, high = ([pick(v) for v in values.values()] for pick in (min, max))
        axis.fill_between(list(values), low, high, color=colour, alpha=0.12)
    axis.set_xlabel("day (evaluated before it is trained on)")
    axis.set_ylabel("AUC − AUC of staying in sync")
    axis.set_title("Criteo sample: next-day AUC after the switch", loc="left")
    axis.legend(frameon=False, fontsize=9)
    study.figure("plot.png", figure)


if __name__ == "__main__":
    main()
