"""The keys of cluster.yaml: a cluster to be simulated. `paceline.clusterfile` reads the file.

Times are of one worker and one local batch. A cluster says nothing of what is trained, and a job nothing of where.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Spec(BaseModel):
    """Unknown keys are errors, and so is a number that is not finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Compute(Spec):
    """Milliseconds a gradient takes however small, microseconds for each of its samples; both times a lognormal factor
    of mean 1 that a worker keeps (speed_sigma) and one drawn for each gradient (jitter_sigma). measure: take the first
    two from this machine."""

    fixed_ms: float = Field(20.0, ge=0)
    per_sample_us: float = Field(50.0, ge=0)
    speed_sigma: float = Field(0.0, ge=0, le=3)
    jitter_sigma: float = Field(0.0, ge=0, le=3)
    measure: bool = False


class Stragglers(Spec):
    """permanent: `share` of the workers (rounded down) take `factor` times as long, always the same ones. bursts: every
    worker is slow for slow_s seconds and then well for fast_s seconds, exponential with these means. trace: a CSV
    file of recorded times, which replace `compute`."""

    share: float = Field(0.0, ge=0, le=1)
    factor: float = Field(5.0, ge=1)
    kind: Literal["permanent", "bursts"] = "permanent"
    slow_s: float | None = Field(None, gt=0)
    fast_s: float | None = Field(None, gt=0)
    trace: str | None = None

    @model_validator(mode="after")
    def _belongs(self) -> Stragglers:
        given = self.model_fields_set
        if self.trace is not None and given & {"share", "factor", "kind", "slow_s", "fast_s"}:
            raise ValueError("trace replaces every other key of stragglers; leave them out")
        if self.kind == "bursts":
            if self.slow_s is None or (self.fast_s is None) == ("share" not in given):
                raise ValueError("bursts need slow_s (mean seconds of a slow spell) and either fast_s or share")
            if "share" in given and not 0 < self.share < 1:
                raise ValueError(f"share {self.share} of bursts is the share of time spent slow, above 0 and below 1")
        elif given & {"slow_s", "fast_s"}:
            raise ValueError("slow_s and fast_s belong to kind: bursts")
        return self

    @property
    def spells(self) -> tuple[float, float] | None:
        """Mean seconds (slow, fast) of bursts."""
        if self.kind != "bursts" or self.slow_s is None:
            return None
        return self.slow_s, self.fast_s if self.fast_s is not None else self.slow_s * (1 - self.share) / self.share


class Network(Spec):
    """Between a worker and the servers, each way."""

    latency_ms: float = Field(0.5, ge=0)
    bandwidth_gbps: float = Field(10.0, gt=0)


class Servers(Spec):
    """Rows are spread evenly over `count` servers; each takes ms_per_mb for a megabyte (1e6 bytes), one by one."""

    count: int = Field(8, ge=1)
    ms_per_mb: float = Field(1.0, ge=0)


class Allreduce(Spec):
    """A barrier's collectives (rows, their gradients, the sum of the dense ones): each takes `latency_ms` and its bytes
    over `bandwidth_gbps`."""

    latency_ms: float = Field(1.0, ge=0)
    bandwidth_gbps: float = Field(10.0, gt=0)


class Failures(Spec):
    """A worker dies every mtbf_s seconds on average (exponential; null: never) and is back after return_s."""

    mtbf_s: float | None = Field(None, gt=0)
    return_s: float | None = Field(60.0, ge=0)


class ClusterSpec(Spec):
    workers: int = Field(ge=1, le=65536, strict=True)
    compute: Compute = Compute()
    stragglers: Stragglers = Stragglers()
    network: Network = Network()
    servers: Servers = Servers()
    allreduce: Allreduce = Allreduce()
    failures: Failures = Failures()
    seed: int = Field(0, ge=0, lt=2**63)
