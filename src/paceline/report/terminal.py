"""What a person sees: a live progress line, then one table."""

from __future__ import annotations

import sys
import time
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from paceline.report.exchanged import bytes_table
from paceline.report.ranked import ranking_table, ranking_text


def console_here() -> Console:
    """The terminal, or wide lines where there is none: a table in a file is not cut."""
    return Console() if sys.stdout.isatty() else Console(width=120)


class Terminal:
    """Shows a run on the terminal: a line per evaluation, and a progress line under them. Use as a context manager."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._live: Live | None = None
        self._day, self._days = 0, 1
        self._mark: tuple[float, int] | None = None
        self._rate = 0.0
        self._started = time.monotonic()
        self._first = self._length = 0

    def __enter__(self) -> Terminal:
        if self.console.is_terminal:
            self._live = Live(Text(), console=self.console, refresh_per_second=8, transient=True)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def day(self, day: int, days: int) -> None:
        """Training goes on with `day` of `days`."""
        if self._mark is not None:
            self._length = self._mark[1] - self._first
        self._day, self._days, self._mark = day, days, None

    def tick(self, status: dict[str, Any]) -> None:
        """Draw the progress line. status: rows, loss, staleness, dropped, virtual_seconds (None in real time)."""
        if self._live is None:
            return
        now, rows = time.monotonic(), status["rows"]
        if self._mark is None:
            self._mark, self._first = (now, rows), rows
        elif now - self._mark[0] > 0.5:
            self._rate = (rows - self._mark[1]) / (now - self._mark[0])
            self._mark = (now, rows)
        # How long a day is is not known before it is read; the day before is a good guess.
        part = min((rows - self._first) / self._length, 0.99) if self._length else 0.0
        done = round(12 * (self._day + part) / self._days)
        loss = "  –   " if status["loss"] != status["loss"] else f"{status['loss']:.4f}"
        text = Text.assemble(
            ("━" * done, "cyan"),
            ("─" * (12 - done), "dim"),
            f" day {self._day} (of 0–{self._days - 1})",
            (f" {rows:,} rows", "bold"),
            f" {self._clocks(status['virtual_seconds'], now)}{self._rate:,.0f}/s loss {loss}",
            f" staleness {max(status['staleness'], 0.0):.1f}",
            f" dropped {status['dropped']:,}" if status["dropped"] else "",
        )
        text.no_wrap = True
        self._live.update(text)

    def _clocks(self, virtual: float | None, now: float) -> str:
        """Virtual and real time, where they differ."""
        return "" if virtual is None else f"virtual {_span(virtual)} in {_span(now - self._started)} "

    def line(self, line: dict[str, Any]) -> None:
        """An evaluation, or the end."""
        if line["event"] == "evaluation" and line.get("ranking"):
            self.console.print(ranking_text(line), highlight=False)
        elif line["event"] == "evaluation":
            gauc = "" if line["gauc"] is None else f"  GAUC {_number(line['gauc'])}"
            self.console.print(
                f"day {line['day']}: AUC {_number(line['auc'])}{gauc}  log loss {_number(line['logloss'])}"
                f"  after {line['samples_read']:,} samples  {line['pace']}",
                highlight=False,
            )

    def note(self, text: str) -> None:
        """Something worth a line."""
        self.console.print(text, highlight=False)

    def summary(self, lines: list[dict[str, Any]], best: dict[int, float] | None = None) -> None:
        """The table of a run's metrics lines. best: the best possible AUC of each day, where it is known."""
        print_evaluations(self.console, lines, best)
        if lines and lines[-1]["event"] == "end":
            if sent := bytes_table(lines[-1].get("bytes_predicted") or {}, lines[-1].get("bytes_measured") or {}):
                self.console.print(sent)
            self.console.print(account_text(lines[-1]), highlight=False)


def print_evaluations(console: Console, lines: list[dict[str, Any]], best: dict[int, float] | None = None) -> None:
    """One row per evaluation; where the terminal is narrow, the least telling columns are left out."""
    if not any(line["event"] == "evaluation" for line in lines):
        if lines and "ranking" in lines[-1]:
            console.print("nothing was ranked: there is neither interactions.holdout nor interactions.test")
        else:
            console.print("nothing was evaluated: a day is a test set for what was trained before it")
        return
    if any(line.get("ranking") for line in lines):
        console.print(ranking_table(lines))
        return
    for without in (
        (),
        ("calib.",),
        ("calib.", "NE"),
        ("calib.", "NE", "samples/s"),
        ("calib.", "NE", "samples/s", "pace"),
    ):
        table = evaluation_table(lines, best, without)
        # Measured as if there were room: within the console's own width, nothing is ever too wide.
        if console.measure(table, options=console.options.update(width=10_000)).maximum <= console.width:
            break
    console.print(table)


def _span(seconds: float) -> str:
    """A length of time, to three figures at most."""
    for length, unit in ((86400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


def _number(value: float | None, digits: int = 5) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def evaluation_table(lines: list[dict[str, Any]], best: dict[int, float] | None, without: tuple[str, ...]) -> Table:
    """One row per evaluation, without the columns named in `without`."""
    shown = [line for line in lines if line["event"] == "evaluation"]
    rate = [f"{line['samples_per_s']:,.0f}" if line["samples_per_s"] else "–" for line in shown]
    columns = {
        "day": [str(line["day"]) for line in shown],
        "AUC": [_number(line["auc"]) for line in shown],
        "best AUC": [_number((best or {}).get(line["day"])) for line in shown],
        "GAUC": [_number(line["gauc"]) for line in shown],
        "log loss": [_number(line["logloss"]) for line in shown],
        "NE": [_number(line["ne"], 4) for line in shown],
        "calib.": [_number(line["calibration"], 3) for line in shown],
        "samples": [f"{line['samples_read']:,}" for line in shown],
        "samples/s": rate,
        "pace": [line["pace"] for line in shown],
    }
    hidden = {*without, *(() if best else ("best AUC",))}
    if all(line["gauc"] is None for line in shown):
        hidden.add("GAUC")
    title = "Each day, evaluated before it was trained on"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    chosen = {name: cells for name, cells in columns.items() if name not in hidden}
    for name in chosen:
        table.add_column(name, justify="left" if name == "pace" else "right", no_wrap=True)
    for cells in zip(*chosen.values(), strict=True):
        table.add_row(*cells)
    return table


def account_text(end: dict[str, Any]) -> str:
    """The account of every sample, in one line."""
    skipped = f" ({end['rows_skipped']:,} bad rows skipped)" if end["rows_skipped"] else ""
    virtual = end.get("virtual_seconds")
    clock = (
        ""
        if virtual is None
        else f", {virtual:,.1f} s of virtual time ({end['samples_per_virtual_s'] or 0:,.0f} samples/s)"
    )
    return (
        f"{end['samples_read']:,} samples read = {end['samples_applied']:,} applied"
        f" + {end['samples_dropped']:,} dropped as stale{skipped}; {end['updates']:,} updates,"
        f" {end['ids']:,} ids, {end['seconds']:,.1f} s{clock}"
    )
