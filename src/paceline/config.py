"""job.yaml: its keys, what they may be, and messages that name the key, the line and the way out."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from paceline import pace as p
from paceline.errors import ConfigError, suggest
from paceline.schema import Label, Multi, Numeric, Schema, criteo_schema, libsvm_schema


class Strict(BaseModel):
    """Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True, frozen=True)


def _keyed(key: str) -> BeforeValidator:
    """Lets `name` stand for `{key: name}`."""
    return BeforeValidator(lambda value: {key: value} if isinstance(value, str) else value)


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
    label: Annotated[LabelConfig, _keyed("column")]
    numeric: list[Annotated[NumericConfig, _keyed("column")]] = []
    categorical: list[str] = []
    multi: list[Annotated[MultiConfig, _keyed("column")]] = []
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


class DenseConfig(Named):
    name: str = "adam"


class OptimizerConfig(Strict):
    sparse: SparseConfig = SparseConfig(lr=0.02)
    dense: DenseConfig = DenseConfig(lr=0.001)


class BatchConfig(Strict):
    global_: int = Field(1024, alias="global", ge=1)
    local: int | None = Field(None, ge=1)


_PACE_OPTIONS: dict[str, tuple[str, ...]] = {
    "sync": (),
    "async": (),
    "bounded_staleness": ("bound",),
    "backup_workers": ("backup",),
    "bulk_synchronous": (),
    "gba": ("max_staleness", "tokens"),
}


class PaceConfig(Strict):
    name: Literal["sync", "async", "bounded_staleness", "backup_workers", "bulk_synchronous", "gba"]
    max_staleness: int | None = Field(3, ge=0)
    tokens: Literal["data", "version"] = "data"
    bound: int = Field(2, ge=0)
    backup: int = Field(1, ge=0)

    @model_validator(mode="after")
    def _belongs(self) -> PaceConfig:
        for key in self.model_fields_set - {"name"}:
            if key not in _PACE_OPTIONS[self.name]:
                known = ", ".join(_PACE_OPTIONS[self.name]) or "none"
                raise ValueError(f"the pace {self.name!r} has no option {key!r} (its options: {known})")
        return self

    def build(self, gradients: int) -> p.Pace:
        """The pace, where one global batch is `gradients` local batches."""
        match self.name:
            case "sync":
                return p.sync(gradients)
            case "async":
                return p.asynchronous()
            case "bounded_staleness":
                return p.bounded_staleness(self.bound)
            case "backup_workers":
                return p.backup_workers(gradients, self.backup)
            case "bulk_synchronous":
                return p.bulk_synchronous(gradients)
            case "gba":
                return p.gba(gradients, self.max_staleness, self.tokens)


PaceField = Annotated[PaceConfig, _keyed("name")]


class SwitchConfig(Strict):
    at: str | int
    pace: PaceField

    @field_validator("at")
    @classmethod
    def _place(cls, value: str | int) -> str | int:
        if isinstance(value, str) and not re.fullmatch(r"day_\d+", value):
            raise ValueError(f"{value!r} must be a day (day_3, counted from day_0) or a number of samples")
        if isinstance(value, int) and value < 0:
            raise ValueError(f"{value} must not be negative")
        return value


class CheckpointConfig(Strict):
    every: int = Field(2_000_000, ge=1)
    keep: int = Field(2, ge=1)


class JobConfig(Strict):
    """A job: the keys of job.yaml (docs/job.md lists them with their defaults)."""

    data: DataConfig
    features: FeaturesConfig | None = None
    model: Annotated[Named, _keyed("name")] = Named(name="deepfm")
    optimizer: OptimizerConfig = OptimizerConfig()
    batch: BatchConfig = BatchConfig()
    pace: PaceField = PaceConfig(name="sync")
    switch: list[SwitchConfig] = []
    workers: int = Field(1, ge=1, le=4096)
    evaluate: Literal["next_day", "none"] = "next_day"
    precision: Literal["fp32", "bf16"] = "fp32"
    checkpoint: CheckpointConfig = CheckpointConfig()
    seed: int = Field(0, ge=0, lt=2**63)

    @model_validator(mode="after")
    def _fits(self) -> JobConfig:
        if self.features is None and self.data.format in ("csv", "tsv", "parquet"):
            raise ValueError(f"features: needed for {self.data.format}; `paceline inspect FILE` suggests some")
        if self.features is not None and self.data.format in ("criteo", "libsvm"):
            raise ValueError(f"features: {self.data.format} has a fixed layout; leave them out")
        if self.batch.global_ % self.local_batch:
            raise ValueError(
                f"batch.global ({self.batch.global_}) must be a multiple of batch.local ({self.local_batch}),"
                " so that one update is one global batch"
            )
        return self

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
        for entry in (values["pace"], *(s["pace"] for s in values["switch"])):
            for key in [k for k in entry if k != "name" and k not in _PACE_OPTIONS[entry["name"]]]:
                del entry[key]
        return yaml.safe_dump(values, sort_keys=False)


