"""What the columns of a log mean: label, numbers, ids, bags of ids, group."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Transform = Literal["log_bucket", "standardise", "identity"]
Pool = Literal["mean", "sum"]

_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}
_RULE = re.compile(r"\s*(>=|<=|==|!=|>|<)\s*([-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?)\s*")


@dataclass(frozen=True, slots=True)
class Label:
    """The column to predict. positive: None (the column is 0 or 1) or a rule such as '>= 4'."""

    column: str
    positive: str | None = None

    def rule(self) -> tuple[str, float] | None:
        """(operator, number) of the rule. Raises ValueError if it cannot be read."""
        if self.positive is None:
            return None
        match = _RULE.fullmatch(self.positive)
        if match is None:
            raise ValueError(f"{self.positive!r} is no rule; write a comparison with a number, such as '>= 4'")
        return match[1], float(match[2])

    def apply(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
        """Labels 0/1 (float32 [rows]) by the rule."""
        rule = self.rule()
        if rule is None:
            return values.astype(np.float32)
        positive: npt.NDArray[np.float32] = np.asarray(_OPERATORS[rule[0]](values, rule[1])).astype(np.float32)
        return positive


@dataclass(frozen=True, slots=True)
class Numeric:
    """A column of numbers. log_bucket makes it an id; the other transforms make it two inputs of the dense part: the
    value (0 if missing) and 1 if it is missing."""

    column: str
    transform: Transform = "log_bucket"


@dataclass(frozen=True, slots=True)
class Multi:
    """A column of several ids per row: text cut at `separator`, or a list column of Parquet."""

    column: str
    separator: str = "|"
    pool: Pool = "mean"


@dataclass(frozen=True, slots=True)
class Schema:
    """The features of a job. Fields are numbered: bucketed numbers, then categoricals, then bags."""

    label: Label
    numeric: tuple[Numeric, ...] = ()
    categorical: tuple[str, ...] = ()
    multi: tuple[Multi, ...] = ()
    group: str | None = None
    free: bool = True  # the user chose the columns; False: the format has a fixed layout
    made: int = 0  # dense inputs that the loader makes itself

    @property
    def bucketed(self) -> tuple[str, ...]:
        return tuple(n.column for n in self.numeric if n.transform == "log_bucket")

    @property
    def dense(self) -> tuple[Numeric, ...]:
        return tuple(n for n in self.numeric if n.transform != "log_bucket")

    @property
    def single_fields(self) -> tuple[str, ...]:
        """Fields with exactly one id per row, in order."""
        return self.bucketed + self.categorical

    @property
    def fields(self) -> tuple[str, ...]:
        """Every field that has ids, in order."""
        return self.single_fields + tuple(m.column for m in self.multi)

    @property
    def dense_width(self) -> int:
        """Inputs of the dense part: value and missing flag of each number, and what the loader makes."""
        return 2 * len(self.dense) + self.made

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column that has to be read, without repeats."""
        names = [self.label.column, *(n.column for n in self.numeric), *self.categorical]
        names += [m.column for m in self.multi]
        if self.group is not None:
            names.append(self.group)
        return tuple(dict.fromkeys(names))


@dataclass(frozen=True, slots=True)
class Holdout:
    """Of each user and each of `types` (numbers) one interaction is kept for the ranking, if the user has feedback of
    that type on two items or more. last: the latest one, else one at random; all_types: what the user has told of that
    item by other types is not trained on either."""

    last: bool
    types: tuple[int, ...]
    all_types: bool


@dataclass(frozen=True, slots=True)
class Interactions:
    """Feedback of users on items: columns, types from the weakest to the strongest, numbers of the target and of the
    types that are trained on. negatives: items drawn for each interaction; harder: share of them that is drawn from
    the user's items of weaker feedback where there are some; seed: of all draws."""

    user: str
    item: str
    type: str | None
    types: tuple[str, ...]
    target: int
    trained: tuple[int, ...]
    time: str | None
    negatives: int
    harder: float
    holdout: Holdout | None
    seed: int

    def schema(self) -> Schema:
        """What a batch of samples looks like: fields user, item and one for each negative; one dense input, the number
        of the type; the label is 1."""
        drawn = tuple(f"{self.item} drawn {k}" for k in range(1, self.negatives + 1))
        return Schema(Label(""), categorical=(self.user, self.item, *drawn), made=1)


CRITEO_COLUMNS = ("label", *(f"I{i}" for i in range(1, 14)), *(f"C{i}" for i in range(1, 27)))


def criteo_schema() -> Schema:
    """The original Criteo layout: label, I1..I13 (bucketed), C1..C26."""
    return Schema(
        Label("label"),
        tuple(Numeric(c) for c in CRITEO_COLUMNS[1:14]),
        CRITEO_COLUMNS[14:],
        free=False,
    )


def libsvm_schema() -> Schema:
    """libsvm: one bag, 'features', whose values are weights."""
    return Schema(Label("label"), multi=(Multi("features", pool="sum"),), free=False)
