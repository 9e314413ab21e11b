"""What a person sees: a live progress line, then one table."""

from __future__ import annotations

import time
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text


class Terminal:
    """Shows a run on the terminal. Use as a context manager. Without a terminal it prints a line per evaluation."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.lines: list[dict[str, Any]] = []
        self._live: Live | None = None
        self._day, self._days = 0, 1
        self._mark: tuple[float, int] | None = None
        self._rate = 0.0

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
        self._day, self._days, self._mark = day, days, None

    def tick(self, status: dict[str, Any]) -> None:
        """Draw the progress line. status: rows, loss, staleness, dropped."""
        if self._live is None:
            return
        now, rows = time.monotonic(), status["rows"]
        if self._mark is None:
            self._mark = (now, rows)
        elif now - self._mark[0] > 0.5:
            self._rate = (rows - self._mark[1]) / (now - self._mark[0])
            self._mark = (now, rows)
        done = round(20 * self._day / self._days)
        bar = "━" * done + "╸" + "─" * (19 - done)
        self._live.update(
            Text.assemble(
                (bar[:20], "cyan"),
                f"  day {self._day} of {self._days}  ",
                (f"{rows:,} rows", "bold"),
                f"  {self._rate:,.0f} rows/s  loss {status['loss']:.4f}  staleness {status['staleness']:.2f}",
                f"  dropped {status['dropped']:,}",
            )
        )

    def line(self, line: dict[str, Any]) -> None:
        """An evaluation, or the end."""
        self.lines.append(line)
        if self._live is None and line["event"] == "evaluation":
            self.console.print(
                f"day {line['day']}: AUC {_number(line['auc'])}  log loss {_number(line['logloss'])}"
                f"  {line['samples_read']:,} samples  {line['pace']}",
                highlight=False,
            )

    def note(self, text: str) -> None:
        """Something worth a line."""
        self.console.print(text, highlight=False)

    def summary(self, best: dict[int, float] | None = None) -> None:
        """The table of a finished run. best: the best possible AUC of each day, where it is known."""
        self.console.print(evaluation_table(self.lines, best))
        if self.lines and self.lines[-1]["event"] == "end":
            self.console.print(account_text(self.lines[-1]), highlight=False)


def _number(value: float | None, digits: int = 5) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def evaluation_table(lines: list[dict[str, Any]], best: dict[int, float] | None = None) -> Table:
    """One row per evaluation."""
    shown = [line for line in lines if line["event"] == "evaluation"]
    grouped = any(line["gauc"] is not None for line in shown)
    table = Table(
        title="Each day, evaluated before it was trained on",
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    names = ["day", "AUC", *(["best AUC"] if best else []), *(["GAUC"] if grouped else []), "log loss", "NE", "calib."]
    for name in (*names, "samples", "samples/s", "pace"):
        table.add_column(name, justify="left" if name == "pace" else "right", no_wrap=True)
    for line in shown:
        cells = [str(line["day"]), _number(line["auc"])]
        if best:
            cells.append(_number(best.get(line["day"])))
        if grouped:
            cells.append(_number(line["gauc"]))
        cells += [_number(line["logloss"]), _number(line["ne"], 4), _number(line["calibration"], 3)]
        cells += [f"{line['samples_read']:,}", f"{line['samples_per_s']:,.0f}", line["pace"]]
        table.add_row(*cells)
    return table


def account_text(end: dict[str, Any]) -> str:
    """The account of every sample, in one line."""
    skipped = f" ({end['rows_skipped']:,} bad rows skipped)" if end["rows_skipped"] else ""
    return (
        f"{end['samples_read']:,} samples read = {end['samples_applied']:,} applied"
        f" + {end['samples_dropped']:,} dropped as stale{skipped}; {end['updates']:,} updates,"
        f" {end['ids']:,} ids, {end['seconds']:,.1f} s"
    )