def load_config(path: Path, overrides: list[str] | None = None) -> JobConfig:
    """Read job.yaml and apply `key.key=value` overrides. Raises ConfigError, one line for each thing that is wrong."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as text: {error}") from None
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{where}: not YAML: {getattr(error, 'problem', None) or error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a job is a mapping of keys (data, model, ...), not {type(values).__name__}")
    _check_keys(node, str(path))
    overridden = set()
    for override in overrides or []:
        overridden.add(_override(values, override))
    return check(values, str(path), node, frozenset(overridden))


def _check_keys(node: yaml.Node | None, where: str) -> None:
    """Raise ConfigError for a key that is given twice (YAML would keep the last) or is no text."""
    if isinstance(node, yaml.SequenceNode):
        for element in node.value:
            _check_keys(element, where)
    if not isinstance(node, yaml.MappingNode):
        return
    seen = set()
    for key, value in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode) or key.tag != "tag:yaml.org,2002:str":
            raise ConfigError(f"{where}, line {line}: {getattr(key, 'value', key)!r} is no name of a key")
        if key.value in seen:
            raise ConfigError(f"{where}, line {line}: the key {key.value!r} is given twice")
        seen.add(key.value)
        _check_keys(value, where)


def check(
    values: dict[str, Any], where: str, node: yaml.Node | None = None, overridden: frozenset[str] = frozenset()
) -> JobConfig:
    """A configuration out of plain values. Raises ConfigError naming every key that is wrong."""
    try:
        return JobConfig.model_validate(values)
    except ValidationError as error:
        told = []
        for problem in error.errors():
            keys = [str(k) for k in problem["loc"]]
            name = ".".join(keys)
            line = None if any(name.startswith(o) for o in overridden) else _line(node, keys)
            told.append(f"{where}{f', line {line}' if line else ''}: {_explain(name, problem)}")
        raise ConfigError("\n".join(told)) from None


def _explain(name: str, problem: Any) -> str:
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        key = name.rsplit(".", 1)[-1]
        return f"{name}: unknown key{suggest(key, _known(problem['loc']))}"
    if problem["type"] == "missing":
        return f"{name}: this key is needed"
    if problem["type"] == "value_error":
        return f"{name}: {message}" if name else message
    return f"{name}: {problem['input']!r} is not allowed: {message[0].lower()}{message[1:]}"


def _known(loc: tuple[str | int, ...]) -> list[str]:
    """The keys allowed where an unknown one was found."""
    model: Any = JobConfig
    for key in loc[:-1]:
        if isinstance(key, int) or model is None:
            continue
        field = next((f for n, f in model.model_fields.items() if key in (n, f.alias)), None)
        model = _model_of(field.annotation) if field else None
    if model is None:
        return ["(none)"]
    return [f.alias or n for n, f in model.model_fields.items()]


def _model_of(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        found = _model_of(inner)
        if found is not None:
            return found
    return None


def _line(node: yaml.Node | None, keys: list[str]) -> int | None:
    """The line (from 1) of a key in the YAML text, or of the nearest key above it."""
    line = None
    for key in keys:
        if isinstance(node, yaml.MappingNode):
            pair = next(((k, v) for k, v in node.value if k.value == key), None)
            if pair is None:
                return line
            line, node = pair[0].start_mark.line + 1, pair[1]
        elif isinstance(node, yaml.SequenceNode) and key.isdigit() and int(key) < len(node.value):
            node = node.value[int(key)]
            line = node.start_mark.line + 1
        else:
            return line
    return line


def _override(values: dict[str, Any], override: str) -> str:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"{override!r} is no override; write key=value, for example batch.local=128")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text  # such as `>= 4`, which YAML would want quoted
    target: Any = values
    *parents, last = key.split(".")
    for depth, parent in enumerate(parents):
        index: Any = int(_index(target, parent, key)) if isinstance(target, list) else parent
        below = target[index] if isinstance(target, list) else target.get(index)
        if isinstance(below, str):
            # `pace: gba` stands for `pace: {name: gba}`, `label: click` for `label: {column: click}`
            short = _SHORT_FORMS.get(".".join(p for p in parents[: depth + 1] if not p.isdigit()))
            if short is None:
                raise ConfigError(f"{key}: {'.'.join(parents[: depth + 1])} is {below!r}, which has no keys")
            below = target[index] = {short: below}
        elif below is None and isinstance(target, dict):
            below = target[index] = {}
        elif not isinstance(below, (dict, list)):
            raise ConfigError(f"{key}: {'.'.join(parents[: depth + 1])} is {below!r}, which has no keys")
        target = below
    if isinstance(target, list):
        target[int(_index(target, last, key))] = value
    else:
        if last == "name" and target.get("name") not in (None, value):
            target.clear()  # another model, optimizer or pace: the options of the old one do not belong to it
        target[last] = value
    return key


# Where a text stands for a mapping with one key (see `_keyed`).
_SHORT_FORMS = {
    "model": "name",
    "pace": "name",
    "switch.pace": "name",
    "features.label": "column",
    "features.numeric": "column",
    "features.multi": "column",
}


def _index(values: list[Any], index: str, key: str) -> str:
    if not index.isdigit() or int(index) >= len(values):
        raise ConfigError(f"{key}: {index!r} is not an element; the list has {len(values)} (from 0)")
    return index
