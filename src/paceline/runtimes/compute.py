"""One step of a worker: from pulled rows to loss and gradient."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from paceline.batch import Batch, Floats
from paceline.errors import UserError
from paceline.exchange.direct import Pulled
from paceline.kernels import rows as kernels
from paceline.models.base import Model, Part
from paceline.models.normalise import LocalBatchNorm, flatten_statistics
from paceline.models.operators import Totals
from paceline.params.dense import flatten
from paceline.params.feedback import Feedback
from paceline.params.shard import Gradient
from paceline.runtimes.coordinator import Lease
from paceline.runtimes.device import DeviceCopy

Precision = Literal["fp32", "bf16"]
CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the parts of a row begin, and how many fields have one id and how many are bags."""

    parts: tuple[Part, ...]
    singles: int
    bags: int

    @property
    def width(self) -> int:
        return sum(p.width for p in self.parts)

    def begins(self) -> list[int]:
        return [sum(p.width for p in self.parts[:i]) for i in range(len(self.parts))]


def rows_of(layout: Layout, batch: Batch, pulled: Pulled) -> dict[str, Tensor]:
    """rows[part] float32 [B, fields, width]: bags pooled, in the order of the fields."""
    return {name: rows[0] for name, rows in stacked_rows(layout, [batch], [pulled]).items()}


def stacked_rows(layout: Layout, batches: list[Batch], pulled: list[Pulled]) -> dict[str, Tensor]:
    """rows[part] float32 [K, B, fields, width] of K batches of B rows each."""
    found: dict[str, Tensor] = {}
    samples, singles = batches[0].samples, layout.singles
    for part, begin in zip(layout.parts, layout.begins(), strict=True):
        stacked = np.empty((len(batches), samples, singles + layout.bags, part.width), np.float32)
        for out, batch, its in zip(stacked, batches, pulled, strict=True):
            kernels.pool_singles(its.weights, its.inverse, singles, begin, out)
            start = samples * singles
            for field, bag in enumerate(batch.bags, singles):
                inverse = its.inverse[start : start + bag.ids.shape[0]]
                kernels.pool_bag(its.weights, inverse, bag.offsets, bag.weights, begin, field, out)
                start += bag.ids.shape[0]
        found[part.name] = torch.from_numpy(stacked)
    return found


def row_sums(layout: Layout, batch: Batch, pulled: Pulled, gradients: list[Floats]) -> Floats:
    """The way back: gradients of rows[part], float32 [B, fields, width], summed over the positions of each distinct id,
    float32 [n, width]."""
    sums: Floats = np.zeros(pulled.weights.shape, np.float32)
    samples, singles = batch.samples, layout.singles
    begin = 0
    for part, values in zip(layout.parts, gradients, strict=True):
        kernels.spread_singles(values, pulled.inverse, singles, begin, sums)
        start = samples * singles
        for field, bag in enumerate(batch.bags, singles):
            inverse = pulled.inverse[start : start + bag.ids.shape[0]]
            kernels.spread_bag(values, inverse, bag.offsets, bag.weights, begin, field, sums)
            start += bag.ids.shape[0]
        begin += part.width
    return sums


def sent(gradient: Gradient, feedback: Feedback | None, version: int) -> Gradient:
    """What a worker with such a feedback sends of a gradient that was computed on `version`. Call it once for each,
    when it is found sound."""
    if feedback is None:
        return gradient
    return dataclasses.replace(gradient, dense=feedback.filter(gradient.dense, version))


