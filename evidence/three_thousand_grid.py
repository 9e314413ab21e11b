"""What serves thousands of asynchronous workers: a wide grid on ten million rows, from which the finalists are chosen.

First the control: plain async at 100 to 3000 workers over learning rates (times the rates of sync). Then, at 3000
workers and with the rates of sync, the pace family: how many local batches make an update, which law weighs staleness,
of the gradient or of each row, on gradients or on steps, GBA's tokens, and Adagrad that knows what its gradients missed
(McMahan and Streeter, NIPS 2014). The log drifts as slowly per sample as that of the finalists
(evidence/three_thousand.py), and all arms go on from the same first day in sync.
"""

from __future__ import annotations

import statistics
from typing import Any

from harness import COLOURS, Arm, Log, Result, Study, axes, mean_spread, merged, table
from three_thousand import A0, DENSE_LR, JOB, LOCAL, SPARSE_LR, adagrad, cluster, sync

RATES = {100: (0.2, 0.5, 1.0), 300: (0.1, 0.2, 0.5), 1000: (0.05, 0.1, 0.2), 3000: (0.02, 0.05, 0.1, 0.2)}


def aggregated(name: str, gradients: int, **options: Any) -> dict[str, Any]:
    return {"pace": {"name": name, **options}, "batch": {"global": gradients * LOCAL}}


def weight(k: float, rows: str = "row", scales: str = "step", law: str = "power") -> dict[str, Any]:
    return {"weight": {"law": law, "k": k, "rows": rows, "scales": scales}}


def delay_aware(rate: float = 1.0) -> dict[str, Any]:
    common = {"name": "adagrad_delay", "initial": A0}
    return {"optimizer": {"sparse": {**common, "lr": SPARSE_LR * rate}, "dense": {**common, "lr": DENSE_LR * rate}}}


BULK = "bulk_synchronous"
FAMILY: dict[str, dict[str, Any]] = {
    "sync 4096": sync(32),
    "sync, same parallelism": sync(3000),
    "async, power k=2 on gradients": {"pace": {"name": "async", **weight(2, "gradient", "gradient")}},
    "async, power k=2 of rows on steps": {"pace": {"name": "async", **weight(2)}},
    "32 a step, no weight": aggregated(BULK, 32),
    "32 a step, k=4 of rows on steps": aggregated(BULK, 32, **weight(4)),
    "256 a step, no weight": aggregated(BULK, 256),
    "256 a step, k=2 on gradients": aggregated(BULK, 256, **weight(2, "gradient", "gradient")),
    "256 a step, k=2 of rows on steps": aggregated(BULK, 256, **weight(2)),
    "256 a step, k=4 of rows on steps": aggregated(BULK, 256, **weight(4)),
    "256 a step, k=4 of gradients on steps": aggregated(BULK, 256, **weight(4, "gradient")),
    "256 a step, log 2 of rows on steps": aggregated(BULK, 256, **weight(2, law="log")),
    "1024 a step, k=2 of rows on steps": aggregated(BULK, 1024, **weight(2)),
    "GBA 256, data tokens": aggregated("gba", 256),
    "GBA 256, version tokens, limit 20": aggregated("gba", 256, tokens="version", max_staleness=20),
    "async, delay-aware": {"pace": {"name": "async"}, **delay_aware()},
    "async, delay-aware, 0.3 of the rates": {"pace": {"name": "async"}, **delay_aware(0.3)},
    "256 a step, delay-aware": {**aggregated(BULK, 256), **delay_aware()},
}


def main() -> None:
    study = Study("three_thousand_grid", __doc__ or "")
    rows, days, drift = (300_000, 3, 0.03) if study.quick else (10_000_000, 10, 0.03)
    arms = []
    for seed in study.seeds:
        log = Log(rows, days, seed, drift)
        first = {"data": {"days": [str(log.folder() / "day_0.parquet")]}}
        plain = Arm("warm", merged(JOB, adagrad(), sync(32), first), cluster(1), log, seed)
        # In sync nothing is missed: the same first day, with the sums that these arms go on with.
        aware = Arm("warm_delay", merged(JOB, delay_aware(), sync(32), first), cluster(1), log, seed)

        def arm(
            name: str, count: int, *more: dict[str, Any], starts: tuple[Arm, Arm] = (plain, aware), **tags: Any
        ) -> Arm:
            slug = name.replace(", ", "_").replace(" ", "_").replace("=", "")
            where = cluster(1 if name.startswith("sync") else count)
            own = any("optimizer" in each for each in more)
            job = merged(JOB, *([] if own else [adagrad()]), *more)
            start = starts["delay-aware" in name]
            return Arm(f"{count}-{slug}", job, where, start.log, start.seed, start, 1, {"way": name, **tags})

        for workers, rates in RATES.items() if not study.quick else [(100, (0.5,))]:
            arms += [
                arm(f"plain x{rate:g}", workers, {"pace": {"name": "async"}}, adagrad(rate), workers=workers, rate=rate)
                for rate in rates
            ]
        family = FAMILY if not study.quick else dict(list(FAMILY.items())[-3:])
        arms += [arm(name, 3000 if not study.quick else 100, more, family=True) for name, more in family.items()]
    report(study, study.run(arms), days)


