"""From a configuration to the things that train: files, model, parameters, replicas."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from paceline.config import JobConfig
from paceline.data.draw import InteractionLog
from paceline.data.files import expand
from paceline.data.stream import Log, Source
from paceline.data.text import Dialect
from paceline.errors import ConfigError
from paceline.exchange.direct import DirectRoute
from paceline.models.base import Inputs, Model, Normalised, Part
from paceline.models.drawing import drawing
from paceline.models.normalise import LocalBatchNorm
from paceline.models.registry import build_model
from paceline.naming import look_up
from paceline.params.dense import DenseBlock, make_optimizer, slices
from paceline.params.dense_rows import RowsOptimizer
from paceline.params.helpers import Helpers
from paceline.params.row_optimizers import BUILT_IN, row_optimizer
from paceline.params.shard import Shard
from paceline.params.sparse import SparseOptimizer
from paceline.params.table import Table
from paceline.runtimes.body import Store
from paceline.runtimes.compute import Layout, Replica
from paceline.runtimes.device import find_device
from paceline.runtimes.holding import Holding
from paceline.runtimes.local import settle_thread
from paceline.runtimes.statistics import Statistics
from paceline.schema import CRITEO_COLUMNS, Schema
from paceline.teachers import Teachers


@dataclass(frozen=True, slots=True)
class Job:
    """What a configuration stands for. days: the files of each day."""

    config: JobConfig
    schema: Schema
    source: Source
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

    @property
    def log(self) -> Log:
        """How a job of labelled rows reads them."""
        assert isinstance(self.source, Log)
        return self.source

    @property
    def interactions(self) -> InteractionLog | None:
        """How a job of interactions reads them."""
        return self.source if isinstance(self.source, InteractionLog) else None


def day_files(config: JobConfig, base: Path) -> list[list[str]]:
    """The files of each day, in time order; of interactions, all files for each epoch. Raises DataError if a pattern
    matches nothing."""
    days = config.data.days
    if config.interactions is not None:
        groups = [days] if isinstance(days, str) else [[day] if isinstance(day, str) else day for day in days]
        patterns = [pattern for group in groups for pattern in ([group] if isinstance(group, str) else group)]
        return [[path for pattern in patterns for path in expand(pattern, base)]] * config.interactions.epochs
    if isinstance(days, str):
        return [[path] for path in expand(days, base)]
    found = []
    for day in days:
        patterns = [day] if isinstance(day, str) else day
        found.append([path for pattern in patterns for path in expand(pattern, base)])
    return found


def make_source(config: JobConfig, base: Path) -> Source:
    """How the job's files are read. Raises DataError if a test file of interactions is not there."""
    given = config.interactions
    if given is None:
        return make_log(config)
    tests = [path for pattern in given.tests for path in expand(pattern, base, "interactions.test")]
    skip = config.data.on_bad_row == "skip"
    return InteractionLog(given.build(config.seed), make_dialect(config), skip, tests, given.ranking.most)


def make_log(config: JobConfig) -> Log:
    """How the files of labelled rows are read."""
    return Log(config.data.format, config.log_schema(), make_dialect(config), config.data.on_bad_row == "skip")


def make_dialect(config: JobConfig) -> Dialect | None:
    """Of text with columns; None for other formats."""
    data = config.data
    match data.format:
        case "criteo":
            return Dialect("\t", None, CRITEO_COLUMNS)
        case "csv" | "tsv":
            delimiter = data.delimiter or ("," if data.format == "csv" else "\t")
            return Dialect(delimiter, data.quote, tuple(data.columns) if data.columns else None)
    return None


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
    types = () if config.interactions is None else tuple(config.interactions.types)
    return Inputs(schema.fields, schema.dense_width, config.normalise, types)


