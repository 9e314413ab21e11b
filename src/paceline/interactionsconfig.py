"""The key `interactions` of job.yaml: feedback of users on items, of several types."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from paceline.keys import Strict
from paceline.schema import Holdout, Interactions

ONE_TYPE = "interaction"  # what the only type is called where no column tells types apart


class HoldoutConfig(Strict):
    """Which interactions are kept for the ranking instead of being trained on."""

    rows: Literal["last", "random"]
    types: list[str] | None = None
    all_types: bool = False


class RankingConfig(Strict):
    """How interactions that were held out are ranked."""

    at: list[int] = [10]
    candidates: int = Field(99, ge=1, le=10_000)
    most: int = Field(100_000, ge=1)
    every: int = Field(1, ge=1)

    @field_validator("at")
    @classmethod
    def _some(cls, value: list[int]) -> list[int]:
        if not value or min(value) < 1:
            raise ValueError(f"{value} must be one rank or more, each at least 1, such as [10]")
        return sorted(set(value))


class InteractionsConfig(Strict):
    """Columns, types of feedback, what is drawn and what is held out (docs/mrmn.md)."""

    user: str
    item: str
    type: str | None = None
    types: list[str] = [ONE_TYPE]
    target: str | None = None
    train: list[str] | None = None
    time: str | None = None
    negatives: int = Field(4, ge=1, le=1000)
    harder: float = Field(0.0, ge=0.0, le=1.0, allow_inf_nan=False)
    epochs: int = Field(1, ge=1, le=1_000_000)
    holdout: HoldoutConfig | None = None
    test: str | list[str] | None = None
    ranking: RankingConfig = RankingConfig()

    @model_validator(mode="after")
    def _fits(self) -> InteractionsConfig:
        columns = [c for c in (self.user, self.item, self.type, self.time) if c is not None]
        twice = sorted({c for c in columns if columns.count(c) > 1})
        if twice:
            raise ValueError(f"column {twice[0]!r} is used twice")
        if self.type is None and self.types != [ONE_TYPE]:  # a resolved configuration has it written out
            raise ValueError("types: without `type`, the column that tells types apart, there is one type only")
        if self.type is not None and "types" not in self.model_fields_set:
            raise ValueError("types: needed with `type`: its values, the weakest feedback first, such as [view, buy]")
        repeated = sorted({t for t in self.types if self.types.count(t) > 1})
        if not self.types or repeated or not all(self.types):
            raise ValueError(f"types {self.types} must be names, each once, the weakest feedback first")
        self._known("target", [] if self.target is None else [self.target])
        self._known("train", self.train)
        self._known("holdout.types", None if self.holdout is None else self.holdout.types)
        if self.holdout is not None and self.test is not None:
            raise ValueError("holdout and test: either rows are held out, or files are given; leave one of them out")
        if self.test is not None and not self.test:
            raise ValueError("test: names no file; leave it out for none")
        if self.holdout is not None and self.holdout.rows == "last" and self.time is None:
            raise ValueError("holdout.rows: last needs `time`, the column that says when; without times use random")
        return self

    def _known(self, key: str, names: list[str] | None) -> None:
        if names is not None and not names and key != "target":
            raise ValueError(f"{key} is empty; leave it out for its default, or name some of {', '.join(self.types)}")
        for name in names or []:
            if name not in self.types:
                raise ValueError(f"{key}: {name!r} is none of the types ({', '.join(self.types)})")

    @property
    def tests(self) -> list[str]:
        """The patterns of the test files."""
        return [self.test] if isinstance(self.test, str) else list(self.test or [])

    def build(self, seed: int) -> Interactions:
        """What the loader takes."""
        number = {name: i for i, name in enumerate(self.types)}
        target = self.target or self.types[-1]
        held = None
        if self.holdout is not None:
            chosen = tuple(number[t] for t in self.holdout.types or [target])
            held = Holdout(self.holdout.rows == "last", chosen, self.holdout.all_types)
        trained = tuple(number[t] for t in self.train or self.types)
        return Interactions(
            self.user, self.item, self.type, tuple(self.types), number[target], trained, self.time, self.negatives,
            self.harder, held, seed,
        )  # fmt: skip
