"""Several runs side by side: AUC over samples and over time, so that a person can choose a pace.

Runs are compared on the days that all of them evaluated; the first run is the baseline. Virtual time (in a simulated
cluster) and wall-clock time (where a run has no other) are different things: they share neither an axis nor a ratio.
"""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from paceline.errors import RunDirError
from paceline.report.exchanged import bytes_table
from paceline.rundir import METRICS, TRACE, read_metrics

CLOCKS = {"virtual": "time in the simulated cluster", "wall": "wall-clock time"}
# Columns of the table, the first to go where it is narrow first.
LEAST_TELLING = ("samples", "stale max", "mean AUC", "dropped", "samples/s", "idle", "stale mean", "pace", "ratio")


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A day, evaluated before it was trained on. samples_read: until then; seconds: of the run's clock until then."""

    day: int
    auc: float
    samples_read: int
    seconds: float
    switched: bool  # whether the pace changed between here and the next line


@dataclass(frozen=True, slots=True)
class Run:
    """What a run's metrics tell. clock: virtual | wall; seconds of that clock and samples in all; shares: 0 to 1."""

    name: str
    path: Path
    paces: tuple[str, ...]
    finished: bool
    clock: str
    seconds: float
    samples_read: int
    staleness_mean: float | None
    staleness_max: float | None
    idle_share: float | None
    dropped_share: float | None
    bytes_predicted: dict[str, float]  # that a worker sends for an update, by kind; empty where nothing is sent
    bytes_measured: dict[str, float]
    evaluations: tuple[Evaluation, ...]

    @property
    def by_day(self) -> dict[int, Evaluation]:
        return {e.day: e for e in self.evaluations}

    @property
    def rate(self) -> float | None:
        """Samples per second of its clock."""
        return self.samples_read / self.seconds if self.seconds > 0 else None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Runs in the order in which they were named; the first is the baseline. days: those that all runs evaluated."""

    runs: tuple[Run, ...]
    days: tuple[int, ...]

    @property
    def clocks(self) -> tuple[str, ...]:
        """The clocks in use, virtual first."""
        return tuple(clock for clock in CLOCKS if any(run.clock == clock for run in self.runs))

    def shown(self, run: Run) -> Evaluation:
        """What is compared: the last day in common or, if there is none, the run's own last day."""
        return run.by_day[self.days[-1]] if self.days else run.evaluations[-1]

    def differences(self, run: Run) -> list[float]:
        """AUC minus the baseline's, for each day in common."""
        return [run.by_day[day].auc - self.runs[0].by_day[day].auc for day in self.days]

    def difference(self, run: Run) -> float | None:
        """AUC minus the baseline's on the last day in common."""
        return self.differences(run)[-1] if self.days else None

    def mean(self, run: Run) -> float | None:
        """Mean AUC over the days in common, each counted once."""
        return sum(run.by_day[day].auc for day in self.days) / len(self.days) if self.days else None

    def ratio(self, run: Run) -> float | None:
        """Rate over the baseline's, if both are by the same clock."""
        base = self.runs[0]
        return run.rate / base.rate if run.rate and base.rate and run.clock == base.clock else None

    def notes(self) -> list[str]:
        """What a reader has to know besides the numbers."""
        found = []
        others = sorted({e.day for run in self.runs for e in run.evaluations} - set(self.days))
        if not self.days:
            found.append("No day was evaluated by all runs: each AUC is of the run's own last day, none is compared.")
        elif others:
            found.append(f"Compared on {_days(self.days)}; {_days(others)} left out: not evaluated by all runs.")
        if unfinished := ", ".join(run.name for run in self.runs if not run.finished):
            found.append(f"Unfinished: {unfinished}; samples and time are those of the last evaluation.")
        if len(self.clocks) > 1:
            found.append(
                "Time is virtual (in a simulated cluster); runs that have none show wall-clock time, marked (wall)."
                " The two cannot be compared: no ratio is given across them."
            )
        return found

    def to_json(self) -> dict[str, Any]:
        """Everything, in one object."""
        runs = []
        for run in self.runs:
            told = {"auc": self.shown(run).auc, "auc_day": self.shown(run).day, "auc_mean": self.mean(run)}
            told["auc_difference"] = self.difference(run)
            rates = {"samples_per_s": run.rate, "rate_ratio": self.ratio(run)}
            runs.append({**asdict(run), "path": _text(run.path), **told, **rates})
        return {"baseline": self.runs[0].name, "days": list(self.days), "runs": runs, "notes": self.notes()}


