"""The keys of job.yaml and what they may be. `paceline.jobfile` reads the file."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from paceline import pace as p
from paceline.clusterconfig import ClusterConfig, InjectConfig
from paceline.codistillconfig import CodistillConfig
from paceline.compressconfig import CompressConfig
from paceline.data.share import Share
from paceline.interactionsconfig import InteractionsConfig
from paceline.keys import Strict, keyed
from paceline.schema import Label, Multi, Numeric, Schema, criteo_schema, libsvm_schema


class LabelConfig(Strict):
    column: str
    positive: str | None = None

    @field_validator("positive")
    @classmethod
    def _rule(cls, value: str | None) -> str | None:
        Label("", value).rule()
        return value


class NumericConfig(Strict):
    column: str
    transform: Literal["log_bucket", "standardise", "identity"] = "log_bucket"


class MultiConfig(Strict):
    column: str
    separator: str = "|"
    pool: Literal["mean", "sum"] = "mean"

    @field_validator("separator")
    @classmethod
    def _one_byte(cls, value: str) -> str:
        if len(value.encode()) != 1:
            raise ValueError(f"{value!r} must be one ASCII character")
        return value


class FeaturesConfig(Strict):
    label: Annotated[LabelConfig, keyed("column")]
    numeric: list[Annotated[NumericConfig, keyed("column")]] = []
    categorical: list[str] = []
    multi: list[Annotated[MultiConfig, keyed("column")]] = []
    group: str | None = None

    @model_validator(mode="after")
    def _distinct(self) -> FeaturesConfig:
        names = [
            self.label.column,
            *(n.column for n in self.numeric),
            *self.categorical,
            *(m.column for m in self.multi),
        ]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise ValueError(f"column {twice[0]!r} is used twice")
        if not (self.categorical or self.multi or any(n.transform == "log_bucket" for n in self.numeric)):
            raise ValueError("no ids: at least one categorical, multi or log-bucketed numeric column is needed")
        return self


class DataConfig(Strict):
    format: Literal["criteo", "csv", "tsv", "parquet", "libsvm"]
    days: str | list[str | list[str]]
    on_bad_row: Literal["error", "skip"] = "error"
    delimiter: str | None = None
    quote: str | None = '"'
    columns: list[str] | None = None

    @model_validator(mode="after")
    def _some_day(self) -> DataConfig:
        if not self.days or any(not day for day in self.days):
            raise ValueError("days is empty, or one of them is; name at least one file for each")
        if self.quote is not None and len(self.quote.encode()) != 1:
            raise ValueError(f"quote {self.quote!r} must be one ASCII character, or null for none")
        if self.delimiter is not None and (not self.delimiter or self.quote in tuple(self.delimiter)):
            raise ValueError(f"delimiter {self.delimiter!r} must not be empty nor hold the quote ({self.quote!r})")
        if self.format not in ("csv", "tsv") and (self.delimiter or self.columns):
            raise ValueError(f"delimiter and columns are for csv and tsv, not for {self.format}")
        return self


class WeightConfig(Strict):
    """What staleness takes off a gradient (see paceline.pace.Weight)."""

    law: Literal["power", "log", "relative", "inverse", "none"] = "power"
    k: float = Field(2.0, ge=0.25, allow_inf_nan=False)
    rows: Literal["gradient", "row"] = "gradient"
    scales: Literal["gradient", "step"] = "gradient"

    @model_validator(mode="after")
    def _logarithm(self) -> WeightConfig:
        if self.law == "log" and self.k <= 1:
            raise ValueError(f"k is the base of the logarithm and must be above 1, not {self.k:g}")
        return self


class Named(BaseModel):
    """A name and options that belong to what is named."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class SparseConfig(Named):
    name: str = "adagrad"
    reduce: Literal["global_mean", "per_id_mean", "sum"] = "global_mean"
    rows: Literal["fp32", "bf16"] = "fp32"


class DenseConfig(Named):
    name: str = "adam"


class OptimizerConfig(Strict):
    sparse: Annotated[SparseConfig, keyed("name")] = SparseConfig(lr=0.02)
    dense: Annotated[DenseConfig, keyed("name")] = DenseConfig(lr=0.001)


class BatchConfig(Strict):
    global_: int = Field(1024, alias="global", ge=1)
    local: int | None = Field(None, ge=1)


_PACE_OPTIONS: dict[str, tuple[str, ...]] = {
    "sync": (),
    "async": ("weight",),
    "bounded_staleness": ("bound", "weight"),
    "backup_workers": ("backup",),
    "bulk_synchronous": ("weight",),
    "gba": ("max_staleness", "tokens", "weight"),
    "damped": ("weight",),
    "auto": ("candidates", "margin", "patience"),
}


