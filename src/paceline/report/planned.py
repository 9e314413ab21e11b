"""A plan on the terminal: what is recommended, the candidates, the formulas' figures, the reasons."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from paceline.planning.facts import Candidate
from paceline.planning.plan import Plan
from paceline.planning.words import reasons

_ROWS = 8


def print_plan(console: Console, plan: Plan) -> None:
    """Everything of a plan that a person wants to see."""
    console.print(_chosen(plan))
    console.print(_ranking(plan))
    console.print(_figures(plan))
    for text in reasons(plan):
        console.print(f"- {text}", highlight=False, soft_wrap=True)
    for note in plan.notes:
        console.print(f"note: {note}", highlight=False, soft_wrap=True)


def _chosen(plan: Plan) -> Table:
    candidate = plan.choice.candidate
    table = Table(title=f"the plan for this {plan.ground}", title_justify="left")
    for name in ("key", "value"):
        table.add_column(name)
    rows: list[tuple[str, object]] = [
        ("workers", f"{candidate.workers:,}"),
        ("batch.global", f"{candidate.global_:,}"),
        ("batch.local", f"{candidate.local:,}"),
        ("pace", candidate.pace.name),
    ]
    if plan.ground == "cluster":
        rows.append(("servers", "on every worker" if candidate.servers is None else f"{candidate.servers:,}"))
        rows.append(("exchange", plan.exchange.key if candidate.collective else "push_pull"))
    rows.append(("predicted", f"{plan.choice.samples_per_s:,.0f} samples/s"))
    for key, value in rows:
        table.add_row(key, str(value))
    return table


def _ranking(plan: Plan) -> Table:
    table = Table(title=f"the best of {len(plan.ranking):,} candidates, and what was simulated", title_justify="left")
    for name in ("workers", "local", "global", "pace", "servers", "predicted", "simulated", "off", ""):
        table.add_column(name, justify="left" if name in ("pace", "") else "right")
    places = sorted({*range(min(_ROWS, len(plan.ranking))), *plan.checks, plan.chosen})
    for place in places:
        made = plan.ranking[place]
        check = plan.checks.get(place)
        told, off = "", ""
        if check is not None:
            told, off = f"{check.samples_per_s:,.0f}", f"{made.samples_per_s / check.samples_per_s - 1:+.1%}"
        mark = "chosen" if place == plan.chosen else ""
        table.add_row(*_cells(made.candidate), f"{made.samples_per_s:,.0f}", told, off, mark)
    return table


def _cells(candidate: Candidate) -> list[str]:
    servers = "–" if candidate.servers is None else f"{candidate.servers:,}"
    return [f"{candidate.workers:,}", f"{candidate.local:,}", f"{candidate.global_:,}", candidate.pace.name, servers]


def _figures(plan: Plan) -> Table:
    table = Table(title="the formulas' figures", title_justify="left")
    table.add_column("figure")
    table.add_column("value", justify="right")
    f = plan.figures
    rows = [
        ("T_C, one worker, whole global batch", _ms(f["T_C_s"])),
        ("T_O, not hidden in a round", _ms(f["T_O_s"])),
        ("R_O = T_O / T_C", _share(f["R_O"])),
        ("S(G) by formula 3.2 / predicted", f"{_number(f['speed_up_by_formula'])} / {f['speed_up_predicted']:.2f}"),
        ("limit of S", _number(f["speed_up_limit"])),
        ("most workers at 80 % efficiency", _number(f["workers_for_80_percent"])),
        ("servers needed by formula 3.3", _number(f["servers_needed"])),
        ("bytes one way, for a gradient", f"{f['bytes_one_way']:,.0f}"),
        ("a worker's link / a gradient's computing", f"{_ms(f['worker_link_s'])} / {_ms(f['gradient_s'])}"),
        ("a ring's sum of the dense gradient", _ms(f["ring_s"])),
        ("slowest of all / mean gradient", f"{f['barrier_costs']:.2f}"),
    ]
    for name, value in rows:
        table.add_row(name, value)
    return table


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:,.3f} ms"


def _share(value: Any) -> str:
    return "–" if value is None else f"{value:.1%}"


def _number(value: Any) -> str:
    return "–" if value is None else f"{value:,.2f}" if isinstance(value, float) else f"{value:,}"
