"""A pace that switches by itself, on a cluster that is even at one time and strained at another.

16 workers behind one parameter server that they all but fill: while nobody is slow, sync, whose collectives do without
it, is the faster pace by a fifth. Each worker is 5 times slower for 30 seconds on average, and well for 800, so about
half of the time somebody is slow; then GBA is the faster one. `pace: auto` chooses between sync, which it prefers, and
GBA. Beside it: sync and GBA for all the time, and a
perfect switcher, who knows at every moment which of the two is faster and changes at no cost: in every second the
larger of what the two runs reached in that second (the slow spells are the same for all). Wanted: at least 95 % of the
perfect switcher's throughput, AUC within 0.001 of sync.
"""

from __future__ import annotations

import statistics
from typing import Any

from harness import COLOURS, MODEL, Arm, Log, Result, Study, axes, mean_spread, merged, table

JOB: dict[str, Any] = {
    "model": MODEL,
    "optimizer": {
        "sparse": {"name": "adagrad", "lr": 0.02},
        "dense": {"name": "adagrad", "lr": 0.01, "initial_accumulator_value": 1e-6, "fused": True},
    },
    "batch": {"global": 1024, "local": 64},
    "checkpoint": {"every": 10**12, "keep": 1},
}
CLUSTER: dict[str, Any] = {
    "workers": 16,
    "compute": {"fixed_ms": 20, "per_sample_us": 50, "speed_sigma": 0.02, "jitter_sigma": 0.02},
    "stragglers": {"kind": "bursts", "factor": 5, "slow_s": 30, "fast_s": 800},
    "servers": {"count": 1, "ms_per_mb": 40},
}
NEVER = 10.0  # a margin that no candidate reaches: one pace for all the time, with the autopilot's clock in the trace
ARMS = {
    "auto": {"name": "auto", "candidates": ["sync", "gba"]},
    "sync": {"name": "auto", "candidates": ["sync", "gba"], "margin": NEVER},
    "gba": {"name": "auto", "candidates": ["gba", "sync"], "margin": NEVER},
}


def main() -> None:
    study = Study("autopilot", __doc__ or "")
    rows, days = (600_000, 4) if study.quick else (12_000_000, 8)
    arms = []
    for seed in study.seeds:
        log = Log(rows, days, seed, drift=0.05)
        for name, pace in ARMS.items():
            arms.append(Arm(name, merged(JOB, {"pace": pace}), CLUSTER, log, seed, tags={"curve": 1.0}))
    report(study, study.run(arms))


def perfect(sync: list[float], gba: list[float], target: float) -> tuple[float, list[float]]:
    """(seconds that the perfect switcher needs to apply `target` samples, samples after each second)."""
    total, reached = 0.0, []
    steps = [[b - a for a, b in zip([0.0, *curve], curve, strict=False)] for curve in (sync, gba)]
    for second in range(max(map(len, steps))):
        here = [each[second] for each in steps if second < len(each)]
        if total + max(here) >= target:
            return second + (target - total) / max(here), [*reached, target]
        total += max(here)
        reached.append(total)
    raise AssertionError("the larger of two curves reaches what the smaller one does")


def report(study: Study, results: list[Result]) -> None:
    runs = {(r.arm.name, r.arm.seed): r for r in results}
    seeds = sorted({seed for name, seed in runs if all((arm, seed) in runs for arm in ARMS)})
    rows_of = results[0].arm.log.rows  # type: ignore[union-attr]
    best = {}
    for s in seeds:
        curves = runs["sync", s].curve, runs["gba", s].curve
        target = min(curve[-1] for curve in curves)
        seconds, reached = perfect(*curves, target)
        best[s] = target / seconds, reached
    rows = []
    for name in ARMS:
        mine = [runs[name, s] for s in seeds]
        rates = [r.end["samples_applied"] / r.end["virtual_seconds"] for r in mine]
        shares = [rate / best[s][0] for rate, s in zip(rates, seeds, strict=True)]
        gaps = [_mean_auc(r) - _mean_auc(runs["sync", s]) for r, s in zip(mine, seeds, strict=True)]
        switches = [len(r.decisions) for r in mine]
        dropped = statistics.mean(r.end["dropped_share"] for r in mine)
        rows.append([name, mean_spread(rates, 0), mean_spread(shares, 3), mean_spread(gaps),
                     mean_spread([float(x) for x in switches], 1), f"{dropped:.2%}"])  # fmt: skip
    rows.append(["perfect switcher", mean_spread([best[s][0] for s in seeds], 0), "1", "", "", ""])
    head = ["pace", "samples per virtual second", "of the perfect switcher's", "AUC − sync's", "switches", "dropped"]
    text = f"# The autopilot\n\n    {study.command}\n\n{(__doc__ or '').strip()}\n\n{rows_of:,} rows, {len(seeds)} "
    text += "seed(s), ± half the range; AUC: mean of the second half of the days; "
    text += f"{sum(r.minutes for r in results):.0f} minutes of one core.\n\n{table(head, rows)}"
    study.write("table.md", text)
    if seeds:
        _plot(study, {name: runs[name, seeds[0]] for name in ARMS}, best[seeds[0]][1])


def _mean_auc(result: Result) -> float:
    auc = result.auc()
    return statistics.mean(auc[day] for day in sorted(auc)[len(auc) // 2 :])


def _plot(study: Study, runs: dict[str, Result], best: list[float]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6.4))
    above, below = axes(figure, 2, 1, 1), axes(figure, 2, 1, 2)
    curves = {**{name: run.curve for name, run in runs.items()}, "perfect switcher": best}
    width = 10
    for (name, curve), colour in zip(curves.items(), COLOURS, strict=False):
        style = {
            "color": colour,
            "label": name,
            "linewidth": 1.6,
            "linestyle": "-" if name in runs else "--",
        }
        above.plot(range(len(curve)), [value / 1e6 for value in curve], **style)
        rates = [(curve[t] - curve[t - width]) / width / 1e3 for t in range(width, len(curve), width)]
        below.step([width * (k + 1) for k in range(len(rates))], rates, where="pre", **style)
    for line in runs["auto"].decisions:
        at = next((t for t, value in enumerate(runs["auto"].curve) if value >= line["samples_read"]), 0)
        below.axvline(at, color="#999999", linewidth=0.7)
    above.set_ylabel("million samples")
    above.set_title("Samples applied; one seed", loc="left")
    above.legend(frameon=False)
    below.set_ylabel("thousand samples per second")
    below.set_xlabel("virtual seconds (grey lines: the autopilot switches)")
    study.figure("plot.png", figure)


if __name__ == "__main__":
    main()
