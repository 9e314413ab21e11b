"""Which operators of a model read which part of the rows: found by running the model, not by lists kept by hand."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from paceline.models.base import Model
from paceline.models.drawing import drawing
from paceline.models.operators import SparseOperator, Totals

_Take = Callable[[str, SparseOperator], Tensor]
_SAMPLES = 16
_CLOSE = 1e-4  # in float32, of numbers of the order of 1


@dataclass(frozen=True, slots=True)
class Reader:
    """An operator that reads a part. name: of the module in the model; shape: of its partial, without the samples;
    parameters: how many dense parameters its partial uses (each shard then needs them); splits: whether it is additive
    within a field, too, so that a bag may lie on several shards; group: readers of one group (>= 0) enter the logits
    by the sum of their partials' last numbers alone."""

    part: str
    name: str
    shape: tuple[int, ...]
    parameters: int
    splits: bool
    group: int = -1

    @property
    def numbers(self) -> int:
        """Of a sample, in its partial."""
        return math.prod(self.shape)


Readers = Mapping[str, tuple[Reader, ...] | None]


def readers_of(model: Model, fields: int, dense: int) -> Readers:
    """For each part the operators that read it, or None where the model needs the part's rows themselves.

    fields, dense: number of id fields and dense inputs. The model is copied, given random parameters and run on a few
    random rows: with `Totals` for a part it must not touch the part except by operators, and come to the same logits;
    the operators' partials must be additive. The answer depends on neither the model's parameters nor torch's seed.
    """
    with drawing(0):
        trial = _Trial(model, fields, dense)
        found = {part: trial.readers(part) for part in trial.rows}
        return trial.grouped(found)


class _Trial:
    """A model with parameters of no meaning, and rows to run it on."""

    def __init__(self, model: Model, fields: int, dense: int) -> None:
        torch.manual_seed(0)
        self._model = copy.deepcopy(model)
        with torch.no_grad():
            for parameter in self._model.parameters():  # none near 0 or 1, where a factor would not show
                size = 0.1 + 0.2 * torch.rand(parameter.shape)
                parameter.copy_(torch.where(torch.rand(parameter.shape) < 0.5, -size, size))
        self.rows = {part.name: torch.randn(_SAMPLES, fields, part.width) for part in model.parts()}
        self._dense = torch.randn(_SAMPLES, dense)
        self._halves = (torch.rand(_SAMPLES, fields, 1) < 0.5).float()
        self._logits = self._run({})

    def readers(self, part: str) -> tuple[Reader, ...] | None:
        """Of `part`, in the order in which they read it."""
        found: dict[str, Reader] = {}

        def take(name: str, operator: SparseOperator) -> Tensor:
            found.setdefault(name, self._reader(part, name, operator))
            return operator.partial(self.rows[part])

        try:
            logits = self._run({part: take})
        except Exception:  # whatever a model's own code makes of something that is no tensor
            return None
        return tuple(found.values()) if _close(logits, self._logits) else None

    def grouped(self, found: Readers) -> Readers:
        """The same, with groups: a number may move from one reader's partial to another's and no logit changes."""
        groups: list[list[Reader]] = []
        for reader in (reader for readers in found.values() for reader in readers or ()):
            for group in groups:
                if self._exchangeable(group[0], reader):
                    group.append(reader)
                    break
            else:
                groups.append([reader])
        number = {id(reader): i for i, group in enumerate(groups) if len(group) > 1 for reader in group}
        return {
            part: None if readers is None else tuple(replace(r, group=number.get(id(r), -1)) for r in readers)
            for part, readers in found.items()
        }

    def _exchangeable(self, a: Reader, b: Reader) -> bool:
        for seed in range(2):
            torch.manual_seed(seed)
            amount = (1 + torch.rand(_SAMPLES)) * torch.where(torch.rand(_SAMPLES) < 0.5, -1.0, 1.0)
            alone = self._moved({(a.part, a.name): amount}) - self._logits
            both = self._moved({(a.part, a.name): amount, (b.part, b.name): -amount})
            if not (_close(both, self._logits) and bool((alone.abs() > 100 * _tolerance(self._logits)).all())):
                return False
        return True

    def _moved(self, amounts: Mapping[tuple[str, str], Tensor]) -> Tensor:
        """Logits with `amounts` added to the last number of partials."""

        def taker(part: str) -> _Take:
            def take(name: str, operator: SparseOperator) -> Tensor:
                partial = operator.partial(self.rows[part])
                flat = partial.reshape(_SAMPLES, -1).clone()
                flat[:, -1] += amounts.get((part, name), torch.zeros(_SAMPLES))
                return flat.view(partial.shape)

            return take

        return self._run({part: taker(part) for part, _ in amounts})

    def _reader(self, part: str, name: str, operator: SparseOperator) -> Reader:
        rows = self.rows[part]
        whole, one = operator.partial(rows), operator.partial(rows * self._halves)
        other = operator.partial(rows * (1 - self._halves))
        if whole.shape[0] != _SAMPLES or not whole[0].numel() or not _close(one + other, whole):
            raise ValueError(f"{name}: its partial is not additive over shards")
        splits = _close(operator.partial(0.5 * rows + 1) + operator.partial(0.5 * rows - 1), whole)
        return Reader(part, name, tuple(whole.shape[1:]), sum(p.numel() for p in used(operator, rows)), splits)

    @torch.no_grad()
    def _run(self, takers: Mapping[str, _Take]) -> Tensor:
        torch.manual_seed(1)  # a model may draw numbers
        model = copy.deepcopy(self._model)  # a run may change its statistics
        names = {module: name for name, module in model.named_modules()}

        def totals(take: _Take) -> Totals:
            return Totals(lambda operator: take(names[operator], operator))

        given: dict[str, Tensor | Totals] = {part: rows.clone() for part, rows in self.rows.items()}
        given |= {part: totals(take) for part, take in takers.items()}
        logits: Tensor = model(cast(Mapping[str, Tensor], given), self._dense)
        return logits


def used(operator: SparseOperator, rows: Tensor) -> list[nn.Parameter]:
    """The operator's parameters that its partial of rows [B, F, width] depends on."""
    with torch.enable_grad():
        partial = operator.partial(rows)
        parameters = list(operator.parameters())
        if not (parameters and partial.requires_grad):
            return []
        gradients = torch.autograd.grad(partial.sum(), parameters, allow_unused=True)
    return [p for p, gradient in zip(parameters, gradients, strict=True) if gradient is not None]


def _tolerance(of: Tensor) -> float:
    return _CLOSE * (1 + float(of.abs().max()))


def _close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(((a - b).abs() <= _tolerance(b)).all())
