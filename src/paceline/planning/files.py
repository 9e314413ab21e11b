"""A plan as files that run as they are: job.yaml, cluster.yaml, plan.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from paceline.config import JobConfig
from paceline.jobfile import check
from paceline.planning.check import with_candidate
from paceline.planning.facts import Candidate
from paceline.planning.plan import Plan
from paceline.planning.words import reasons
from paceline.rundir import replace_text, storing

JOB, CLUSTER, PLAN = "job.yaml", "cluster.yaml", "plan.json"


def write_plan(plan: Plan, base: Path, cluster_base: Path, folder: Path) -> list[Path]:
    """Write the plan into `folder` (made if need be) and return the files. base, cluster_base: what relative paths in
    the job and in the cluster are relative to; in the files they are absolute."""
    job = planned_job(plan, base)
    spec = plan.spec
    if spec.stragglers.trace is not None:
        trace = str((cluster_base / spec.stragglers.trace).resolve())
        spec = spec.model_copy(update={"stragglers": spec.stragglers.model_copy(update={"trace": trace})})
    texts = {
        JOB: _head(plan) + yaml.safe_dump(job, sort_keys=False),
        CLUSTER: yaml.safe_dump(spec.model_dump(mode="json", exclude_unset=True), sort_keys=False),
        PLAN: json.dumps({**plan.to_json(), "reasons": reasons(plan)}, indent=1) + "\n",
    }
    paths = []
    with storing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        path = folder / name
        with storing(path):
            replace_text(path, text)
        paths.append(path)
    return paths


def planned_job(plan: Plan, base: Path) -> dict[str, Any]:
    """The job's keys as planned; they have been checked."""
    candidate, given = plan.choice.candidate, plan.config
    values: dict[str, Any] = yaml.safe_load(with_candidate(given, candidate).to_yaml())
    values["data"]["days"] = _absolute(given.data.days, base)
    if given.cluster is not None:
        del values["workers"]
        kept = yaml.safe_load(given.to_yaml())["cluster"]
        values["cluster"] = {**kept, **_roles(candidate, plan.exchange.key)}
    check(values, JOB)
    return values


def _roles(candidate: Candidate, key: str) -> dict[str, Any]:
    """Processes of a real cluster: with collectives everybody holds a shard, else servers do."""
    if candidate.collective or candidate.servers is None:
        return {"nodes": candidate.workers, "servers": 0, "workers": 0, "exchange": key}
    return {"nodes": 0, "servers": candidate.servers, "workers": candidate.workers, "exchange": "push_pull"}


def _absolute(days: Any, base: Path) -> Any:
    if isinstance(days, list):
        return [_absolute(day, base) for day in days]
    if "://" in days:
        return days
    return str(base / Path(days).expanduser())


def _head(plan: Plan) -> str:
    """What a person who opens the file should know."""
    lines = [f"planned: {plan.choice.samples_per_s:,.0f} samples/s predicted (plan.json has the figures)"]
    if _hides_a_token(plan.config):
        lines.append("cluster.security.token was not copied: write it here again, or env:NAME")
    return "".join(f"# {line}\n" for line in lines)


def _hides_a_token(config: JobConfig) -> bool:
    token = None if config.cluster is None else config.cluster.security.token
    return token is not None and not token.startswith(("env:", "file:"))
