"""SWAP: over many drifting days Adagrad stalls and Adagrad-SWAP does not.

Claim (Liu and Zhao, AAAI 2021): accumulated squares dwarf every new gradient, so an adaptive optimizer grinds to a halt
in long training; discounting them once per sampling period keeps it moving. Rows and dense parameters alike, the same
learning rate and the same first accumulator for all; one period is a quarter of a day's samples.
"""

from __future__ import annotations

import statistics
from typing import Any

from harness import COLOURS, MODEL, Arm, Log, Result, Study, axes, mean_spread, merged, table

RATE = 0.05
CONTROLS = (0.1, 0.2)  # does Adagrad only want a higher learning rate?
DECAYS = (0.5, 0.8, 0.9, 0.95)
JOB: dict[str, Any] = {
    "model": MODEL,
    "batch": {"global": 1024, "local": 1024},
    "pace": {"name": "sync"},
    "checkpoint": {"every": 10**12, "keep": 1},
}
A0 = 1e-6


def optimizer(rate: float, decay: float | None, period: int) -> dict[str, Any]:
    if decay is None:
        return {
            "sparse": {"name": "adagrad", "lr": rate, "initial": A0, "eps": 0.0},
            "dense": {"name": "adagrad", "lr": rate, "initial_accumulator_value": A0, "eps": 0.0, "fused": True},
        }
    swap = {"name": "adagrad_swap", "lr": rate, "initial": A0, "decay": decay, "period": period}
    return {"sparse": swap, "dense": swap}


def main() -> None:
    study = Study("swap", __doc__ or "")
    days, rows = (6, 20_000) if study.quick else (40, 250_000)
    arms = []
    for seed in study.seeds:
        kinds: list[tuple[float, float | None]] = [(RATE, None), *((RATE, decay) for decay in DECAYS)]
        for rate, decay in [*kinds, *((rate, None) for rate in CONTROLS)]:
            name = f"adagrad-lr{rate:g}" if decay is None else f"swap{decay:g}-lr{rate:g}"
            job = merged(JOB, {"optimizer": optimizer(rate, decay, rows // 4)})
            tags = {"decay": decay, "rate": rate}
            cluster = {"workers": 1, "compute": {"fixed_ms": 20}}
            arms.append(Arm(name, job, cluster, Log(days * rows, days, seed, vocabulary=100_000), seed, tags=tags))
    report(study, study.run(arms), days)


def mean_auc(result: Result, days: range) -> float:
    auc = result.auc()
    return statistics.mean(auc[d] for d in days)


def report(study: Study, results: list[Result], days: int) -> None:
    thirds = [range(1, days // 3), range(days // 3, 2 * days // 3), range(2 * days // 3, days)]
    names = list(dict.fromkeys(r.arm.name for r in results))
    plain = {r.arm.seed: r for r in results if r.arm.tags == {"decay": None, "rate": RATE}}
    rows = []
    for name in names:
        runs = [r for r in results if r.arm.name == name]
        tags = runs[0].arm.tags
        gains = [mean_auc(r, thirds[2]) - mean_auc(plain[r.arm.seed], thirds[2]) for r in runs]
        rows.append(
            ["Adagrad" if tags["decay"] is None else f"Adagrad-SWAP, decay {tags['decay']:g}", f"{tags['rate']:g}"]
            + [mean_spread([mean_auc(r, third) for r in runs]) for third in thirds]
            + ["" if tags == {"decay": None, "rate": RATE} else mean_spread(gains)]
        )
    head = [
        "optimizer",
        "lr",
        *(f"mean next-day AUC, days {t[0]}–{t[-1]}" for t in thirds),
        f"last third − Adagrad at {RATE:g}",
    ]
    text = f"# SWAP over {days} drifting days\n\n    {study.command}\n\n{(__doc__ or '').strip()}\n\n"
    text += f"{results[0].arm.log.rows // days:,} rows a day, {len(study.seeds)} seed(s), ± half the range; "  # type: ignore[union-attr]
    text += f"{sum(r.minutes for r in results):.0f} minutes of one core.\n\n{table(head, rows)}"
    study.write("table.md", text)
    _plot(study, results, plain)


def _plot(study: Study, results: list[Result], plain: dict[int, Result]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.8))
    axis = axes(figure, 1, 1, 1)
    kinds = [(f"decay {decay:g}", {"decay": decay, "rate": RATE}) for decay in DECAYS]
    kinds += [(f"Adagrad, learning rate {rate:g}", {"decay": None, "rate": rate}) for rate in CONTROLS]
    for (label, tags), colour in zip(kinds, COLOURS[1:], strict=False):
        runs = [r for r in results if r.arm.tags == tags]
        if not runs:
            continue
        days = sorted(runs[0].auc())
        gains = {d: [r.auc()[d] - plain[r.arm.seed].auc()[d] for r in runs] for d in days}
        style = "-" if tags["decay"] is not None else ":"
        axis.plot(days, [statistics.mean(gains[d]) for d in days], style, color=colour, label=label)
        if tags["decay"] is not None:
            low, high = ([pick(gains[d]) for d in days] for pick in (min, max))
            axis.fill_between(days, low, high, color=colour, alpha=0.12)
    axis.axhline(0, color=COLOURS[0], linewidth=1.5, label=f"Adagrad, learning rate {RATE:g}")
    axis.set_xlabel("day (evaluated before it is trained on)")
    axis.set_ylabel("next-day AUC − Adagrad's")
    axis.set_title(f"Adagrad-SWAP (learning rate {RATE:g}) against Adagrad", loc="left")
    axis.legend(frameon=False, fontsize=9)
    study.figure("plot.png", figure)


if __name__ == "__main__":
    main()