def compare_runs(paths: Sequence[Path]) -> Comparison:
    """Read the metrics of several runs. Raises RunDirError naming the directory that cannot be compared."""
    places: dict[str, Path] = {}
    for path in paths:
        place = os.path.realpath(path)
        if other := places.get(place):
            what = "named twice" if other == path else f"the same directory as {other}"
            raise RunDirError(f"{path}: {what}; name each run once")
        places[place] = path
    if len(paths) < 2:
        raise RunDirError(f"{', '.join(map(str, paths))}: nothing to compare with; name two run directories or more")
    runs = tuple(_read_run(path, name) for path, name in zip(paths, short_names(paths), strict=True))
    return Comparison(runs, tuple(sorted(set.intersection(*(set(run.by_day) for run in runs)))))


def short_names(paths: Sequence[Path]) -> list[str]:
    """For each path the shortest tail that no other path has: run-0, or b/run-0 if there is an a/run-0 too."""
    parts = [Path(os.path.abspath(path)).parts for path in paths]
    names = []
    for mine in parts:
        length = 1
        while length < len(mine) and sum(other[-length:] == mine[-length:] for other in parts) > 1:
            length += 1
        names.append(_text(Path(*mine[-length:])))
    return names


def _text(path: Path) -> str:
    """A path for people; bytes that are no UTF-8 cannot be printed."""
    return os.fsencode(path).decode("utf-8", "replace")


def _read_run(path: Path, name: str) -> Run:
    try:
        if not (path / METRICS).exists():
            what = f"not a run directory (no {METRICS} in it)" if path.exists() else "there is no such directory"
            raise RunDirError(f"{path}: {what}; name run directories, as `paceline train` writes them")
        lines = read_metrics(path)
    except (OSError, ValueError) as error:
        raise RunDirError(f"{path / METRICS}: cannot be read ({error}); put it right or leave this run out") from error
    shown = [line for line in lines if line.get("event") == "evaluation" and _finite(line.get("auc")) is not None]
    if any(line.get("ranking") for line in lines):
        raise RunDirError(f"{path}: its model ranks items, so there is no AUC to compare; its marks are in {METRICS}")
    if not shown:
        raise RunDirError(
            f"{path}: no evaluation in {METRICS}, so there is no AUC to compare. It has not come to its second day yet,"
            " has one day only, or was trained with `evaluate: none`; train two days or more with `evaluate: next_day`"
        )
    finished = lines[-1].get("event") == "end"
    told = [*shown, lines[-1]] if finished else shown
    last = told[-1]
    # One line without virtual time (from before a resume, say) makes a virtual axis impossible.
    virtual = all(_finite(line.get("virtual_seconds")) is not None for line in told)
    clock, key = ("virtual", "virtual_seconds") if virtual else ("wall", "seconds")
    if absent := [k for k in ("day", "samples_read", key) for line in told if _finite(line.get(k)) is None]:
        raise RunDirError(f"{path / METRICS}: a line has no number for {absent[0]!r}; mend it or leave this run out")
    paces = [str(line.get("pace", "?")) for line in told]
    evaluations = tuple(
        Evaluation(int(line["day"]), line["auc"], int(line["samples_read"]), float(line[key]), pace != following)
        for line, pace, following in zip(shown, paces, [*paces[1:], paces[-1]], strict=False)
    )
    paces = [pace for pace, _ in itertools.groupby([*_first_pace(path), *paces])]
    samples, dropped, count = int(last["samples_read"]), last.get("dropped_share"), _finite(last.get("samples_dropped"))
    if dropped is None and samples and count is not None:
        dropped = count / samples
    shares = (_finite(last.get("idle_share")), _finite(dropped))
    staleness = (_finite(last.get("staleness_mean")), _finite(last.get("staleness_max")))
    sent = (last.get("bytes_predicted") or {}, last.get("bytes_measured") or {})
    return Run(name, path, tuple(paces), finished, clock, last[key], samples, *staleness, *shares, *sent, evaluations)


def _first_pace(path: Path) -> list[str]:
    """The pace that the run began with: a switch before the first evaluation is in no line of the metrics."""
    try:
        with open(path / TRACE) as file:
            return [str(json.loads(file.readline().removeprefix("= "))["pace"]["name"])]
    except (OSError, ValueError, KeyError, TypeError):
        return []  # a nicety; there are the metrics


def _finite(value: Any) -> float | None:
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def _days(days: Sequence[int]) -> str:
    """'day 3', 'days 1–3' or, with gaps, 'days 1, 3'."""
    if len(days) == 1:
        return f"day {days[0]}"
    gaps = len(days) <= days[-1] - days[0]
    return f"days {', '.join(map(str, days))}" if gaps else f"days {days[0]}–{days[-1]}"


