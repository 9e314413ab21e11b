"""The plot of a comparison: AUC over samples and over time, differences to the baseline."""

from __future__ import annotations

import io
import textwrap
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paceline.errors import ConfigError
from paceline.report.compare import CLOCKS, Comparison

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg", ".pdf")
DPI = 150
WIDTH = {2: 13.0, 3: 18.0}  # inches, by the number of panels side by side
TOP, STRIP, LINE = 4.6, 2.2, 0.23  # inches: the panels, the strip below them at least, a line of the legend
# Okabe and Ito's colours, told apart by colour-blind people too; grey for their yellow, which white paper swallows.
COLORS = ("#000000", "#E69F00", "#0072B2", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#8A8A8A")
MARKERS = "osD^vPX>"
LOOK: dict[str, Any] = {"markersize": 7.5, "markeredgecolor": "white", "markeredgewidth": 0.6}
RING: dict[str, Any] = {"linestyle": "none", "marker": "o", "markersize": 15, "fillstyle": "none", "mew": 1.6}


def draw(comparison: Comparison, out: Path) -> None:
    """Write the plot to `out`. Raises ConfigError for a kind of file that is not known or a place that cannot be."""
    kind = out.suffix.lower()
    if kind not in SUFFIXES:
        raise ConfigError(f"--out {out}: {kind or 'no suffix'} is no kind of picture; known: {', '.join(SUFFIXES)}")
    picture = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a letter of a run's name that the font lacks is drawn as a box
        figure(comparison).savefig(picture, format=kind[1:], dpi=DPI)
    try:
        out.write_bytes(picture.getvalue())
    except OSError as error:
        raise ConfigError(f"--out {out}: cannot be written ({error.strerror}); choose another place") from error


def figure(comparison: Comparison) -> Figure:
    """AUC over samples and over time (a panel per clock); below, differences to the baseline, and the legend."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.ticker import EngFormatter

    runs, clocks, days = comparison.runs, comparison.clocks, comparison.days
    labels = [run.name if (run.name,) == run.paces else f"{run.name}: {' → '.join(run.paces)}" for run in runs]
    labels[0] += " (baseline)"
    if len(clocks) > 1:
        labels = [label + " (wall)" * (run.clock == "wall") for label, run in zip(labels, runs, strict=True)]
    if any(e.switched for run in runs for e in run.evaluations):
        labels.append("the pace switched after this evaluation")
    labels = [textwrap.fill(label, 62, subsequent_indent="   ") for label in labels]
    strip = max(STRIP, LINE * sum(label.count("\n") + 1 for label in labels) + 0.4)
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12, wspace=0.01)
    drawn = Figure(figsize=(WIDTH[1 + len(clocks)], TOP + strip), layout=layout)
    FigureCanvasAgg(drawn)
    grid = drawn.add_gridspec(2, 1 + len(clocks), height_ratios=(TOP, strip))
    over_samples = drawn.add_subplot(grid[0, 0])
    over_time = {clock: drawn.add_subplot(grid[0, i], sharey=over_samples) for i, clock in enumerate(clocks, 1)}
    below, corner = drawn.add_subplot(grid[1, 0], sharex=over_samples), drawn.add_subplot(grid[1, 1:])
    units = {clock: _unit(max(run.seconds for run in runs if run.clock == clock)) for clock in clocks}
    for number, run in enumerate(runs):
        look = {
            **LOOK,
            "color": COLORS[number % len(COLORS)],
            "linestyle": ("-", "--", ":")[number // len(COLORS) % 3],
            "linewidth": 1.8 if number else 3.0,  # the baseline is drawn first: seen behind a curve that covers it
            "marker": MARKERS[number % len(MARKERS)],
        }
        aucs, marked = [e.auc for e in run.evaluations], [i for i, e in enumerate(run.evaluations) if e.switched]
        samples = [float(e.samples_read) for e in run.evaluations]
        times = [e.seconds / units[run.clock][0] for e in run.evaluations]
        for axes, x in ((over_samples, samples), (over_time[run.clock], times)):
            axes.plot(x, aucs, **look)
            axes.plot(x, aucs, color=look["color"], markevery=marked, **RING)
        below.plot([run.by_day[day].samples_read for day in days], comparison.differences(run), **look)
    _dress(over_samples, "AUC over samples", "samples read", [e.auc for run in runs for e in run.evaluations])
    over_samples.set_ylabel("AUC", fontsize=11)
    over_samples.xaxis.set_major_formatter(EngFormatter(sep=""))
    for clock, axes in over_time.items():
        _dress(axes, f"AUC over {CLOCKS[clock]}", f"{CLOCKS[clock]}, {units[clock][1]}")
        axes.tick_params(labelleft=False)
    differences = [value for run in runs for value in comparison.differences(run)]
    _dress(below, "AUC minus the baseline's of the same day", "samples read", differences or [0.0])
    handles = [*over_samples.get_lines()[::2], *corner.plot([], [], color="#555555", **RING)][: len(labels)]
    corner.axis("off")
    legend = corner.legend(handles, [""] * len(labels), loc="upper left", frameon=False, fontsize=10.5)
    legend.set_in_layout(False)
    for text, label in zip(legend.get_texts(), labels, strict=True):
        text.set_parse_math(False)  # a directory's name may hold $ or begin with _
        text.set_text(label)
    return drawn


def _dress(axes: Axes, title: str, xlabel: str, values: list[float] | None = None) -> None:
    """Limits, ticks and grid. values: what y has to show, with room around it; None if another panel decides."""
    axes.set_title(title, loc="left", fontsize=12.5, fontweight="bold", pad=9)
    axes.set_xlabel(xlabel, fontsize=11)
    axes.set_xlim(left=0.0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#E4E4E4", linewidth=0.8)
    axes.tick_params(labelsize=10, color="#888888")
    if values is not None:
        low, high = min(values), max(values)
        room = max(0.08 * (high - low), 1e-4)  # below 1e-4 there is only noise
        axes.set_ylim(low - room, high + room)
        axes.ticklabel_format(axis="y", style="plain", useOffset=False)


def _unit(seconds: float) -> tuple[float, str]:
    """(seconds in it, name) of the unit that suits a span of time."""
    return (3600.0, "hours") if seconds >= 7200 else (60.0, "minutes") if seconds >= 120 else (1.0, "seconds")
