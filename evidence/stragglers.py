"""Speed under stragglers: samples per virtual second of GBA against sync on the same 64 workers.

Claim (GBA, NeurIPS 2022): at least 2.4 times sync's throughput where hardware is strained. Where it is even, sync
should not be slower: its collectives move less than pulls and pushes through servers do. The same job, global batch and
local batch on both sides; only stragglers differ: how much slower they are, and how many.
"""

from __future__ import annotations

import itertools
import statistics
from typing import Any

from harness import COLOURS, Arm, Log, Result, Study, axes, mean_spread, merged, table

JOB: dict[str, Any] = {
    # A dense part of usual size (1.5 MB): what travels is part of the claim.
    "model": {"name": "deepfm", "dim": 16, "hidden": [400, 400, 400]},
    "optimizer": {
        "sparse": {"name": "adagrad", "lr": 0.02},
        "dense": {"name": "adagrad", "lr": 0.01, "initial_accumulator_value": 1e-6, "fused": True},
    },
    "batch": {"global": 4096, "local": 64},
    "evaluate": "none",
    "checkpoint": {"every": 10**12, "keep": 1},
}
EVEN = {"fixed_ms": 20, "per_sample_us": 50, "speed_sigma": 0.0, "jitter_sigma": 0.0}
FACTORS = [1, 1.05, 1.1, 1.25, 1.5, 2, 3, 5, 8, 12]
SHARES = [0.02, 0.05, 0.1, 0.2, 0.4]


def cluster(factor: float, share: float, jitter: float) -> dict[str, Any]:
    return {
        "workers": 64,
        "compute": {**EVEN, "jitter_sigma": jitter},
        "stragglers": {"share": share, "factor": factor},
    }


def main() -> None:
    study = Study("stragglers", __doc__ or "")
    rounds = 6 if study.quick else 16
    points = [(f, 0.05, 0.0) for f in FACTORS] + [(f, 0.05, 0.2) for f in FACTORS]
    points += [(5, s, 0.0) for s in SHARES if s != 0.05]
    if study.quick:
        points = [(1, 0.05, 0.0), (5, 0.05, 0.0)]
    arms = []
    for seed in study.seeds:
        log = Log(4096 * rounds, 1, seed)
        for factor, share, jitter in points:
            for pace in ("sync", "gba"):
                name = f"{pace}-x{factor:g}-share{share:g}-jitter{jitter:g}"
                tags = {"pace": pace, "factor": factor, "share": share, "jitter": jitter}
                job = merged(JOB, {"pace": {"name": pace}})
                arms.append(Arm(name, job, cluster(factor, share, jitter), log, seed, tags=tags))
    report(study, study.run(arms))


def rates(results: list[Result]) -> dict[tuple[float, float, float], dict[str, list[float]]]:
    """(factor, share, jitter) -> pace -> samples per virtual second of each seed."""
    found: dict[tuple[float, float, float], dict[str, list[float]]] = {}
    for r in results:
        tags = r.arm.tags
        key = (tags["factor"], tags["share"], tags["jitter"])
        found.setdefault(key, {}).setdefault(tags["pace"], []).append(r.end["samples_per_virtual_s"])
    return found


def report(study: Study, results: list[Result]) -> None:
    found = rates(results)
    rows = []
    for (factor, share, jitter), by_pace in found.items():
        ratios = [g / s for g, s in zip(by_pace["gba"], by_pace["sync"], strict=True)]
        slow = f"{int(share * 64 + 1e-9)} of 64" if factor > 1 else "none"
        dropped = [r.end["dropped_share"] for r in results if _is(r, "gba", factor, share, jitter)]
        rows.append(
            [f"{factor:g}", slow, f"{jitter:g}", f"{statistics.mean(by_pace['sync']):,.0f}",
             f"{statistics.mean(by_pace['gba']):,.0f}", mean_spread(ratios, 2), f"{statistics.mean(dropped):.1%}"]
        )  # fmt: skip
    head = [
        "stragglers slower by",
        "stragglers",
        "jitter σ",
        "sync samples/s",
        "GBA samples/s",
        "GBA / sync",
        "GBA cut",
    ]
    text = (
        f"# Speed under stragglers\n\n    {study.command}\n\n{(__doc__ or '').strip()}\n\n{len(study.seeds)} seed(s), "
    )
    text += f"± half the range; {sum(r.minutes for r in results):.0f} minutes of one core.\n\n{table(head, rows)}\n"
    for jitter in (0.0, 0.2):
        text += crossing(found, jitter)
    study.write("table.md", text)
    _plot(study, found)


def _is(r: Result, pace: str, factor: float, share: float, jitter: float) -> bool:
    return r.arm.tags == {"pace": pace, "factor": factor, "share": share, "jitter": jitter}


def crossing(found: dict[tuple[float, float, float], dict[str, list[float]]], jitter: float) -> str:
    """Where GBA overtakes sync, by linear interpolation over the straggler factor."""
    points = sorted(
        (f, statistics.mean(v["gba"]) / statistics.mean(v["sync"]))
        for (f, s, j), v in found.items()
        if s == 0.05 and j == jitter
    )
    for (f0, r0), (f1, r1) in itertools.pairwise(points):
        if r0 < 1 <= r1:
            at = f0 + (1 - r0) / (r1 - r0) * (f1 - f0)
            return f"Jitter {jitter:g}: GBA overtakes sync when 5 % of the workers are {at:.2f} times slower.\n"
    return f"Jitter {jitter:g}: no crossing between the factors measured.\n" if points else ""


def _plot(study: Study, found: dict[tuple[float, float, float], dict[str, list[float]]]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.4))
    left, right = axes(figure, 1, 2, 1), axes(figure, 1, 2, 2)
    for jitter, colour in ((0.0, COLOURS[0]), (0.2, COLOURS[1])):
        points = [(f, v) for (f, s, j), v in found.items() if s == 0.05 and j == jitter]
        _line(left, points, colour, f"jitter σ {jitter:g}")
    left.set_xscale("log")
    left.set_xticks([1, 1.5, 2, 3, 5, 8, 12], ["1", "1.5", "2", "3", "5", "8", "12"])
    left.minorticks_off()
    left.set_xlabel("how many times slower the stragglers are (3 of 64 workers)")
    _line(right, [(100 * s, v) for (f, s, j), v in found.items() if f == 5 and j == 0.0], COLOURS[0], "jitter σ 0")
    right.set_xlabel("share of workers that are 5 times slower, %")
    for axis in (left, right):
        axis.axhline(1, color="#888888", linewidth=1)
        axis.axhline(2.4, color=COLOURS[2], linewidth=1, linestyle="--")
        place = (axis.get_xlim()[0], 2.4)
        axis.annotate("2.4 (the claim)", place, xytext=(4, 4), textcoords="offset points", fontsize=9)
        axis.set_ylabel("GBA's throughput / sync's")
    left.legend(frameon=False)
    left.set_title("Slower stragglers", loc="left")
    right.set_title("More stragglers", loc="left")
    study.figure("plot.png", figure)


def _line(axis: Any, points: list[tuple[float, dict[str, list[float]]]], colour: str, label: str) -> None:
    points = sorted(points, key=lambda point: point[0])
    ratios = [[g / s for g, s in zip(v["gba"], v["sync"], strict=True)] for _, v in points]
    xs = [x for x, _ in points]
    axis.plot(xs, [statistics.mean(r) for r in ratios], "o-", color=colour, label=label, markersize=4)
    axis.fill_between(xs, [min(r) for r in ratios], [max(r) for r in ratios], color=colour, alpha=0.2)


if __name__ == "__main__":
    main()