def print_comparison(console: Console, comparison: Comparison) -> None:
    """A row per run, then a row per day; where the terminal is narrow, the least telling columns are left out."""
    cut = (LEAST_TELLING[:count] for count in range(len(LEAST_TELLING) + 1))
    tables = [run_table(comparison, without, max(16, console.width // 5)) for without in cut]
    console.print(next((table for table in tables if _fits(console, table)), tables[-1]))
    for run in comparison.runs:
        if sent := bytes_table(run.bytes_predicted, run.bytes_measured, f" by {run.name}"):
            console.print(sent)
    if len(comparison.days) < 2:
        return
    names, fit = [run.name for run in comparison.runs], len(comparison.runs)
    if not _fits(console, day_table(comparison, names)):
        console.print(Text("\n".join(f"#{number} {name}" for number, name in enumerate(names, 1))))
        names = [f"#{number + 1}" for number in range(fit)]
        while fit > 1 and not _fits(console, day_table(comparison, names[:fit])):
            fit -= 1
    for start in range(0, len(names), fit):
        console.print(day_table(comparison, names[start : start + fit], start))


def _fits(console: Console, table: Table) -> bool:
    # Measured as if there were all the room in the world; or else no table is ever wider than the console.
    return console.measure(table, options=console.options.update(width=10_000)).maximum <= console.width


def _empty(title: str) -> Table:
    # Here and below, names go in as Text: brackets in a directory's name are no markup.
    table = Table(title=Text(title), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.caption_justify, table.caption_style = "left", ""
    return table


def run_table(comparison: Comparison, without: Sequence[str] = (), name_width: int | None = None) -> Table:
    """One row per run, without the columns named in `without` and those that no run has a value for."""
    runs, days, mixed = comparison.runs, comparison.days, len(comparison.clocks) > 1
    clock = "time, s" if mixed else f"{comparison.clocks[0]} s"
    columns = {
        "run": [run.name for run in runs],
        "pace": [" → ".join(run.paces) for run in runs],
        "AUC": [f"{comparison.shown(run).auc:.5f}" for run in runs],
        "difference": ["baseline", *(_number(comparison.difference(run), "+.5f") for run in runs[1:])],
        "mean AUC": [_number(comparison.mean(run) if len(days) > 1 else None, ".5f") for run in runs],
        "samples": [f"{run.samples_read:,}" for run in runs],
        clock: [f"{run.seconds:,.1f}" + (" (wall)" if mixed and run.clock == "wall" else "") for run in runs],
        "samples/s": [_number(run.rate, ",.0f") for run in runs],
        "ratio": [_number(comparison.ratio(run), ".2f", "×") for run in runs],
        "stale mean": [_number(run.staleness_mean, ".2f") for run in runs],
        "stale max": [_number(run.staleness_max, ",.0f") for run in runs],
        "idle": [_number(run.idle_share, ".1%") for run in runs],
        "dropped": [_number(run.dropped_share, ".2%") for run in runs],
    }
    chosen = {name: cells for name, cells in columns.items() if name not in without and set(cells) != {"–"}}
    title = f"AUC of day {days[-1]}" if days else "AUC of each run's last day"
    table = _empty(title + (f"; mean over {_days(days)}" if "mean AUC" in chosen else ""))
    table.add_column("run", overflow="fold", min_width=6, max_width=name_width)
    for name in list(chosen)[1:]:
        table.add_column(name, justify="left" if name == "pace" else "right", no_wrap=True)
    for row in zip(*chosen.values(), strict=True):
        table.add_row(*map(Text, row))
    table.caption = Text("\n".join(comparison.notes())) or None
    return table


def day_table(comparison: Comparison, names: Sequence[str], start: int = 0) -> Table:
    """AUC by day, also of days that only some runs have; `names` are headers for the runs from number `start` on."""
    table = _empty("AUC by day")
    for name in ("day", *names):
        table.add_column(Text(name), justify="right", no_wrap=True)
    aucs = [{e.day: e.auc for e in run.evaluations} for run in comparison.runs]
    for day in sorted(set().union(*aucs)):
        table.add_row(str(day), *(_number(of_day.get(day), ".5f") for of_day in aucs[start : start + len(names)]))
    return table


def _number(value: float | None, form: str, unit: str = "") -> str:
    return "–" if value is None else f"{value:{form}}{unit}".replace("-0.00000", "+0.00000")
