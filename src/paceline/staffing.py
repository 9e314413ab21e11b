"""How many helpers a person wants a running job on a cluster to have (`paceline.cluster.staff` sees to it)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from paceline.errors import ConfigError, RunDirError
from paceline.evaluate import run_config
from paceline.requests import ask

KIND = "workers"  # of its requests: {"helpers": N}
MOST = 65536
ROOM = 30.0  # seconds that Ray has to find room for a new helper
START = 120.0  # seconds that its process has to start and join
LEAVE = 60.0  # seconds that a helper has to finish what it computes before its process is ended


def why_not(helpers: Any, nodes: int) -> str | None:
    """What is wrong with having so many helpers besides `nodes` nodes, or None."""
    if not isinstance(helpers, int) or not 0 <= helpers <= MOST:
        return f"{helpers!r} is no number of helpers; give one from 0 to {MOST:,}, as cluster.workers has it"
    if not nodes + helpers:
        return "without nodes and helpers nobody would compute (cluster.nodes is 0); leave at least 1 helper"
    return None


def ask_workers(run: Path, helpers: int) -> dict[str, Any]:
    """Ask the run that is going on in a directory for so many helpers (processes with a worker only), and wait until
    they have joined or left.

    Returns `helpers` and `workers` (with those of the nodes) as they are now, `samples_read` by then, and `short`: for
    each helper that could not be had, why. Raises ConfigError for a number that cannot be, RunDirError if no job on a
    cluster runs there.
    """
    config = run_config(run)
    if config.cluster is None:
        raise RunDirError(
            f"{run}: its job has no `cluster:`; only there may workers come and go while a job runs. Stop it and go on"
            " with --resume workers=N"
        )
    wrong = why_not(helpers, config.cluster.nodes)
    if wrong is not None:
        raise ConfigError(f"workers: {wrong}")
    otherwise = "give cluster.workers=... to the next `paceline train`"
    return ask(run, KIND, json.dumps({"helpers": helpers}), ROOM + START + LEAVE, otherwise)
