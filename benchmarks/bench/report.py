"""From measured rates to the table and the JSON. Pure functions: the same rates give the same text."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Any

from benchmarks.bench.cases import Case, System


@dataclass
class Measured:
    """A case's outcome. rates: samples per second of each round, by the system's name; losses: of the first and the
    last quarter of the same first steps; left_out: why, by name; versions: of the systems' packages."""

    case: Case
    rates: dict[str, list[float]] = field(default_factory=dict)
    losses: dict[str, list[float]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def systems(self) -> list[System]:
        """Those that were measured, in the case's order."""
        return [system for system in self.case.systems if self.rates.get(system.name)]

    def median(self, name: str) -> float:
        return statistics.median(self.rates[name])

    @property
    def best_peer(self) -> str | None:
        """The peer of the highest median, if any ran."""
        peers = [system.name for system in self.systems if system.role == "peer"]
        return max(peers, key=self.median, default=None)

    def ratio(self, name: str, base: str | None) -> float | None:
        """The median rate over the median rate of `base`."""
        return None if base is None else self.median(name) / self.median(base)

    @property
    def limit(self) -> str | None:
        """What no table could be faster than, if it was measured."""
        return next((system.name for system in self.systems if system.role == "limit"), None)


def as_json(results: list[Measured]) -> list[dict[str, Any]]:
    """A line for each system of each case. ratio_to_best_peer: see docs/benchmarks.md; null if no peer ran."""
    lines = []
    for found in results:
        case = found.case
        for system in found.systems:
            ratio = found.ratio(system.name, found.best_peer)
            lines.append(
                {
                    "bench": case.bench,
                    "system": system.name,
                    "precision": case.precision,
                    "optimizer": case.optimizer,
                    "ids": case.ids,
                    "samples_per_s": round(found.median(system.name)),
                    "ratio_to_best_peer": None if ratio is None else round(ratio, 3),
                }
            )
    return lines


def table(found: Measured) -> str:
    """A case as Markdown."""
    best, limit = found.best_peer, found.limit
    rounds = max((len(rates) for rates in found.rates.values()), default=0)
    lines = [f"### {found.case.title}", "", f"{rounds} rounds; the best peer: {best or 'none ran'}", ""]
    lines.append("| system | samples/s | slowest – fastest round | to the best peer | of the dense limit | loss |")
    lines.append("|---|---:|---:|---:|---:|---|")
    for system in found.systems:
        rates = found.rates[system.name]
        share = None if system.role == "limit" else found.ratio(system.name, limit)
        losses = " → ".join(f"{loss:.3f}" for loss in found.losses.get(system.name, []))
        name = f"**{system.name}**" if system.role == "ours" else system.name
        spread = f"{min(rates):,.0f} – {max(rates):,.0f}"
        rate, ratio = f"{found.median(system.name):,.0f}", _times(found.ratio(system.name, best))
        lines.append(f"| {' | '.join([name, rate, spread, ratio, _share(share), losses])} |")
    if found.left_out:
        reasons: dict[str, list[str]] = {}
        for name, why in found.left_out.items():
            reasons.setdefault(why, []).append(name)
        lines += ["", "Left out: " + "; ".join(f"{', '.join(names)} ({why})" for why, names in reasons.items()) + "."]
    return "\n".join(lines)


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}x"


def _share(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.0%}"


def rows(title: str, columns: list[str], lines: list[list[str]]) -> str:
    """A Markdown table under a title; the first column is text, the others are numbers."""
    head = ["", "| " + " | ".join(columns) + " |", "|---" + "|---:" * (len(columns) - 1) + "|"]
    return "\n".join([f"### {title}", *head, *("| " + " | ".join(line) + " |" for line in lines)])
