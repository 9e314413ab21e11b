"""The coordinator's orders as JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from paceline.pace import Apply, Part, Weight


def write_apply(command: Apply) -> dict[str, Any]:
    """An update as JSON values."""
    return {
        "op": "apply",
        "version": command.version,
        "parts": [[p.gradient, p.share, p.factor, p.token, p.weight, p.version] for p in command.parts],
        "row_limit": command.row_limit,
        "samples": command.samples,
        "weighing": None if command.weighing is None else asdict(command.weighing),
        "workers": command.workers,
    }


def read_apply(value: dict[str, Any]) -> Apply:
    """What `write_apply` wrote; numbers are exactly the same."""
    weighing = None if value["weighing"] is None else Weight(**value["weighing"])
    parts = tuple(Part(*part) for part in value["parts"])
    return Apply(value["version"], parts, value["row_limit"], value["samples"], weighing, value["workers"])
