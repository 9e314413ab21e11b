"""The command `paceline plan`, and which overrides are whose where a job meets a cluster."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from paceline.errors import ConfigError


def split(overrides: list[str]) -> tuple[list[str], list[str]]:
    """(the job's overrides, the cluster's): `workers` is the cluster's, and what begins with `cluster.`."""
    its = [o for o in overrides if o.startswith(("cluster.", "workers="))]
    return [o for o in overrides if o not in its], [o.removeprefix("cluster.") for o in its]


def plan(
    job: Annotated[Path, typer.Argument(help="job.yaml")],
    more: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CLUSTER] [KEY=VALUE]...",
            help="cluster.yaml: what is to be had, workers: the most (default: this machine's cores); then overrides of"
            " the job, and of the cluster: workers=, cluster.key=",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write job.yaml, cluster.yaml and plan.json here.")] = None,
    global_batch: Annotated[
        str | None, typer.Option(help="LOW:HIGH: the global batch may change, by powers of two; tune again then.")
    ] = None,
    pace: Annotated[
        list[str] | None, typer.Option(help="Pace to choose from; several times. Default: sync, gba, the job's own.")
    ] = None,
    max_servers: Annotated[int | None, typer.Option(min=1, help="Default: servers.count of cluster.yaml.")] = None,
    memory_gb: Annotated[float | None, typer.Option(help="Memory of a worker for a gradient, 10^9 bytes.")] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="For measuring this machine.")] = 60.0,
    check_rows: Annotated[int, typer.Option(min=1, help="Rows that the simulator trains on for each check.")] = 100_000,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Recommend workers, batches, servers, pace and exchange for a job, with predicted and simulated throughput."""
    from rich.console import Console

    from paceline.clusterfile import load_cluster
    from paceline.jobfile import load_config
    from paceline.planning.files import write_plan
    from paceline.planning.plan import Options, make_plan
    from paceline.planning.words import reasons
    from paceline.report.planned import print_plan

    words = more or []
    cluster = Path(words[0]) if words and "=" not in words[0] else None
    overrides = words[cluster is not None :]
    if memory_gb is not None and not 0 < memory_gb < 1e6:
        raise ConfigError(f"--memory-gb {memory_gb:g} must be above 0, in units of 10^9 bytes")
    ours, its = split(overrides)
    if cluster is None and its:
        raise ConfigError(f"{its[0]!r} is for a cluster, and no cluster.yaml is given: paceline plan JOB CLUSTER")
    if cluster is None and max_servers is not None:
        raise ConfigError("--max-servers belongs to a cluster, and no cluster.yaml is given: paceline plan JOB CLUSTER")
    spec = None if cluster is None else load_cluster(cluster, its)
    config = load_config(job, ours)
    options = Options(
        max_servers,
        tuple(pace or ()),
        global_batch,
        None if memory_gb is None else memory_gb * 1e9,
        seconds,
        check_rows,
    )
    errors = Console(stderr=True)
    tell = (lambda text: None) if json_ else (lambda text: errors.print(f"{text} ...", style="dim", highlight=False))
    base, cluster_base = job.parent.resolve(), (cluster or job).parent.resolve()
    made = make_plan(config, base, spec, cluster_base, options, os.cpu_count() or 1, tell)
    files = [] if out is None else write_plan(made, base, cluster_base, out)
    if json_:
        typer.echo(json.dumps({**made.to_json(), "reasons": reasons(made)}))
        return
    print_plan(Console() if sys.stdout.isatty() else Console(width=120), made)
    for path in files:
        typer.echo(f"written: {path}")
