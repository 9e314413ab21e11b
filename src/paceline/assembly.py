"""From a configuration to the things that train: files, model, parameters, replicas."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from paceline.config import JobConfig
from paceline.data.files import expand
from paceline.data.stream import Log
from paceline.data.text import Dialect
from paceline.errors import ConfigError
from paceline.exchange.direct import DirectRoute
from paceline.models.base import Inputs, Model, Normalised
from paceline.models.drawing import drawing
from paceline.models.normalise import LocalBatchNorm
from paceline.models.registry import build_model
from paceline.naming import look_up
from paceline.params.dense import DenseBlock, make_optimizer, slices
from paceline.params.dense_rows import RowsOptimizer
from paceline.params.row_optimizers import BUILT_IN, row_optimizer
from paceline.params.shard import Shard
from paceline.params.sparse import SparseOptimizer
from paceline.params.table import Table
from paceline.runtimes.body import Store
from paceline.runtimes.compute import Layout, Replica
from paceline.runtimes.statistics import Statistics
from paceline.schema import CRITEO_COLUMNS, Schema
from paceline.teachers import Teachers


@dataclass(frozen=True, slots=True)
class Job:
    """What a configuration stands for. days: the files of each day."""

    config: JobConfig
    schema: Schema
    log: Log
    days: list[list[str]]
    layout: Layout
    route: Store
    replicas: list[Replica]
    statistics: Statistics

    @property
    def direct(self) -> DirectRoute:
        """The route of a job whose parameters are in this process."""
        assert isinstance(self.route, DirectRoute)
        return self.route

    @property
    def shard(self) -> Shard:
        return self.direct.shard


def day_files(config: JobConfig, base: Path) -> list[list[str]]:
    """The files of each day, in time order. Raises DataError if a pattern matches nothing."""
    days = config.data.days
    if isinstance(days, str):
        return [[path] for path in expand(days, base)]
    found = []
    for day in days:
        patterns = [day] if isinstance(day, str) else day
        found.append([path for pattern in patterns for path in expand(pattern, base)])
    return found


def make_log(config: JobConfig) -> Log:
    """How the job's files are read."""
    data, schema = config.data, config.log_schema()
    dialect = None
    match data.format:
        case "criteo":
            dialect = Dialect("\t", None, CRITEO_COLUMNS)
        case "csv" | "tsv":
            delimiter = data.delimiter or ("," if data.format == "csv" else "\t")
            dialect = Dialect(delimiter, data.quote, tuple(data.columns) if data.columns else None)
    return Log(data.format, schema, dialect, data.on_bad_row == "skip")


def sparse_optimizer(name: str, options: dict[str, Any]) -> SparseOptimizer:
    """A built-in row optimizer by name, or a user's as 'package.module:Class'. Raises ConfigError."""
    chosen = look_up("optimizer.sparse.name", "row optimizer", name, BUILT_IN)
    if not (isinstance(chosen, type) and issubclass(chosen, SparseOptimizer)):
        raise ConfigError(f"optimizer.sparse.name: {name!r} is not a subclass of paceline.SparseOptimizer")
    return row_optimizer("optimizer.sparse", name, chosen, options)


def make_model(config: JobConfig, inputs: Inputs) -> Model:
    """The model, its dense parameters drawn with the job's seed."""
    with drawing(config.drawn_seed):
        model = build_model(config.model.name, config.model.options, inputs)
        if inputs.normalise != "none" and inputs.dense:
            model = Normalised(model, inputs)
    named = dict(model.named_buffers())
    ours = {f"{name}.{b}" for name, m in model.named_modules() if isinstance(m, LocalBatchNorm) for b in m.statistics}
    kept = [name for name in model.state_dict() if name in named and name not in ours]
    if kept:
        raise ConfigError(
            f"model.name: {config.model.name} keeps running statistics ({kept[0]}); worker replicas would each have"
            " their own and none would be evaluated. Use paceline.LocalBatchNorm, or a model without such statistics"
        )
    return model


def make_inputs(config: JobConfig) -> Inputs:
    """What the model is built for."""
    schema = config.log_schema()
    return Inputs(schema.fields, schema.dense_width, config.normalise)


def make_shard(config: JobConfig, index: int = 0, shards: int = 1) -> Shard:
    """The shard `index` of `shards`, empty: its table, and its slice of the dense parameters."""
    model = make_model(config, make_inputs(config))
    parts = model.parts()
    names = None if shards == 1 else slices(model, shards)[index]
    # A uniform number in +-b has standard deviation b / sqrt(3).
    bounds = np.concatenate([np.full(part.width, part.std * 3**0.5, np.float32) for part in parts])
    sparse = config.optimizer.sparse
    optimizer = sparse_optimizer(sparse.name, dict(sparse.options))
    table = Table(bounds, optimizer, config.drawn_seed)
    dense_options = {key: _maybe_number(key, value) for key, value in config.optimizer.dense.options.items()}
    dense = DenseBlock(model, make_optimizer(config.optimizer.dense.name, dense_options, model, names), names)
    _check_weights(config, optimizer, dense)
    return Shard(table, dense, sparse.reduce)


def make_replica(config: JobConfig) -> Replica:
    """A worker's model."""
    schema, model = config.log_schema(), make_model(config, make_inputs(config))
    layout = Layout(model.parts(), len(schema.single_fields), len(schema.multi))
    return Replica(model, layout, config.precision, config.codistill.weight if config.codistill else 0.0)


def make_replicas(config: JobConfig, count: int) -> list[Replica]:
    """Those of a process; in a codistillation they have their teachers in common."""
    made = [make_replica(config) for _ in range(count)]
    if config.share is not None:
        teachers = Teachers(lambda: (make_shard(config), make_replica(config)))
        for replica in made:
            replica.taught = teachers.taught
    return made


def assemble(config: JobConfig, base: Path, replicas: int | None = None, store: Store | None = None) -> Job:
    """Everything a run needs, nothing started. base: what relative paths in the configuration are relative to;
    replicas: of the model (default: one for each worker); store: where the parameters are (default: in this process).
    """
    log = make_log(config)
    route = DirectRoute(make_shard(config)) if store is None else store
    made = make_replicas(config, config.workers if replicas is None else replicas)
    layout = made[0].layout
    return Job(config, log.schema, log, day_files(config, base), layout, route, made, Statistics(made[0].statistics))


def _check_weights(config: JobConfig, rows: SparseOptimizer, dense: DenseBlock) -> None:
    """Raise ConfigError if a pace weighs steps of an optimizer that has none."""
    of_dense = dense.optimizer.rows if isinstance(dense.optimizer, RowsOptimizer) else None
    for name, chosen in (("sparse", rows), ("dense", of_dense)):
        given = (config.pace, *(switch.pace for switch in config.switch))
        for pace in (each for chosen in given for each in chosen.build_all(config.gradients)):
            weight = pace.weight
            if weight is not None and weight.scales == "step" and chosen is not None and chosen.closed_form:
                raise ConfigError(
                    f"pace.weight.scales: step does not go with optimizer.{name}, whose weights are a function of sums"
                    " of gradients; use scales: gradient"
                )


def _maybe_number(key: str, value: Any) -> Any:
    """YAML reads 1e-3 as text; torch wants a number, and would take an infinite one."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return value
    if isinstance(value, float) and not np.isfinite(value):
        raise ConfigError(f"optimizer.dense.{key}: {value!r} must be a finite number")
    return value
