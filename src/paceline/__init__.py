"""paceline: train CTR and recommender models from click logs at a pace that may change while it runs.

What a program may import from here is `__all__`; docs/api.md lists it. Heavy names load when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from paceline.config import JobConfig
    from paceline.errors import (
        ConfigError,
        DataError,
        LossError,
        PaceError,
        PacelineError,
        RunDirError,
        StorageError,
        TrainingError,
        UserError,
    )
    from paceline.evaluate import evaluate_run, predict_run
    from paceline.jobfile import load_config
    from paceline.models.base import Inputs, Model, Part
    from paceline.models.normalise import LocalBatchNorm
    from paceline.models.operators import FactorTerm, FieldSum, FirstProjection, LinearTerm, SparseOperator
    from paceline.pace.values import (
        Pace,
        asynchronous,
        backup_workers,
        bounded_staleness,
        bulk_synchronous,
        damped,
        gba,
        sync,
    )
    from paceline.params.sparse import Clock, SparseOptimizer
    from paceline.training import train

_HOMES = {
    "paceline.config": ("JobConfig",),
    "paceline.jobfile": ("load_config",),
    "paceline.errors": (
        "ConfigError",
        "DataError",
        "LossError",
        "PaceError",
        "PacelineError",
        "RunDirError",
        "StorageError",
        "TrainingError",
        "UserError",
    ),
    "paceline.evaluate": ("evaluate_run", "predict_run"),
    "paceline.models.base": ("Inputs", "Model", "Part"),
    "paceline.models.normalise": ("LocalBatchNorm",),
    "paceline.models.operators": ("FactorTerm", "FieldSum", "FirstProjection", "LinearTerm", "SparseOperator"),
    "paceline.pace.values": (
        "Pace",
        "asynchronous",
        "backup_workers",
        "bounded_staleness",
        "bulk_synchronous",
        "damped",
        "gba",
        "sync",
    ),
    "paceline.params.sparse": ("Clock", "SparseOptimizer"),
    "paceline.training": ("train",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Clock",
    "ConfigError",
    "DataError",
    "FactorTerm",
    "FieldSum",
    "FirstProjection",
    "Inputs",
    "JobConfig",
    "LinearTerm",
    "LocalBatchNorm",
    "LossError",
    "Model",
    "Pace",
    "PaceError",
    "PacelineError",
    "Part",
    "RunDirError",
    "SparseOperator",
    "SparseOptimizer",
    "StorageError",
    "TrainingError",
    "UserError",
    "asynchronous",
    "backup_workers",
    "bounded_staleness",
    "bulk_synchronous",
    "damped",
    "evaluate_run",
    "gba",
    "load_config",
    "predict_run",
    "sync",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'paceline' has no attribute {name!r}")