class PaceConfig(Strict):
    """A pace; `auto` is a choice between others while the run goes on (see paceline.pace.Pilot)."""

    name: Literal["sync", "async", "bounded_staleness", "backup_workers", "bulk_synchronous", "gba", "damped", "auto"]
    max_staleness: int | None = Field(3, ge=0)
    tokens: Literal["data", "version"] = "data"
    bound: int = Field(2, ge=0)
    backup: int = Field(1, ge=0)
    weight: Annotated[WeightConfig | None, keyed("law")] = None
    candidates: list[Annotated[PaceConfig, keyed("name")]] = []
    margin: float = Field(0.15, ge=0, le=10)
    patience: int = Field(2, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _own_weight(cls, values: Any) -> Any:
        """`damped` has a weight of its own; what is given changes that."""
        if isinstance(values, dict) and values.get("name") == "damped":
            given = values.get("weight")
            given = {"law": given} if isinstance(given, str) else given or {}
            if isinstance(given, dict):
                values = {**values, "weight": {**asdict(p.damped(1).weight or p.Weight()), **given}}
        return values

    @model_validator(mode="after")
    def _belongs(self) -> PaceConfig:
        for key in self.model_fields_set - {"name"}:
            if key not in _PACE_OPTIONS[self.name]:
                known = ", ".join(_PACE_OPTIONS[self.name]) or "none"
                raise ValueError(f"the pace {self.name!r} has no option {key!r} (its options: {known})")
        return self

    @model_validator(mode="after")
    def _choice(self) -> PaceConfig:
        if self.name == "auto":
            if not self.candidates:
                object.__setattr__(self, "candidates", [PaceConfig(name="sync"), PaceConfig(name="gba")])
            names = [each.name for each in self.candidates]
            if len(names) < 2 or len(set(names)) < len(names) or "auto" in names:
                raise ValueError(f"candidates {names} must be two or more different paces, for example [sync, gba]")
        return self

    def build_all(self, gradients: int) -> list[p.Pace]:
        """The pace, or those that `auto` chooses from, the preferred one first."""
        return [each.build(gradients) for each in self.candidates] if self.name == "auto" else [self.build(gradients)]

    def build(self, gradients: int) -> p.Pace:
        """The pace to begin with, where one global batch is `gradients` local batches."""
        weight = None if self.weight is None else p.Weight(**self.weight.model_dump())
        match self.name:
            case "sync":
                return p.sync(gradients)
            case "async":
                return p.asynchronous(weight)
            case "bounded_staleness":
                return p.bounded_staleness(self.bound, weight)
            case "backup_workers":
                return p.backup_workers(gradients, self.backup)
            case "bulk_synchronous":
                return p.bulk_synchronous(gradients, weight)
            case "damped":
                return p.damped(gradients, weight)
            case "auto":
                return self.candidates[0].build(gradients)
            case "gba":
                return p.gba(gradients, self.max_staleness, self.tokens, weight)


PaceField = Annotated[PaceConfig, keyed("name")]


class SwitchConfig(Strict):
    at: str | int
    pace: PaceField

    @field_validator("at", mode="before")
    @classmethod
    def _place(cls, value: Any) -> str | int:
        if isinstance(value, str) and re.fullmatch(r"day_\d+", value):
            return value
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return value
        raise ValueError(f"{value!r} must be a day (day_3, counted from day_0) or a number of samples, from 0")


class CheckpointConfig(Strict):
    every: int = Field(2_000_000, ge=1)
    keep: int = Field(2, ge=1)


class JobConfig(Strict):
    """A job: the keys of job.yaml (docs/job.md lists them with their defaults)."""

    data: DataConfig
    features: FeaturesConfig | None = None
    interactions: InteractionsConfig | None = None
    model: Annotated[Named, keyed("name")] = Named(name="deepfm")
    normalise: Literal["none", "local_batch", "local_moving"] = "none"
    optimizer: OptimizerConfig = OptimizerConfig()
    batch: BatchConfig = BatchConfig()
    pace: PaceField = PaceConfig(name="sync")
    switch: list[SwitchConfig] = []
    workers: int = Field(1, ge=1, le=65536)
    evaluate: Literal["next_day", "none"] = "next_day"
    precision: Literal["fp32", "bf16"] = "fp32"
    device: str = "auto"
    checkpoint: CheckpointConfig = CheckpointConfig()
    cluster: ClusterConfig | None = None
    inject: list[InjectConfig] = []
    codistill: CodistillConfig | None = None
    compress: CompressConfig | None = None
    seed: int = Field(0, ge=0, lt=2**63)

    @model_validator(mode="after")
    def _counted(self) -> JobConfig:
        """On a cluster, the cluster says how many workers there are."""
        if self.cluster is not None and self.workers != self.cluster.trainers:
            if "workers" in self.model_fields_set:
                raise ValueError(
                    f"workers ({self.workers}) is not what cluster makes of it (nodes + workers ="
                    f" {self.cluster.trainers}); leave it out"
                )
            object.__setattr__(self, "workers", self.cluster.trainers)
        return self

    @model_validator(mode="after")
    def _ranks(self) -> JobConfig:
        """Interactions are ranked: another default model, and nothing of what is for click logs."""
        if self.interactions is None:
            return self
        if self.features is not None:
            raise ValueError("features and interactions: a job has one of them; leave the other out")
        if self.data.format in ("criteo", "libsvm"):
            raise ValueError(f"interactions: for csv, tsv and parquet; {self.data.format} has a fixed layout")
        if self.normalise != "none":
            raise ValueError("normalise: interactions have no dense inputs to normalise; leave it out")
        if "model" not in self.model_fields_set:
            object.__setattr__(self, "model", Named(name="mrmn"))
        return self

    @model_validator(mode="after")
    def _fits(self) -> JobConfig:
        if self.features is None and self.interactions is None and self.data.format in ("csv", "tsv", "parquet"):
            raise ValueError(
                f"features: needed for {self.data.format}; `paceline inspect FILE` suggests some (or `interactions`,"
                " to rank items for users: docs/mrmn.md)"
            )
        if self.features is not None and self.data.format in ("criteo", "libsvm"):
            raise ValueError(f"features: {self.data.format} has a fixed layout; leave them out")
        for kind in (str, int):
            places = [int(str(s.at).removeprefix("day_")) for s in self.switch if isinstance(s.at, kind)]
            if places != sorted(places):
                raise ValueError(f"switch: the places {places} are not in order of time")
        if self.batch.global_ % self.local_batch:
            raise ValueError(
                f"batch.global ({self.batch.global_}) must be a multiple of batch.local ({self.local_batch}),"
                " so that one update is one global batch"
            )
        return self

    @model_validator(mode="after")
    def _no_lessons(self) -> JobConfig:
        if self.codistill is not None and self.interactions is not None:
            raise ValueError("codistill: teachers predict clicks, and interactions are ranked; leave one of them out")
        return self

    @model_validator(mode="after")
    def _sums(self) -> JobConfig:
        if self.compress is not None:
            self.compress.check(None if self.cluster is None else self.cluster.steps, self.cluster is not None)
        return self

    @property
    def drawn_seed(self) -> int:
        """From which the model is drawn: each group of a codistillation has its own."""
        group = 0 if self.codistill is None else self.codistill.group or 0
        return (self.seed + 7_919 * group) % 2**63

    @property
    def saved_every(self) -> int:
        """Samples between two checkpoints. In a codistillation they are what the other groups learn from."""
        every = self.checkpoint.every
        return every if self.codistill is None else min(every, self.codistill.every)

    @property
    def share(self) -> Share | None:
        """The rows that are trained on here, if not all."""
        if self.codistill is None or self.codistill.group is None:
            return None
        return Share(self.codistill.groups, self.codistill.group, self.seed)

    @property
    def local_batch(self) -> int:
        """Samples per gradient: as given, or the global batch over the workers (all of it, if that leaves a rest)."""
        if self.batch.local is not None:
            return self.batch.local
        share, rest = divmod(self.batch.global_, self.workers)
        return share if not rest and share else self.batch.global_

    @property
    def gradients(self) -> int:
        """Local batches in a global batch (M)."""
        return self.batch.global_ // self.local_batch

    def log_schema(self) -> Schema:
        """What the columns mean."""
        if self.interactions is not None:
            return self.interactions.build(self.seed).schema()
        if self.features is None:
            return criteo_schema() if self.data.format == "criteo" else libsvm_schema()
        f = self.features
        return Schema(
            Label(f.label.column, f.label.positive),
            tuple(Numeric(n.column, n.transform) for n in f.numeric),
            tuple(f.categorical),
            tuple(Multi(m.column, m.separator, m.pool) for m in f.multi),
            f.group,
        )

    def to_yaml(self) -> str:
        """The resolved configuration, with every default written out."""
        values = self.model_dump(mode="json", by_alias=True)
        values["batch"]["local"] = self.local_batch
        for key in ("codistill", "compress", "interactions"):
            if values[key] is None:
                del values[key]
        if self.compress is not None:
            values["compress"] = {key: value for key, value in values["compress"].items() if value is not None}
        if self.cluster is None:
            del values["cluster"]
        elif self.cluster.security.token is not None and not self.cluster.security.token.startswith(("env:", "file:")):
            values["cluster"]["security"]["token"] = "(hidden)"
        values["inject"] = [{k: v for k, v in entry.items() if v is not None} for entry in values.get("inject", [])]
        if not values["inject"]:
            del values["inject"]
        for entry in (values["pace"], *(s["pace"] for s in values["switch"])):
            for pace in (entry, *entry["candidates"]):
                _own_options(pace)
        return yaml.safe_dump(values, sort_keys=False)


def _own_options(pace: dict[str, Any]) -> None:
    """Leave only the options that a pace has."""
    for key in [k for k in pace if k != "name" and k not in _PACE_OPTIONS[pace["name"]]]:
        del pace[key]
    if pace.get("weight") is None:
        pace.pop("weight", None)