def final(results: list[Result], days: int) -> list[float]:
    """Mean AUC of the last two days, for each seed."""
    return [statistics.mean(r.auc()[d] for d in (days - 2, days - 1)) for r in results]


def report(study: Study, results: list[Result], days: int) -> None:
    text = f"# A wide grid for thousands of workers\n\n    {study.command}\n\n{(__doc__ or '').strip()}\n\n"
    text += f"{results[0].arm.log.rows:,} rows; AUC is the mean of the last two days; "  # type: ignore[union-attr]
    minutes = sum(r.minutes for r in results)
    text += f"± half the range over {len(study.seeds)} seed(s); {minutes:.0f} minutes of one core.\n\n"
    plain = [r for r in results if "rate" in r.arm.tags]
    rows = []
    for workers in sorted({r.arm.tags["workers"] for r in plain}):
        for rate in sorted({r.arm.tags["rate"] for r in plain if r.arm.tags["workers"] == workers}):
            runs = [r for r in plain if (r.arm.tags["workers"], r.arm.tags["rate"]) == (workers, rate)]
            rows.append([str(workers), f"{rate:g}", mean_spread(final(runs, days))])
    text += "Plain async at its own learning rate:\n\n" + table(["workers", "times the rates of sync", "AUC"], rows)
    rows = []
    for name in dict.fromkeys(r.arm.tags["way"] for r in results if "family" in r.arm.tags):
        runs = [r for r in results if r.arm.tags["way"] == name and "family" in r.arm.tags]
        low = [min(r.auc().values()) for r in runs]
        stale = statistics.mean(r.days[-1]["staleness_mean"] or 0.0 for r in runs)
        dropped = statistics.mean(r.end["dropped_share"] for r in runs)
        rows.append([name, mean_spread(final(runs, days)), mean_spread(low), f"{stale:,.1f}", f"{dropped:.1%}"])
    head = ["3000 workers, rates of sync", "AUC", "worst day", "staleness mean", "dropped"]
    text += "\nThe pace family:\n\n" + table(head, sorted(rows, key=lambda row: row[1], reverse=True))
    study.write("table.md", text)
    _plot(study, results, days)


def _plot(study: Study, results: list[Result], days: int) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 5.2))
    left, right = axes(figure, 1, 2, 1), axes(figure, 1, 2, 2)
    plain = [r for r in results if "rate" in r.arm.tags]
    for workers, colour in zip(sorted({r.arm.tags["workers"] for r in plain}), COLOURS, strict=False):
        rates = sorted({r.arm.tags["rate"] for r in plain if r.arm.tags["workers"] == workers})
        at = [
            final([r for r in plain if (r.arm.tags["workers"], r.arm.tags["rate"]) == (workers, x)], days)
            for x in rates
        ]
        left.plot(rates, [statistics.mean(values) for values in at], "o-", color=colour, label=f"{workers} workers")
        left.fill_between(rates, [min(v) for v in at], [max(v) for v in at], color=colour, alpha=0.15)
    left.set_xscale("log")
    left.set_xlabel("learning rates, times those of sync")
    left.set_ylabel("AUC, mean of the last two days")
    left.set_title("Plain async needs its own learning rate", loc="left")
    left.legend(frameon=False)
    names = list(dict.fromkeys(r.arm.tags["way"] for r in results if "family" in r.arm.tags))
    found = {n: final([r for r in results if r.arm.tags["way"] == n and "family" in r.arm.tags], days) for n in names}
    names.sort(key=lambda n: statistics.mean(found[n]))
    right.barh(names, [statistics.mean(found[n]) for n in names], color=COLOURS[0], alpha=0.8)
    low = min(statistics.mean(v) for v in found.values())
    right.set_xlim(low - 0.005, max(max(v) for v in found.values()) + 0.001)
    right.tick_params(axis="y", labelsize=8)
    right.set_title("3000 workers with the rates of sync", loc="left")
    right.set_xlabel("AUC, mean of the last two days")
    figure.tight_layout()
    study.figure("plot.png", figure)


if __name__ == "__main__":
    main()
