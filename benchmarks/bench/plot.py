"""Bars of samples per second, a panel for each case."""

from __future__ import annotations

import math
from pathlib import Path

from benchmarks.bench.report import Measured

COLORS = {"ours": "#0072B2", "peer": "#8A8A8A", "limit": "#FFFFFF"}


def draw(results: list[Measured], out: Path) -> None:
    """Write the plot to `out`. The line of a bar reaches from the slowest round to the fastest."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    columns = min(3, len(results))
    lines = math.ceil(len(results) / columns)
    figure = Figure(figsize=(6.4 * columns, 3.4 * lines), layout="constrained")
    FigureCanvasAgg(figure)
    for number, found in enumerate(results):
        axes = figure.add_subplot(lines, columns, number + 1)
        systems = found.systems
        medians = [found.median(system.name) for system in systems]
        low = [m - min(found.rates[s.name]) for s, m in zip(systems, medians, strict=True)]
        high = [max(found.rates[s.name]) - m for s, m in zip(systems, medians, strict=True)]
        axes.barh(
            range(len(systems)),
            medians,
            xerr=[low, high],
            color=[COLORS[system.role] for system in systems],
            edgecolor="black",
            linewidth=0.6,
            error_kw={"linewidth": 1.0, "capsize": 2},
        )
        axes.set_yticks(range(len(systems)), [system.name for system in systems], fontsize=8)
        axes.invert_yaxis()
        axes.set_title(found.case.title, fontsize=9)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.set_xlabel("samples per second", fontsize=8)
        axes.tick_params(axis="x", labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(out, dpi=130)
