"""Partial sums of a model's operators: a shard's share of them, and what the model is given for their total."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from paceline.exchange.cost import Modes, RowPart, Shape, numbers, whole_bags
from paceline.models.base import Model
from paceline.models.operators import SparseOperator, Totals
from paceline.models.readers import Reader, used


@dataclass(frozen=True, slots=True)
class Slice:
    """Where a parameter lies among a model's flat dense parameters."""

    start: int
    parameter: nn.Parameter

    @property
    def stop(self) -> int:
        return self.start + self.parameter.numel()


@final
class Substitution:
    """The columns of a model's partial sums, [B, width]: for each part that is not moved its field sums; or the field
    sums of its bags, where an operator needs them whole, and each reader's partial; at the end one number for each
    group of readers whose last numbers travel as one.

    `partial` is computed by every shard on its own rows; the sum over the shards is what `given` takes. Both in
    float32, whatever the precision of the model, and on the device that the model is on.
    """

    def __init__(self, model: Model, shape: Shape, modes: Modes, device: torch.device | None = None) -> None:
        self._device = device
        self.parts = tuple(p for p in shape.parts if modes[p.name] != "rows")
        self.width = numbers(shape, modes)
        self._singles, self._fields, self._bags = shape.singles, shape.fields, shape.bags
        self._summed = {p.name for p in self.parts if modes[p.name] == "fields"}
        self._whole_bags = {p.name for p in self.parts if whole_bags(p, modes, shape)}
        by_name = dict(model.named_modules())
        self._readers: list[tuple[Reader, SparseOperator]] = []
        for part in self.parts:
            for reader in (part.readers or ()) if part.name not in self._summed else ():
                operator = by_name[reader.name]
                if not isinstance(operator, SparseOperator):
                    raise TypeError(f"{reader.name} is no sparse operator")
                self._readers.append((reader, operator))
        self._groups = sorted({reader.group for reader, _ in self._readers} - {-1})
        self.slices = self._slices(model)

    def partial(self, rows: Mapping[str, Tensor]) -> Tensor:
        """A shard's share [B, width] of the sums, from rows[part] [B, F, width of the part] pooled from its own rows
        alone."""
        columns: list[Tensor] = []
        for part in self.parts:
            if part.name in self._summed:
                columns.append(rows[part.name].flatten(1))
            elif part.name in self._whole_bags:
                columns.append(rows[part.name][:, self._singles :].flatten(1))
        samples = next(iter(rows.values())).shape[0]
        last: dict[int, Tensor] = {}
        for reader, operator in self._readers:
            of = rows[reader.part]
            if not reader.splits and self._bags:
                of = torch.cat([of[:, : self._singles], torch.zeros_like(of[:, self._singles :])], dim=1)
            flat = operator.partial(of).reshape(samples, -1)
            if reader.group >= 0:
                last[reader.group] = last.get(reader.group, torch.zeros(samples)) + flat[:, -1]
                flat = flat[:, :-1]
            columns.append(flat)
        columns += [last[group].unsqueeze(1) for group in self._groups]
        return torch.cat(columns, dim=1)

    def present(self, fields: Tensor) -> Tensor:
        """Which of the columns [B, width] are sums of anything, where a shard holds rows of the fields bool [B, F]."""
        columns: list[Tensor] = []
        for part in self.parts:
            if part.name in self._summed:
                columns.append(fields.repeat_interleave(part.width, dim=1))
            elif part.name in self._whole_bags:
                columns.append(fields[:, self._singles :].repeat_interleave(part.width, dim=1))
        rest = self.width - sum(column.shape[1] for column in columns)
        return torch.cat([*columns, fields.any(1, keepdim=True).expand(-1, rest)], dim=1)

    def given(self, total: Tensor) -> dict[str, Tensor | Totals]:
        """What the model takes for rows[part], out of the sum [B, width] of all shards' partials."""
        samples, at = total.shape[0], 0
        found: dict[str, Tensor | Totals] = {}
        bags: dict[str, Tensor] = {}
        for part in self.parts:
            fields = self._fields if part.name in self._summed else self._bags
            if part.name in self._summed or part.name in self._whole_bags:
                sums = total[:, at : at + fields * part.width].reshape(samples, fields, part.width)
                at += fields * part.width
                if part.name in self._summed:
                    found[part.name] = sums
                else:
                    bags[part.name] = torch.cat([sums.new_zeros(samples, self._singles, part.width), sums], dim=1)
        last = dict(zip(self._groups, total[:, self.width - len(self._groups) :].unbind(1), strict=True))
        taken: dict[tuple[str, SparseOperator], Tensor] = {}
        for reader, operator in self._readers:
            count = reader.numbers - (reader.group >= 0)
            flat = total[:, at : at + count]
            at += count
            if reader.group >= 0:  # the first of the group takes it all
                rest = last.pop(reader.group, None)
                flat = torch.cat([flat, (total.new_zeros(samples) if rest is None else rest).unsqueeze(1)], dim=1)
            whole = flat.reshape(samples, *reader.shape)
            if not reader.splits and self._bags:
                whole = whole + operator.partial(bags[reader.part])
            taken[reader.part, operator] = whole
        found |= {part.name: _totals(part, taken) for part in self.parts if part.name not in self._summed}
        return found

    def _slices(self, model: Model) -> list[Slice]:
        """Of the parameters that the partials depend on."""
        widths = {part.name: part.width for part in self.parts}
        needed: set[nn.Parameter] = set()
        for reader, operator in self._readers:
            needed.update(used(operator, torch.zeros(1, self._fields, widths[reader.part], device=self._device)))
        found, start = [], 0
        for parameter in model.parameters():
            if parameter in needed:
                found.append(Slice(start, parameter))
            start += parameter.numel()
        return found


def _totals(part: RowPart, taken: Mapping[tuple[str, SparseOperator], Tensor]) -> Totals:
    return Totals(lambda operator: taken[part.name, operator])
