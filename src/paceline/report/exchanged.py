"""What workers sent between processes, beside what the cost rule said they would."""

from __future__ import annotations

from collections.abc import Mapping

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text


def bytes_table(predicted: Mapping[str, float], measured: Mapping[str, float], whose: str = "") -> Table | None:
    """A row per kind of payload and one for all, bytes per worker and update; None if nothing was sent. whose: ends the
    title."""
    kinds = [kind for kind in {**predicted, **measured} if predicted.get(kind) or measured.get(kind)]
    if not kinds:
        return None
    title = Text(f"Bytes sent{whose}, per worker and update")
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("kind")
    for name in ("predicted", "measured", "measured / predicted"):
        table.add_column(name, justify="right", no_wrap=True)
    rows = [(kind.replace("_", " "), predicted.get(kind, 0.0), measured.get(kind, 0.0)) for kind in kinds]
    rows.append(("all", sum(row[1] for row in rows), sum(row[2] for row in rows)))
    for kind, said, sent in rows:
        table.add_row(kind, f"{said:,.0f}", f"{sent:,.0f}", f"{sent / said:.3f}" if said else "–")
    return table
