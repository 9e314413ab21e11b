"""What a person sees of a factorization: a progress bar, a table of metrics, importances as a table and as bars."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from paceline.errors import RunDirError
from paceline.rundir import read_metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PLOT = "importances.png"
_BARS = ("#0072B2", "#8A8A8A")  # contexts, the item
_SHOWN = (
    ("rmse", "RMSE"), ("mae", "MAE"), ("ndcg@10", "NDCG@10"), ("map@10", "MAP@10"), ("precision@10", "P@10"),
    ("err@10", "ERR@10"), ("inside_50", "within 50 %"), ("inside_90", "within 90 %"),
)  # fmt: skip


class Display:
    """Shows how a factorization goes. Use as a context manager."""

    def __init__(self, console: Console, epochs: int) -> None:
        self.console = console
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("epoch {task.completed:.1f} of {task.total}"),
        )
        self._bar = Progress(*columns, TimeRemainingColumn(), console=console, transient=True)
        self._task = self._bar.add_task("fitting", total=epochs)

    def __enter__(self) -> Display:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def note(self, text: str) -> None:
        """Something worth a line."""
        self.console.print(text, highlight=False)

    def tick(self, epochs: float) -> None:
        """How many epochs are done."""
        self._bar.update(self._task, completed=epochs)

    def line(self, line: dict[str, Any]) -> None:
        """A line of metrics.jsonl."""
        if line["event"] == "epoch":
            self.note(epoch_text(line))


def epoch_text(line: dict[str, Any]) -> str:
    """One line for an epoch."""
    seen = line.get("validation_rmse")
    told = "" if seen is None else f"  validation RMSE {seen:.4f}  MAE {line['validation_mae']:.4f}"
    return f"epoch {line['epoch']}: objective {line['objective']:,.2f}{told}  {line['seconds']:,.1f} s"


def show(console: Console, run: Path) -> None:
    """Print a run's test metrics and importances. Raises RunDirError if there is no run."""
    lines = read_metrics(run)
    tests = [line for line in lines if line["event"] == "test"]
    if not tests:
        done = f"{len(lines)} epochs are done" if lines else "no epoch is done"
        console.print(f"not tested yet: {done}; go on with --resume --run-dir {run}", highlight=False)
        return
    line = tests[-1]
    title = f"{line['model']}: {line['rows_test']:,} test rows, {line['rows_train']:,} training rows"
    table = Table(title=Text(title), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    shown = [(name, line[key]) for key, name in _SHOWN if line.get(key) is not None]
    for name, _ in shown:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_row(*(f"{value:.4f}" if "within" not in name else f"{value:.1%}" for name, value in shown))
    console.print(table)
    weights = importances(run)
    if weights is not None:
        console.print(importance_table(weights))


def importances(run: Path) -> dict[str, list[float]] | None:
    """A run's ARD weights by block, or None if its model has none."""
    path = run / "importances.json"
    if not path.exists():
        return None
    try:
        found: dict[str, list[float]] = json.loads(path.read_text())
    except ValueError as error:
        raise RunDirError(f"{path}: cannot be read ({error}); remove it, or train again") from error
    return found


def importance_table(weights: dict[str, list[float]]) -> Table:
    """A row for each block, the most important context first: the sum and the largest of its ARD weights."""
    table = Table(title="Importance (ARD weights)", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("of")
    for name in ("sum", "largest", "share of contexts"):
        table.add_column(name, justify="right", no_wrap=True)
    contexts = {name: sum(values) for name, values in weights.items() if name != "item"}
    total = sum(contexts.values()) or 1.0
    for name in ["item", *sorted(contexts, key=lambda n: -contexts[n])]:
        share = "" if name == "item" else f"{contexts[name] / total:.1%}"
        table.add_row(Text(name), f"{sum(weights[name]):.4g}", f"{max(weights[name]):.4g}", share)
    return table


def draw_importances(weights: dict[str, list[float]], out: Path) -> None:
    """Bars of the sum of each block's ARD weights into a PNG, the most important context on top."""
    figure(weights).savefig(out, dpi=130)


def figure(weights: dict[str, list[float]]) -> Figure:
    """The plot of `draw_importances`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    contexts = sorted((name for name in weights if name != "item"), key=lambda name: sum(weights[name]))
    names = [*contexts, "item"]
    drawn = Figure(figsize=(6.5, 1.3 + 0.32 * len(names)), layout="constrained")
    FigureCanvasAgg(drawn)
    axes = drawn.add_subplot()
    sums = [sum(weights[name]) for name in names]
    bars = axes.barh(range(len(names)), sums, color=[_BARS[name == "item"] for name in names], height=0.65)
    axes.bar_label(bars, [f"{value:.3g}" for value in sums], padding=3, fontsize=9)
    for label in axes.set_yticks(range(len(names)), names):
        label.label1.set_parse_math(False)  # a column's name may hold $
    axes.set_title("Importance: ARD weights by context", loc="left", fontsize=12.5, fontweight="bold", pad=9)
    axes.set_xlabel("sum of the weights of the block's coordinates", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color="#E4E4E4", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.margins(x=0.12)
    return drawn
