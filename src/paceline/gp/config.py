"""The keys of a factorization's job.yaml and what they may be (docs/gp-factorization.md). `paceline.jobfile` reads
the file.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, field_validator, model_validator

from paceline.keys import Strict, keyed


class ContextConfig(Strict):
    """A context: a column of values (categorical), or of numbers (real)."""

    column: str
    kind: Literal["categorical", "real"] = "categorical"


class RatingsConfig(Strict):
    """Where the ratings are and what their columns mean."""

    files: str | list[str]
    format: Literal["csv", "tsv", "parquet"] = "csv"
    test: str | list[str] | None = None
    columns: list[str] | None = None
    user: str
    item: str
    rating: str
    contexts: list[Annotated[ContextConfig, keyed("column")]] = []
    missing: list[str] = ["", "NA", "NULL"]
    on_bad_row: Literal["error", "skip"] = "error"

    @field_validator("files", "test")
    @classmethod
    def _some(cls, value: str | list[str] | None) -> str | list[str] | None:
        if value is not None and (not value or not all(value)):
            raise ValueError("empty; name at least one file")
        return value

    @model_validator(mode="after")
    def _distinct(self) -> RatingsConfig:
        names = self.used()
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise ValueError(f"column {twice[0]!r} is used twice")
        if self.columns is not None and self.format == "parquet":
            raise ValueError("columns are for csv and tsv, a Parquet file has names")
        return self

    def used(self) -> list[str]:
        """The columns that are read."""
        return [self.user, self.item, self.rating, *(c.column for c in self.contexts)]


class SplitConfig(Strict):
    """Random shares of the rows, drawn with the job's seed: of all rows (test), then of what is left (validation)."""

    test: float = Field(0.2, gt=0, lt=1)
    validation: float = Field(0.0, ge=0, lt=1)


_LATENT = ("dim", "context_dim", "start")
_MODEL_OPTIONS: dict[str, tuple[str, ...]] = {
    "mean": (),
    "fm": ("dim", "l2", "l2_factors", "start"),
    "gpfm": (*_LATENT, "covariance", "length", "amplitude", "noise"),
    "gplvmf": ("dim", "context_dim", "inducing", "user_deviation", "biases", "warmup"),
}


class ModelConfig(Strict):
    """Which model, and its options."""

    name: Literal["mean", "fm", "gpfm", "gplvmf"]
    dim: int = Field(4, ge=1, le=64)
    context_dim: int = Field(1, ge=1, le=64)
    start: float = Field(0.1, gt=0, allow_inf_nan=False)
    l2: float = Field(5.0, ge=0, allow_inf_nan=False)
    l2_factors: float = Field(20.0, ge=0, allow_inf_nan=False)
    covariance: Literal["rbf", "linear", "polynomial"] = "rbf"
    length: float = Field(2.0, gt=0, allow_inf_nan=False)
    amplitude: float = Field(0.8, gt=0, allow_inf_nan=False)
    noise: float = Field(0.8, gt=0, allow_inf_nan=False)
    inducing: int = Field(24, ge=1, le=1024)
    user_deviation: float = Field(0.5, ge=0, allow_inf_nan=False)
    warmup: int = Field(8, ge=0)
    biases: Literal["variational", "deterministic"] = "variational"

    @model_validator(mode="before")
    @classmethod
    def _own_start(cls, values: Any) -> Any:
        """GPFM's vectors start wider than factors do."""
        return {"start": 2.0, **values} if isinstance(values, dict) and values.get("name") == "gpfm" else values

    @model_validator(mode="after")
    def _belongs(self) -> ModelConfig:
        for key in self.model_fields_set - {"name"}:
            if key not in _MODEL_OPTIONS[self.name]:
                known = ", ".join(_MODEL_OPTIONS[self.name]) or "none"
                raise ValueError(f"the model {self.name!r} has no option {key!r} (its options: {known})")
        return self


_RATES = {"sgd": 5e-4, "adam": 0.03}
_USERS = {"sgd": 1, "adam": 8}
_METHODS = {"mean": (), "fm": ("lbfgs", "adam"), "gpfm": ("adam", "sgd", "lbfgs"), "gplvmf": ("adam", "lbfgs")}


class TrainingConfig(Strict):
    """How a model is fitted. An epoch is a pass over all users; with lbfgs, `iterations` iterations on all of them."""

    method: Literal["lbfgs", "sgd", "adam"] | None = None
    epochs: int = Field(20, ge=1)
    iterations: int = Field(20, ge=1)
    lr: float | None = Field(None, gt=0, allow_inf_nan=False)
    momentum: float = Field(0.9, ge=0, lt=1)
    users: int | None = Field(None, ge=1)


class FactorizeConfig(Strict):
    """A factorization job."""

    ratings: RatingsConfig
    split: SplitConfig = SplitConfig()
    model: Annotated[ModelConfig, keyed("name")] = ModelConfig(name="gplvmf")
    training: TrainingConfig = TrainingConfig()
    relevant: float = Field(4.0, allow_inf_nan=False)
    seed: int = Field(0, ge=0, lt=2**63)

    @model_validator(mode="after")
    def _fits(self) -> FactorizeConfig:
        known = _METHODS[self.model.name]
        if self.training.method is not None and self.training.method not in known:
            raise ValueError(
                f"training.method: {self.training.method!r} does not fit the model {self.model.name!r}"
                f" (for it: {', '.join(known) or 'none, there is nothing to train'})"
            )
        if self.ratings.test is not None and "test" in self.split.model_fields_set:
            raise ValueError("split.test: ratings.test names files for the test; leave one of the two out")
        return self

    @property
    def method(self) -> str:
        """How the model is fitted: as given, or its first."""
        return self.training.method or next(iter(_METHODS[self.model.name]), "none")

    @property
    def rate(self) -> float:
        """The learning rate: as given, or what suits the method."""
        return self.training.lr or _RATES.get(self.method, 1.0)

    @property
    def step_users(self) -> int:
        """Users in a step: as given, or what suits the method."""
        return self.training.users or _USERS.get(self.method, 1)

    def to_yaml(self) -> str:
        """The resolved configuration; options that another model has are left out."""
        values: dict[str, Any] = self.model_dump(mode="json")
        keep = ("name", *_MODEL_OPTIONS[self.model.name])
        values["model"] = {key: value for key, value in values["model"].items() if key in keep}
        values["training"]["method"] = None if self.method == "none" else self.method
        if self.method in _RATES:
            values["training"] |= {"lr": self.rate, "users": self.step_users}
        if self.ratings.test is not None:
            del values["split"]["test"]
        return yaml.safe_dump(values, sort_keys=False)
