"""The keys of `cluster:` and `inject:` in job.yaml."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator, model_validator

from paceline.keys import Strict


class ResourcesConfig(Strict):
    """Of each process of the cluster."""

    cpus: float = Field(1, ge=0, allow_inf_nan=False)
    gpus: float = Field(0, ge=0, allow_inf_nan=False)

    @field_validator("cpus", "gpus")
    @classmethod
    def _counted(cls, value: float) -> float:
        if round(value, 4) != value:
            raise ValueError(f"{value!r} has more than four decimals, and Ray counts no finer; round it")
        return value

    @field_validator("gpus")
    @classmethod
    def _whole(cls, value: float) -> float:
        if value > 1 and value % 1:
            raise ValueError(f"{value!r} must be a whole number above 1, for Ray divides one GPU only")
        return value


class TlsConfig(Strict):
    """PEM files: this cluster's certificate, its key, and the authority that signed it. hostname: that the certificate
    is of, where it does not name the addresses of all machines."""

    cert: str
    key: str
    ca: str
    hostname: str | None = None


class SecurityConfig(Strict):
    """token: the secret itself, or `env:NAME` or `file:PATH`, where it is read from."""

    tls: TlsConfig | None = None
    token: str | None = None


class ClusterConfig(Strict):
    """Processes placed by Ray. nodes: each with a shard and a worker; servers: with a shard only; workers: with a
    worker only; rows: how embedding rows travel; ahead: leases that a worker holds while it computes one; patience:
    seconds that a run waits for a process that is gone or cannot be reached."""

    address: str = "local"
    nodes: int = Field(1, ge=0)
    servers: int = Field(0, ge=0)
    workers: int = Field(0, ge=0)
    resources: ResourcesConfig = ResourcesConfig()
    security: SecurityConfig = SecurityConfig()
    rows: Literal["fp32", "bf16"] = "fp32"
    ahead: int = Field(1, ge=0, le=8)
    exchange: Literal["auto", "rows", "substitute", "push_pull"] = "auto"
    patience: float = Field(600, gt=0, allow_inf_nan=False)

    @field_validator("address")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in ("local", "auto") and not re.fullmatch(r"(ray://)?[\w.\-\[\]:]+:\d+", value):
            raise ValueError(f"{value!r} must be local, auto, HOST:PORT or ray://HOST:PORT")
        return value

    @model_validator(mode="after")
    def _both(self) -> ClusterConfig:
        if not self.nodes + self.servers:
            raise ValueError("nodes and servers are 0: at least one process has to hold parameters")
        if not self.nodes + self.workers:
            raise ValueError("nodes and workers are 0: at least one process has to compute")
        return self

    @model_validator(mode="after")
    def _encrypted(self) -> ClusterConfig:
        if self.security.tls is not None and self.exchange in ("rows", "substitute"):
            raise ValueError(
                f"exchange: {self.exchange} goes over collectives, which are not encrypted, and security.tls asks for"
                " encryption; use exchange: push_pull (or auto, which takes it then)"
            )
        return self

    @property
    def steps(self) -> Literal["auto", "rows", "substitute"] | None:
        """How rows are exchanged where every update needs every gradient: by collectives, or None for push and pull."""
        if self.exchange == "push_pull" or self.security.tls is not None:
            return None
        return self.exchange

    @property
    def shards(self) -> int:
        """Processes that hold parameters."""
        return self.nodes + self.servers

    @property
    def trainers(self) -> int:
        """Workers there are in all."""
        return self.nodes + self.workers


class InjectConfig(Strict):
    """A fault to see what comes of it: a worker that is slow by a factor, or a process that is killed once `at` samples
    were read."""

    slow: str | None = None
    factor: float | None = Field(None, ge=1, allow_inf_nan=False)
    kill: str | None = None
    at: int | None = Field(None, ge=0)

    @model_validator(mode="after")
    def _one(self) -> InjectConfig:
        given = self.model_fields_set
        if given == {"slow", "factor"}:
            if not re.fullmatch(r"worker-\d+", self.slow or ""):
                raise ValueError(f"slow: {self.slow!r} must be a worker, such as worker-2")
        elif given == {"kill", "at"}:
            if not re.fullmatch(r"(worker|shard|node)-\d+|coordinator", self.kill or ""):
                raise ValueError(f"kill: {self.kill!r} must be a worker, shard or node (worker-2), or coordinator")
        else:
            raise ValueError(f"{sorted(given)} must be slow and factor, or kill and at")
        return self
