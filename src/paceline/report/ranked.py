"""Rankings for people: a line while a run goes on, and a table of all epochs."""

from __future__ import annotations

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table


def _marks(part: dict[str, Any]) -> list[str]:
    return [key for key in part if key != "items"]


def ranking_text(line: dict[str, Any]) -> str:
    """An evaluation of every type, in one line."""
    told = []
    for name, value in line["ranking"]["types"].items():
        for how, among in (("all", "all items"), ("sampled", f"{value['sampled']['items']} drawn")):
            marks = " ".join(f"{key.upper()} {value[how][key]:.4f}" for key in _marks(value[how]))
            told.append(f"{name} {marks} (of {among})")
    return f"after {line['day']} epochs, {line['samples_read']:,} samples: {'; '.join(told)}  {line['pace']}"


def ranking_table(lines: list[dict[str, Any]]) -> Table:
    """A row for each evaluation and type."""
    shown = [line for line in lines if line["event"] == "evaluation" and line.get("ranking")]
    first = next(iter(shown[0]["ranking"]["types"].values()))
    among = f"{first['all']['items']:,} items and among {first['sampled']['items']} drawn"
    table = Table(title=f"Ranked among all {among}", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("epochs", justify="right")
    table.add_column("type")
    table.add_column("tests", justify="right")
    for how in ("", " drawn"):
        for key in _marks(first["all"]):
            table.add_column(f"{key.upper()}{how}", justify="right")
    table.add_column("samples", justify="right")
    for line in shown:
        for name, value in line["ranking"]["types"].items():
            marks = [f"{value[how][key]:.4f}" for how in ("all", "sampled") for key in _marks(value[how])]
            table.add_row(str(line["day"]), name, f"{value['tests']:,}", *marks, f"{line['samples_read']:,}")
    return table