class Replica:
    """A worker's own copy of the model. `flat` is its dense parameters; a pull copies the shard's into it.
    `statistics`: of its local batch normalisation, which change as it computes gradients. distil: weight of the loss
    against what other models predict, where a batch has that; device: where it computes. All that is taken and given
    is in host memory."""

    def __init__(
        self,
        model: Model,
        layout: Layout,
        precision: Precision,
        distil: float = 0.0,
        device: torch.device = CPU,
    ) -> None:
        self.model = model
        self.layout = layout
        self.precision = precision
        self.distil = distil
        self.flat = flatten(model)
        self.statistics = flatten_statistics(model)
        self.turn: AbstractContextManager[None] = nullcontext()  # held while it computes
        self.taught: Callable[[Lease], Lease] = lambda lease: (
            lease
        )  # what teachers predict for a batch, where it has any
        self.device = device
        self.feedback: Feedback | None = None  # of the worker that it serves, if that holds back some of its gradients
        self._parameters = list(model.parameters())
        self._copy: DeviceCopy | None = None
        if device != CPU:
            self.compute_on(DeviceCopy(model, device))

    def compute_on(self, there: DeviceCopy) -> None:
        """From now on `there` computes in the model's place."""
        self._copy, self._parameters = there, there.parameters

    @property
    def computes(self) -> Model:
        """The model that computes: this one, or its copy on the device."""
        return self.model if self._copy is None else self._copy.model

    def upload(self) -> None:
        """Give the model that computes the parameters and statistics as they are now."""
        if self._copy is not None:
            self._copy.take(self.flat, self.statistics, self.model.training)

    def logits(self, batch: Batch, rows: Mapping[str, Tensor | Totals]) -> Tensor:
        """Logits float32 [B] (of a ranking model: what its hinge is of, [B, negatives])."""
        model, dense, there = self.model, torch.from_numpy(batch.dense), self._copy
        if there is not None:
            self.upload()
            model, dense, rows = there.model, dense.to(there.device), there.rows(rows)
        with torch.autocast(dense.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
            out: Tensor = model(rows, dense)
        if there is not None:
            there.return_statistics(self.statistics)
        return _shaped(model, out, batch.samples).float().cpu()

    def gradient(self, batch: Batch, pulled: Pulled) -> tuple[float, Gradient]:
        """(mean loss, its gradient) on the pulled parameters."""
        rows = rows_of(self.layout, batch, pulled)
        for tensor in rows.values():
            tensor.requires_grad_()
        loss, dense, grads = self.differentiate(batch, rows, list(rows.values()))
        sums = row_sums(self.layout, batch, pulled, [g.contiguous().numpy() for g in grads])
        return loss, Gradient(dense, pulled.numbers, sums, pulled.counts, pulled.applied)

    def differentiate(
        self, batch: Batch, rows: dict[str, Tensor], leaves: list[Tensor]
    ) -> tuple[float, Tensor, list[Tensor]]:
        """(mean loss against the labels; the gradient by the dense parameters [parameters] and by each of the leaves of
        `rows`, of it and of the loss against the teachers)."""
        with self.turn:
            return self._differentiate(batch, rows, leaves)

    def _differentiate(
        self, batch: Batch, rows: dict[str, Tensor], leaves: list[Tensor]
    ) -> tuple[float, Tensor, list[Tensor]]:
        logits = self.logits(batch, rows)
        loss = self.model.loss(logits, torch.from_numpy(batch.labels))
        inputs = [*self._parameters, *leaves]
        whole = loss
        if batch.soft is not None:
            soft = torch.nn.functional.binary_cross_entropy_with_logits(logits, torch.from_numpy(batch.soft))
            whole = loss + self.distil * soft
        grads = torch.autograd.grad(whole, inputs, allow_unused=True, materialize_grads=True)
        count = len(self._parameters)
        dense = torch.cat([g.reshape(-1) for g in grads[:count]]).cpu() if count else torch.zeros(0)
        return float(loss.detach()), dense, list(grads[count:])

    def score(self, batch: Batch, pulled: Pulled) -> Tensor:
        """Logits float32 [B], in the mode that the model is in."""
        return self.logits(batch, rows_of(self.layout, batch, pulled))

    @torch.no_grad()
    def predict(self, batch: Batch, pulled: Pulled) -> Floats:
        """Logits as numpy float32 [B]; no gradient is kept."""
        self.model.eval()
        scores: Floats = self.score(batch, pulled).numpy()
        self.model.train()
        return scores


def _shaped(model: Model, out: Tensor, rows: int) -> Tensor:
    """What the model returned for so many rows. Raises UserError if it is not of the shape that its loss takes."""
    shape = model.shape(rows)
    if out.shape != shape:
        what = "logits" if shape == (rows,) else "numbers"
        raise UserError(f"model: forward must return {what} of shape {[*shape]} (one a row), not {[*out.shape]}")
    return out


class StackedReplica:
    """Gradients of several workers in one go: the model is mapped over their parameters, rows and statistics."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        model = replica.model
        self._parameters = [(name, p.shape, p.numel()) for name, p in model.named_parameters()]
        norms = [(name, m) for name, m in model.named_modules() if isinstance(m, LocalBatchNorm)]
        self._statistics = [
            (f"{name}.{kind}", getattr(norm, kind).numel())
            for kind in LocalBatchNorm.statistics
            for name, norm in norms
        ]

    def gradients(
        self, batches: list[Batch], pulled: list[Pulled], dense: Tensor, statistics: Tensor
    ) -> list[tuple[float, Gradient, Tensor]]:
        """(mean loss, its gradient, new statistics) of each of K batches of the same number of rows, on its own
        pulled rows, dense parameters [K, P] and statistics [K, S]."""
        replica = self._replica
        rows = stacked_rows(replica.layout, batches, pulled)
        for tensor in rows.values():
            tensor.requires_grad_()
        dense.requires_grad_()
        state: dict[str, Tensor] = {}
        parts = torch.split(dense, [size for *_, size in self._parameters], dim=1)
        for (name, shape, _), part in zip(self._parameters, parts, strict=True):
            state[name] = part.view(-1, *shape)
        owns = torch.split(statistics, [size for _, size in self._statistics], dim=1) if self._statistics else ()
        for (name, _), own in zip(self._statistics, owns, strict=True):
            state[name] = own

        def logits(state: dict[str, Tensor], rows: dict[str, Tensor], inputs: Tensor) -> Tensor:
            out: Tensor = torch.func.functional_call(replica.model, state, (rows, inputs))
            return _shaped(replica.model, out, inputs.shape[0])

        inputs = torch.from_numpy(np.stack([batch.dense for batch in batches]))
        labels = torch.from_numpy(np.stack([batch.labels for batch in batches]))
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=replica.precision == "bf16"):
            out = torch.func.vmap(logits, randomness="different")(state, rows, inputs)
        losses = replica.model.losses(out.float(), labels).mean(1)
        whole = losses
        if any(batch.soft is not None for batch in batches):
            soft = [labels[k] if b.soft is None else torch.from_numpy(b.soft) for k, b in enumerate(batches)]
            taught = torch.tensor([b.soft is not None for b in batches]) * replica.distil
            against = torch.nn.functional.binary_cross_entropy_with_logits(
                out.float(), torch.stack(soft), reduction="none"
            )
            whole = losses + taught * against.mean(1)
        grads = torch.autograd.grad(whole.sum(), [dense, *rows.values()], allow_unused=True, materialize_grads=True)
        of_rows = [g.contiguous().numpy() for g in grads[1:]]
        made = []
        for k, (batch, pull, loss) in enumerate(zip(batches, pulled, losses.tolist(), strict=True)):
            sums = row_sums(replica.layout, batch, pull, [values[k] for values in of_rows])
            gradient = Gradient(grads[0][k].clone(), pull.numbers, sums, pull.counts, pull.applied)
            made.append((loss, gradient, statistics[k]))
        return made
