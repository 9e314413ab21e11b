"""`inject` where workers are threads: which of them is slow, and which dies when."""

from __future__ import annotations

from collections.abc import Sequence

from paceline.clusterconfig import InjectConfig
from paceline.errors import ConfigError
from paceline.runtimes.local import Fault, worker_names


def worker_faults(inject: Sequence[InjectConfig], workers: int) -> dict[str, Fault]:
    """Each worker's faults by its name. Raises ConfigError for what threads cannot show."""
    faults: dict[str, Fault] = {}
    for injected in inject:
        name = injected.slow or injected.kill or ""
        if not name.startswith("worker-"):
            raise ConfigError(f"inject: {name} is a process of a cluster (cluster:); here are worker threads only")
        if name not in worker_names(workers):
            raise ConfigError(f"inject: there is no {name}; there are {workers} workers, from worker-0")
        before = faults.get(name, Fault())
        faults[name] = Fault(injected.factor or before.slow, before.dies_at if injected.at is None else injected.at)
    if all(faults.get(name, Fault()).dies_at is not None for name in worker_names(workers)):
        raise ConfigError("inject: every worker would be killed, and the run could not end; leave one")
    return faults