def make_shard(config: JobConfig, index: int = 0, shards: int = 1, threads: int = 1) -> Shard:
    """The shard `index` of `shards`, empty: its table, and its slice of the dense parameters. threads: that share the
    rows of an update."""
    model = make_model(config, make_inputs(config))
    parts = model.parts()
    names = None if shards == 1 else slices(model, shards)[index]
    # A uniform number in +-b has standard deviation b / sqrt(3).
    bounds = np.concatenate([np.full(part.width, part.std * 3**0.5, np.float32) for part in parts])
    sparse = config.optimizer.sparse
    optimizer = sparse_optimizer(sparse.name, dict(sparse.options))
    balls, helpers = _balls(parts, optimizer), Helpers(threads, settle_thread)
    table = Table(bounds, optimizer, config.drawn_seed, balls=balls, helpers=helpers, half=sparse.rows == "bf16")
    dense_options = {key: _maybe_number(key, value) for key, value in config.optimizer.dense.options.items()}
    dense = DenseBlock(model, make_optimizer(config.optimizer.dense.name, dense_options, model, names), names)
    _check_weights(config, optimizer, dense)
    return Shard(table, dense, sparse.reduce)


def _balls(parts: tuple[Part, ...], optimizer: SparseOptimizer) -> tuple[tuple[int, int, float], ...]:
    """Where rows are kept short (`Part.max_norm`). Raises ConfigError if the optimizer would not notice."""
    stops = np.cumsum([part.width for part in parts]).tolist()
    found = [
        (stop - part.width, stop, part.max_norm)
        for part, stop in zip(parts, stops, strict=True)
        if part.max_norm is not None
    ]
    if found and optimizer.closed_form:
        raise ConfigError(
            "optimizer.sparse.name: the model keeps its rows in a ball, which does not go with an optimizer whose"
            " weights are a function of sums of gradients; use adam, adagrad, rowwise_adagrad, rmsprop or sgd"
        )
    return tuple(found)


def make_replica(config: JobConfig, device: str = "cpu", reserved: bool = False) -> Replica:
    """A worker's model, that computes on a device (see `find_device`)."""
    schema, model = config.log_schema(), make_model(config, make_inputs(config))
    layout = Layout(model.parts(), len(schema.single_fields), len(schema.multi))
    distil = config.codistill.weight if config.codistill else 0.0
    return Replica(model, layout, config.precision, distil, find_device(device, reserved))


def make_replicas(config: JobConfig, count: int, device: str = "cpu", reserved: bool = False) -> list[Replica]:
    """Those of a process; in a codistillation they have their teachers in common."""
    made = [make_replica(config, device, reserved) for _ in range(count)]
    if config.share is not None:
        teachers = Teachers(lambda: (make_shard(config), make_replica(config)))
        for replica in made:
            replica.taught = teachers.taught
    return made


def assemble(
    config: JobConfig,
    base: Path,
    replicas: int | None = None,
    store: Store | None = None,
    device: str | None = None,
) -> Job:
    """Everything a run needs, nothing started. base: what relative paths in the configuration are relative to;
    replicas: of the model (default: one for each worker); store: where the parameters are (default: in this process);
    device: where the replicas compute (default: what the configuration says, but the CPU if workers are elsewhere).
    """
    device = device or (config.device if store is None else "cpu")
    source = make_source(config, base)
    count = config.workers if replicas is None else replicas
    threads = min(count, len(os.sched_getaffinity(0)))
    route = DirectRoute(make_shard(config, threads=threads)) if store is None else store
    made = make_replicas(config, count, device)
    layout = made[0].layout
    statistics = Statistics(made[0].statistics, make_holding(config, made[0].model))
    return Job(config, source.schema, source, day_files(config, base), layout, route, made, statistics)


def make_holding(config: JobConfig, model: Model) -> Holding | None:
    """What workers hold back of their gradients, if the job has them do so."""
    thinning = None if config.compress is None else config.compress.thinning
    if thinning is None:
        return None
    return Holding([parameter.numel() for parameter in model.parameters()], thinning)


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
